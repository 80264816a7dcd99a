"""A finished transcript in OpenAI's response formats."""

from collections.abc import Iterable

from starlette.responses import JSONResponse, PlainTextResponse, Response

from serve_app.protocols.openai.form import Form
from serve_app.segments import Segment, Segmenter
from serve_app.session.core import Event
from serve_app.speech import FRAME_SECONDS
from serve_app.transcript import Token, TurnEnd, Word

UNDETERMINED = "und"
"""ISO 639's code for a language that nobody has named: the models do not say which one they hear."""


class Transcript:
    """Collects what was said."""

    def __init__(self, audio_seconds: float) -> None:
        """`audio_seconds` is how long the audio is."""
        self.audio_seconds = audio_seconds
        self._segmenter = Segmenter()
        self._pieces: list[str] = []
        self._segments: list[Segment] = []

    def add(self, event: Event) -> str:
        """Take the next event; the text that it adds. All those texts together are the transcript."""
        match event:
            case Token(text=text):
                text = text if self._pieces else text.lstrip()
                if text:
                    self._pieces.append(text)
                return text
            case Word() | TurnEnd():
                self._keep(self._segmenter.add(event))
        return ""

    def finish(self) -> None:
        """Say that no more comes."""
        self._keep(self._segmenter.finish())

    def response(self, form: Form) -> Response:
        """All of it, in the format that was asked for."""
        match form.response_format:
            case "text":
                return PlainTextResponse(self.text + "\n")
            case "srt":
                return PlainTextResponse(_srt(self._segments))
            case "vtt":
                return PlainTextResponse(_vtt(self._segments))
            case "verbose_json":
                return JSONResponse(self._verbose(form))
        return JSONResponse({"text": self.text, "usage": self._duration})

    @property
    def text(self) -> str:
        """Everything said so far."""
        return "".join(self._pieces)

    @property
    def token_usage(self) -> dict[str, object]:
        """The form that the end of a stream has: a frame counts as a token of audio."""
        heard, said = round(self.audio_seconds / FRAME_SECONDS), len(self._pieces)
        return {
            "type": "tokens",
            "input_tokens": heard,
            "input_token_details": {"audio_tokens": heard, "text_tokens": 0},
            "output_tokens": said,
            "total_tokens": heard + said,
        }

    @property
    def _duration(self) -> dict[str, object]:
        return {"type": "duration", "seconds": round(self.audio_seconds, 3)}

    def _keep(self, segment: Segment | None) -> None:
        if segment:
            self._segments.append(segment)

    def _verbose(self, form: Form) -> dict[str, object]:
        parts: dict[str, object] = {}
        if "word" in form.granularities:
            parts["words"] = [
                {"word": word.text, "start": round(word.start_s, 3), "end": round(word.end_s, 3)}
                for segment in self._segments
                for word in segment.words
            ]
        if "segment" in form.granularities:
            parts["segments"] = [_described(number, segment) for number, segment in enumerate(self._segments)]
        return {
            "task": "transcribe",
            "language": form.language or UNDETERMINED,
            "duration": round(self.audio_seconds, 3),
            "text": self.text,
            **parts,
            "usage": self._duration,
        }


def _described(number: int, segment: Segment) -> dict[str, object]:
    """OpenAI's clients require fields for what Whisper measures and these models do not: those are 0."""
    return {
        "id": number,
        "seek": 0,
        "start": round(segment.start_s, 3),
        "end": round(segment.end_s, 3),
        "text": segment.text,
        "tokens": [],
        "temperature": 0.0,
        "avg_logprob": 0.0,
        "compression_ratio": 0.0,
        "no_speech_prob": 0.0,
    }


def _srt(segments: Iterable[Segment]) -> str:
    return "".join(
        f"{number}\n{_time(segment.start_s, ',')} --> {_time(segment.end_s, ',')}\n{segment.text}\n\n"
        for number, segment in enumerate(segments, 1)
    )


def _vtt(segments: Iterable[Segment]) -> str:
    cues = (
        f"{_time(segment.start_s, '.')} --> {_time(segment.end_s, '.')}\n{_escaped(segment.text)}\n\n"
        for segment in segments
    )
    return "WEBVTT\n\n" + "".join(cues)


def _escaped(text: str) -> str:
    """WebVTT reads tags and entities in cues."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _time(seconds: float, point: str) -> str:
    rest, milliseconds = divmod(round(seconds * 1000), 1000)
    minutes, second = divmod(rest, 60)
    return f"{minutes // 60:02}:{minutes % 60:02}:{second:02}{point}{milliseconds:03}"
