"""The way of a frame, from the client's audio to the client's socket, in stages that are timed apart."""

NAME = "stt_stage_seconds"
TEXT = (
    "Time of a frame's stages: audio (taken from the client, until it is sent to the engine), queue (at the engine,"
    " until its step), step (of the model), link (both ways between ingress and engine, with what is waited there to"
    " send more at once), socket (from the result to the client)."
)

AUDIO = "audio"
QUEUE = "queue"
STEP = "step"
LINK = "link"
SOCKET = "socket"
