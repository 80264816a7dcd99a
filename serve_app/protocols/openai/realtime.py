"""`WS /v1/realtime?intent=transcription`: OpenAI's realtime events, in both forms that its clients know.

in    session.update, or the beta's transcription_session.update; input_audio_buffer.append, .commit, .clear
out   session.created, .updated, or transcription_session.created, .updated
      input_audio_buffer.speech_started, .speech_stopped (with turn detection), .committed, .cleared
      conversation.item.added and .done, or the beta's .created
      conversation.item.input_audio_transcription.delta, .completed
      error, which ends the session only where a close frame follows
"""

import itertools
import json
from collections.abc import Iterable
from dataclasses import replace

from starlette.websockets import WebSocket

from serve_app.audio.stream import AudioStream
from serve_app.errors import InvalidAudio, SpeechError, TooManySessions, UnknownModel, shown
from serve_app.protocols import audio_in
from serve_app.protocols.conversation import Dialect, Message, Wishes
from serve_app.protocols.openai.errors import InvalidParameter, described
from serve_app.protocols.openai.models import choose
from serve_app.protocols.openai.realtime_items import Items, ServerEvent
from serve_app.protocols.openai.realtime_messages import (
    Append,
    Clear,
    ClientEvent,
    Commit,
    Configuration,
    OldUpdate,
    Update,
    parse_event,
    read_fields,
)
from serve_app.session.core import Event
from serve_app.session.models import Models, ServedModel
from serve_app.session.session import Session

LEAST_COMMIT_SECONDS = 0.1
"""OpenAI's own limit."""

PROTOCOL, BETA_PROTOCOL = "realtime", "openai-beta.realtime-v1"

_OLD_FORMATS = {"s16": "pcm16", "mulaw": "g711_ulaw", "alaw": "g711_alaw"}
_FORMATS = {"s16": "audio/pcm", "mulaw": "audio/pcmu", "alaw": "audio/pcma"}


