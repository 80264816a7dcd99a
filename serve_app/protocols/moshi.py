"""`WS /api/asr-streaming`: the protocol of Kyutai's moshi-server, so that its clients connect unchanged.

The messages are in `moshi_messages`. What is kept to (moshi-server's `batched_asr.rs`):

- Ready comes first; Init asks for it once more, before any audio.
- A Step for each frame of the client's audio, before the words that it brings. `step_idx` is this session's own, from
  0; in moshi-server it counts all users' steps. `prs` are the pause probabilities: without pause heads there are no
  Steps. `buffered_pcm` are samples that have come and have not been through the model.
- A Marker comes back when the whole frames sent before it and the model's delay more have been through the model. The
  client's own audio must bring that about: it sends silence behind its Marker, as Kyutai's clients do.
- The session ends when the client hangs up. When every slot is taken, the Error is "no free channels".

moshi-server's ping every 10 s is one of WebSocket itself; here the server below sends those (uvicorn: every 20 s).
"""

from collections.abc import Iterable

from starlette.datastructures import QueryParams

from serve_app.audio.formats import OPUS, AudioFormat
from serve_app.audio.stream import AudioStream
from serve_app.errors import AtCapacity, InvalidMessage, SpeechError, shown
from serve_app.protocols import audio_in
from serve_app.protocols.conversation import Dialect, Message, Wishes
from serve_app.protocols.moshi_messages import Audio, Init, Marker, OggOpus, decode, encode
from serve_app.session.core import Event, Frame, Marked
from serve_app.session.session import Session
from serve_app.transcript import Word, WordStart

NO_SLOT = "no free channels"


class Moshi(Dialect):
    """The dialect of `WS /api/asr-streaming`, for one connection."""

    name = "moshi"

    def __init__(self, query: QueryParams) -> None:
        """`query` is the connection's: `model` is ours, moshi-server has a path for each model."""
        self._query = query
        self._samples = AudioStream(AudioFormat())
        self._opus = AudioStream(AudioFormat(OPUS))

    def check_request(self) -> Wishes:
        """Read the query."""
        return Wishes(frames=True, model=self._query.get("model"))

    def ready(self, session: Session, resume_token: str | None) -> Iterable[Message]:
        """Ready."""
        yield encode("Ready")

    def event(self, number: int, event: Event) -> Iterable[Message]:
        """A message for each that moshi-server has, too."""
        match event:
            case Frame(index=index, pauses=pauses, waiting_samples=waiting):
                if pauses:
                    yield encode("Step", step_idx=index, prs=pauses, buffered_pcm=waiting)
            case WordStart(text=text, start_s=start):
                yield encode("Word", text=text, start_time=start)
            case Word(end_s=end):
                yield encode("EndWord", stop_time=end)
            case Marked(mark=None):
                yield encode("Ready")
            case Marked(mark=mark):
                yield encode("Marker", id=mark)

    def error(self, error: SpeechError) -> Iterable[Message]:
        """Error."""
        yield encode("Error", message=NO_SLOT if isinstance(error, AtCapacity) else error.message)

    async def receive(self, session: Session, message: Message) -> None:
        """A msgpack message."""
        if isinstance(message, str):
            raise InvalidMessage(f"expected binary msgpack, got the text {shown(message)}")
        match decode(message):
            case Audio(data=data):
                await audio_in.feed(session, self._samples, data)
            case OggOpus(data=data):
                await audio_in.feed(session, self._opus, data)
            case Marker(id=number):
                await session.mark(number, delayed=True)
            case Init():
                if session.audio_seconds:
                    raise InvalidMessage("expected Init before any audio, got it later: connect again to begin anew")
                await session.mark(None, delayed=False)
