"""Dialects that take a whole file over HTTP."""

import json
import time

from serve_app.smoke.heard import Heard, Said, Unexpected
from serve_app.smoke.target import Target

FILE_NAME = "clip"
"""Names say nothing to the service: the contents do."""


async def moshi(target: Target, said: Said) -> Heard:
    """`POST /api/asr-streaming`."""
    answer = await target.ask("POST", "/api/asr-streaming", content=said.file)
    messages = answer.json()
    return Heard(" ".join(message["text"] for message in messages if message["type"] == "Word"))


async def as_json(target: Target, said: Said) -> Heard:
    """OpenAI's shortest answer."""
    return Heard(json.loads(await _transcription(target, said))["text"])


async def verbose(target: Target, said: Said) -> Heard:
    """OpenAI's answer with times; the words must be those of the text."""
    wishes = {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    answer = json.loads(await _transcription(target, said, **wishes))
    words = " ".join(word["word"] for word in answer["words"])
    if words != answer["text"]:
        raise Unexpected(f"expected the words of the text {answer['text']!r}, got {words!r}")
    return Heard(answer["text"])


async def srt(target: Target, said: Said) -> Heard:
    """SubRip subtitles."""
    return Heard(_cue_text(await _transcription(target, said, response_format="srt")))


async def vtt(target: Target, said: Said) -> Heard:
    """WebVTT subtitles."""
    answer = await _transcription(target, said, response_format="vtt")
    if not answer.startswith("WEBVTT\n"):
        raise Unexpected(f"expected WEBVTT in the first line, got {answer[:80]!r}")
    return Heard(_cue_text(answer))


async def streamed(target: Target, said: Said) -> Heard:
    """OpenAI's server-sent events; the pieces must be those of the text at the end."""
    asked = time.monotonic()
    text, first_s = "", None
    done: str | None = None
    async with target.lines("POST", "/v1/audio/transcriptions", **_form(said, stream="true")) as lines:
        async for line in lines:
            if not line.startswith("data: "):
                continue
            match json.loads(line.removeprefix("data: ")):
                case {"type": "transcript.text.delta", "delta": delta}:
                    first_s = time.monotonic() - asked if first_s is None else first_s
                    text += delta
                case {"type": "transcript.text.done", "text": done}:
                    pass
                case other:
                    raise Unexpected(f"expected a delta or the end, got {other!r:.200}")
    if done != text:
        raise Unexpected(f"expected the text of the deltas {text!r} at the end, got {done!r}")
    return Heard(text, first_s)


async def _transcription(target: Target, said: Said, **wishes: str) -> str:
    return (await target.ask("POST", "/v1/audio/transcriptions", **_form(said, **wishes))).text


def _form(said: Said, **wishes: str) -> dict[str, object]:
    return {"files": {"file": (FILE_NAME, said.file)}, "data": wishes}


def _cue_text(subtitles: str) -> str:
    """What stands below the times."""
    cues = (cue.partition("-->")[2].partition("\n")[2] for cue in subtitles.split("\n\n"))
    return " ".join(" ".join(cues).split())


UPLOADS = {
    "POST /api/asr-streaming": moshi,
    "POST /v1/audio/transcriptions json": as_json,
    "POST /v1/audio/transcriptions verbose_json": verbose,
    "POST /v1/audio/transcriptions srt": srt,
    "POST /v1/audio/transcriptions vtt": vtt,
    "POST /v1/audio/transcriptions stream": streamed,
}
"""By name."""
