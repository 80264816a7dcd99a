"""`WS /v1/transcribe`: 16-bit PCM in, segments of whole words out as JSON text.

in, binary   PCM, 16-bit little-endian, 24 kHz, mono (?format=&sample_rate=&channels= say otherwise), or Ogg/Opus
in           EOS, as bytes or as text
             ?model=NAME chooses one of the models that are served
out, text    {"text": " seven", "final": false}       every 480 ms of audio, if words have been said in it
             {"text": " eight", "final": true}        the answer to EOS: the rest, which may be empty
             {"status": "complete"}                   then close 1000
             {"status": "error", "code": …, "message": …}
"""

import json
from collections.abc import Iterable

from starlette.datastructures import QueryParams

from serve_app.audio.formats import parse_audio_format
from serve_app.audio.stream import AudioStream
from serve_app.errors import InvalidMessage, SpeechError, shown
from serve_app.protocols import audio_in
from serve_app.protocols.conversation import END_OF_STREAM, Dialect, Message, Wishes, is_end
from serve_app.session.core import Done, Event, Frame
from serve_app.session.session import Session
from serve_app.transcript import WordStart

SEGMENT_FRAMES = 6
"""480 ms."""


class Transcribe(Dialect):
    """The dialect of `WS /v1/transcribe`, for one connection."""

    name = "transcribe"

    def __init__(self, query: QueryParams) -> None:
        """`query` is the connection's."""
        self._query = query
        self._segment = ""  # words that are still to be told

    def check_request(self) -> Wishes:
        """Read the query."""
        self._audio = AudioStream(parse_audio_format({"format": "s16", **self._query}))
        return Wishes(frames=True, model=self._query.get("model"))  # frames are the clock of the segments

    def event(self, number: int, event: Event) -> Iterable[Message]:
        """Words are collected until a segment is over; a leading space starts each of them."""
        match event:
            case WordStart(text=text):
                self._segment += " " + text
            case Frame(index=index):
                if index % SEGMENT_FRAMES == SEGMENT_FRAMES - 1 and self._segment:
                    yield self._told(final=False)
            case Done():
                yield self._told(final=True)
                yield json.dumps({"status": "complete"})

    def error(self, error: SpeechError) -> Iterable[Message]:
        """What was said before it, then `{"status": "error", …}`."""
        if self._segment:
            yield self._told(final=False)
        yield json.dumps({"status": "error", "code": error.code, "message": error.message}, ensure_ascii=False)

    async def receive(self, session: Session, message: Message) -> None:
        """Audio, or its end."""
        if is_end(message):
            await audio_in.end(session, self._audio)
        elif isinstance(message, bytes):
            await audio_in.feed(session, self._audio, message)
        else:
            raise InvalidMessage(f"expected binary audio or {END_OF_STREAM}, got the text {shown(message)}")

    def _told(self, final: bool) -> str:
        text, self._segment = self._segment, ""
        return json.dumps({"text": text, "final": final}, ensure_ascii=False)
