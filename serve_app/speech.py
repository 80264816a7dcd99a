"""The words everyone in this project uses: frames, their results, a model's facts and a session's history.

Ground floor: this module imports nothing of ours, and both halves of the application (ingress and engine) share it.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE_HZ = 24_000
"""Sample rate of all audio inside the service (Mimi's own)."""

FRAME_SAMPLES = 1_920
"""Samples per frame: 80 ms at 24 kHz."""

FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE_HZ
"""Duration of one frame, 0.08 s."""

FRAMES_PER_SECOND = SAMPLE_RATE_HZ / FRAME_SAMPLES
"""12.5 frames per second."""

MAX_AMPLITUDE = 1_000.0
"""Largest sample that can be audio. Full scale is 1; louder mixes happen, and Mimi takes them, so nothing is clipped.
Beyond 1,000 (+60 dB) it is another format: integers sent as they are, or 16-bit samples read as floats."""

END_OF_PADDING_TOKEN = 0
"""Text token that marks a word boundary."""

PADDING_TOKEN = 3
"""Text token that stands for "nothing new" (`existing_text_padding_id` in every official STT config)."""


class FrameResult(NamedTuple):
    """What the model says after one frame of one stream."""

    frame: int
    """Index of the frame in its stream, from 0."""
    token: int
    """Text token id."""
    pauses: tuple[float, ...]
    """Probability of a pause of 0.5, 1, 2 and 3 s; empty where the checkpoint has no pause heads."""
    codes: NDArray[np.int16]
    """The frame's audio codes, int16 [codebooks]."""
    engine_seconds: float = 0.0
    """Time from the frame's arrival at the engine to the end of its step."""
    probability: float = 0.0
    """Probability that the model gave the token."""


@dataclass(frozen=True)
class FrameResults:
    """Frame results of many streams in columns; row i belongs to stream `streams[i]`."""

    streams: NDArray[np.int64]
    """Stream ids, int64 [n]."""
    frames: NDArray[np.int32]
    """Frame index of each row in its stream, int32 [n]."""
    tokens: NDArray[np.int32]
    """Text tokens, int32 [n]."""
    codes: NDArray[np.int16]
    """Audio codes, int16 [n, codebooks]."""
    pauses: NDArray[np.float32]
    """Pause probabilities, float32 [n, heads]."""
    engine_seconds: NDArray[np.float32]
    """Time from each frame's arrival at the engine to the end of its step, float32 [n]."""
    probabilities: NDArray[np.float32]
    """Probability of each token, float32 [n]."""


@dataclass(frozen=True)
class ModelInfo:
    """What the ingress must know about a loaded model; small enough to travel with a control-plane call."""

    name: str
    """Name or folder the model was loaded from."""
    pieces: tuple[str, ...]
    """Sentencepiece pieces by token id; `▁` starts a word, `<0xNN>` is one raw byte."""
    delay_frames: int
    """Frames by which the text stream lags the audio stream."""
    silence_prefix_frames: int
    """Frames of silence the model wants before the first sample (`audio_silence_prefix_seconds`, rounded up)."""
    context_frames: int
    """Decoder context; a history of this many frames re-creates a stream."""
    codec_context_frames: int
    """Codec context; twice this much audio re-creates the codec's state exactly."""
    codebooks: int
    """Audio codes per frame."""
    pause_heads: int
    """Number of pause probabilities per frame; 0 where the checkpoint has none."""


@dataclass(frozen=True)
class History:
    """Everything that re-creates a stream in another slot, on this engine or another one.

    `tokens` and `codes` cover the frames `next_frame - n ... next_frame - 1`, `audio` the last `m` of them (`m` and `n`
    are independent). A history that reaches back to frame 0 (`n == next_frame`) or that holds at least
    `context_frames` frames is complete; twice `codec_context_frames` of audio make the codec exact.
    """

    next_frame: int
    """Index of the frame that comes next: how many frames the stream has had so far."""
    tokens: NDArray[np.int32]
    """Text tokens, int32 [n]."""
    codes: NDArray[np.int16]
    """Audio codes, int16 [n, codebooks]."""
    audio: NDArray[np.float32]
    """The most recent frames of audio, float32 [m, FRAME_SAMPLES]."""
