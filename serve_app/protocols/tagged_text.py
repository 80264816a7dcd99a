"""`WS /ws`: Ogg/Opus in, text out as binary messages with a tag in front (Modal's example of a streaming service).

in, binary   an Ogg/Opus stream, in any pieces (what a browser's recorder makes)
in           EOS, as bytes or as text: brings the last words out, then close 1000; the example itself just hangs up
out, binary  0x01 and UTF-8 text, as soon as the model has it; a leading space starts a word

?model=NAME chooses one of the models that are served.

There is no other message: an error is the close frame's code and reason.
"""

from collections.abc import Iterable

from starlette.datastructures import QueryParams

from serve_app.audio.formats import OPUS, AudioFormat
from serve_app.audio.stream import AudioStream
from serve_app.errors import InvalidMessage, SpeechError, shown
from serve_app.protocols import audio_in
from serve_app.protocols.conversation import Dialect, Message, Wishes, is_end
from serve_app.session.core import Event
from serve_app.session.session import Session
from serve_app.transcript import Token

TEXT_TAG = b"\x01"


class TaggedText(Dialect):
    """The dialect of `WS /ws`, for one connection."""

    name = "tagged_text"

    def __init__(self, query: QueryParams) -> None:
        """`query` is the connection's."""
        self._query = query
        self._audio = AudioStream(AudioFormat(OPUS))

    def check_request(self) -> Wishes:
        """Read the query."""
        return Wishes(model=self._query.get("model"))

    def event(self, number: int, event: Event) -> Iterable[Message]:
        """Text, and nothing else."""
        if isinstance(event, Token):
            yield TEXT_TAG + event.text.encode()

    def error(self, error: SpeechError) -> Iterable[Message]:
        """Nothing: a client would take it for something that was said."""
        return ()

    async def receive(self, session: Session, message: Message) -> None:
        """Audio, or its end."""
        if is_end(message):
            await audio_in.end(session, self._audio)
        elif isinstance(message, bytes):
            await audio_in.feed(session, self._audio, message)
        else:
            raise InvalidMessage(f"expected binary Ogg/Opus, got the text {shown(message)}")