class Realtime(Dialect):
    """The dialect of `WS /v1/realtime`, for one connection."""

    name = "openai_realtime"

    def __init__(self, websocket: WebSocket, models: Models) -> None:
        """`models` are those that are served."""
        offers = websocket.scope["subprotocols"]  # what browsers have instead of headers
        is_beta = BETA_PROTOCOL in offers or "realtime=v1" in websocket.headers.get("openai-beta", "")
        self.subprotocol = PROTOCOL if PROTOCOL in offers else None
        self._query = websocket.query_params
        self._models = models
        self._items = Items(is_beta=is_beta)
        self._configuration = Configuration(models.default.name)
        self._audio = AudioStream(self._configuration.audio_format)
        self._session_id = ""
        self._event_numbers = itertools.count(1)
        self._replies: list[ServerEvent] = []  # due before whatever the session says next

    def check_request(self) -> Wishes:
        """Read the query."""
        if (intent := self._query.get("intent", "transcription")) != "transcription":
            raise InvalidParameter("intent", f"?intent=: expected transcription, got {shown(intent)}")
        asked = self._query.get("model")
        model = choose(self._models, asked).name
        self._configuration = Configuration(asked or model)
        return Wishes(model=model)

    def ready(self, session: Session, resume_token: str | None) -> Iterable[Message]:
        """`session.created`."""
        self._session_id = f"sess_{session.id}"
        return self._told([self._described("created", is_old=self._items.is_beta)])

    def event(self, number: int, event: Event) -> Iterable[Message]:
        """What is said, and when turns begin and end."""
        return self._told([*self._take_replies(), *self._items.hear(event)])

    def error(self, error: SpeechError) -> Iterable[Message]:
        """`error`."""
        return self._told([*self._take_replies(), _error(error)])

    async def receive(self, session: Session, message: Message) -> Iterable[Message]:
        """Act on an event. One that is wrong, or asks for more than its key may have, is told so; it has no effect."""
        event_id = None
        try:
            fields = read_fields(message)
            event_id = fields.get("event_id")
            await self._act(session, parse_event(fields))
        except (InvalidParameter, UnknownModel, TooManySessions) as error:
            self._replies.append(_error(error, event_id if isinstance(event_id, str) else None))
        return self._told(self._take_replies())

    async def _act(self, session: Session, event: ClientEvent) -> None:
        match event:
            case Append():
                await audio_in.feed(session, self._audio, event.data)
            case Commit():
                await self._bring_audio_out(session)
                if (seconds := self._items.uncommitted_seconds(session.audio_seconds)) < LEAST_COMMIT_SECONDS:
                    raise InvalidParameter(
                        None,
                        f"expected at least {LEAST_COMMIT_SECONDS * 1000:.0f} ms of audio in the buffer,"
                        f" got {seconds * 1000:.2f} ms",
                        "input_audio_buffer_commit_empty",
                    )
                self._replies += self._items.commit(session.audio_seconds)
                await session.flush()
            case Clear():
                await self._bring_audio_out(session)
                self._replies.append({"type": "input_audio_buffer.cleared"})
                if self._items.uncommitted_seconds(session.audio_seconds):
                    self._items.clear(session.audio_seconds)
                    await session.flush()
            case Update() | OldUpdate():
                await self._configure(session, event)

    async def _configure(self, session: Session, event: Update | OldUpdate) -> None:
        changed = replace(self._configuration, **event.changes)
        model = choose(self._models, changed.model)
        if changed.model == model.name:  # OpenAI's own names are no wish: many clients always send one
            await self._change_model(session, model)
        is_old = isinstance(event, OldUpdate)
        if changed.audio_format != self._configuration.audio_format:
            await self._bring_audio_out(session)
            self._audio = AudioStream(changed.audio_format)
        self._configuration = changed
        self._items.detects_turns = changed.turn_detection is not None
        self._items.is_beta = self._items.is_beta or is_old
        self._replies.append(self._described("updated", is_old=is_old))

    async def _change_model(self, session: Session, model: ServedModel) -> None:
        if model is not session.model and session.audio_seconds:
            raise InvalidParameter("model", f"model: expected to be told before any audio, got {model.name!r} later")
        await session.change_model(model)

    async def _bring_audio_out(self, session: Session) -> None:
        """Feed what waits in the resampler; the next audio begins anew. Raises InvalidParameter."""
        old, self._audio = self._audio, AudioStream(self._configuration.audio_format)
        try:
            rest = old.finish()
        except InvalidAudio as error:
            raise InvalidParameter("audio", error.message, error.code) from None
        if len(rest):
            await session.feed(rest)

    def _take_replies(self) -> list[ServerEvent]:
        replies, self._replies = self._replies, []
        return replies

    def _told(self, events: Iterable[ServerEvent]) -> list[Message]:
        return [
            json.dumps({"event_id": f"event_{next(self._event_numbers)}", **event}, ensure_ascii=False)
            for event in events
        ]

    def _described(self, verb: str, *, is_old: bool) -> ServerEvent:
        """`session.created` and the like: the session as it is now."""
        now = self._configuration
        transcription = {"model": now.model, "language": now.language, "prompt": ""}
        turn_detection = {"type": now.turn_detection} if now.turn_detection else None
        session: dict[str, object] = {"id": self._session_id, "object": "realtime.transcription_session"}
        if is_old:
            session |= {
                "input_audio_format": _OLD_FORMATS[now.audio_format.encoding],
                "input_audio_transcription": transcription,
                "turn_detection": turn_detection,
            }
            return {"type": f"transcription_session.{verb}", "session": session}
        audio_format = {"type": _FORMATS[now.audio_format.encoding], "rate": now.audio_format.sample_rate_hz}
        session["type"] = "transcription"
        session["audio"] = {
            "input": {
                "format": audio_format,
                "transcription": transcription,
                "noise_reduction": None,
                "turn_detection": turn_detection,
            }
        }
        return {"type": f"session.{verb}", "session": session}


def _error(error: SpeechError, event_id: str | None = None) -> ServerEvent:
    return {"type": "error", "error": {**described(error), "event_id": event_id}}
