"""Which item of a realtime conversation each piece of the transcript belongs to, and what clients are told of it: pure.

An item is what was said between two commits. The server commits at the end of a turn, if turn detection is on, and the
client whenever it likes. The transcript lags the audio: after a client's commit it belongs to the item committed first,
until the session says that everything said before that commit is out.
"""

import secrets
from collections import deque
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from serve_app.session.core import Event, Flushed
from serve_app.transcript import Token, TurnEnd, WordStart

ServerEvent: TypeAlias = dict[str, Any]


@dataclass
class _Item:
    id: str = field(default_factory=lambda: f"item_{secrets.token_hex(10)}")
    text: str = ""
    held: str = ""
    """Text that waits for its word's start: no delta comes before `speech_started`, which tells that."""
    is_started: bool = False
    is_wanted: bool = True
    """False once the client has cleared the audio that it was said in."""
    seconds: float = 0.0


class Items:
    """See the module's docstring."""

    def __init__(self, *, is_beta: bool) -> None:
        """`is_beta` speaks of items as the beta did."""
        self.is_beta = is_beta
        self.detects_turns = True
        self._item = _Item()
        self._committed: deque[_Item] = deque()  # by the client; their transcripts are not complete yet
        self._previous: str | None = None
        self._boundary_s = 0.0

    def uncommitted_seconds(self, audio_seconds: float) -> float:
        """How much of so much audio is in no item yet."""
        return max(0.0, audio_seconds - self._boundary_s)

    def hear(self, event: Event) -> list[ServerEvent]:
        """What the session's next event means to the client."""
        item = self._committed[0] if self._committed else self._item
        match event:
            case Token(text=text):
                item.held += text
                return _said(item) if item.is_started or not self.detects_turns else []
            case WordStart(start_s=start_s) if self.detects_turns and item.is_wanted and not item.is_started:
                item.is_started = True
                started = _about("input_audio_buffer.speech_started", item, audio_start_ms=round(start_s * 1000))
                return [started, *_said(item)]
            case TurnEnd(time_s=time_s) if self.detects_turns:
                return self._end_turn(item, time_s)
            case Flushed():
                return _completed(self._committed.popleft())
        return []

    def commit(self, audio_seconds: float) -> list[ServerEvent]:
        """The client commits what it has sent; a `Flushed` must follow once the session has told all of it."""
        item = self._take(audio_seconds)
        self._committed.append(item)
        return self._committing(item)

    def clear(self, audio_seconds: float) -> None:
        """The client wants nothing of what it has sent; likewise."""
        item = self._take(audio_seconds)
        item.is_wanted = False
        self._committed.append(item)

    def _end_turn(self, item: _Item, time_s: float) -> list[ServerEvent]:
        stopped = []
        if item.is_started:
            item.is_started = False
            stopped = [_about("input_audio_buffer.speech_stopped", item, audio_end_ms=round(time_s * 1000))]
        if item is not self._item or not item.text:
            return stopped
        return [*stopped, *self._committing(self._take(time_s)), *_completed(item)]

    def _take(self, at_s: float) -> _Item:
        """The item that is being spoken, up to this time, from which another one begins."""
        item, self._item = self._item, _Item()
        item.seconds = self.uncommitted_seconds(at_s)
        self._boundary_s = max(self._boundary_s, at_s)
        return item

    def _committing(self, item: _Item) -> list[ServerEvent]:
        previous, self._previous = self._previous, item.id
        told = {
            "id": item.id,
            "object": "realtime.item",
            "type": "message",
            "status": "completed",
            "role": "user",
            "content": [{"type": "input_audio", "transcript": None}],
        }
        kinds = ("created",) if self.is_beta else ("added", "done")
        return [
            _about("input_audio_buffer.committed", item, previous_item_id=previous),
            *({"type": f"conversation.item.{kind}", "previous_item_id": previous, "item": told} for kind in kinds),
        ]


def _about(kind: str, item: _Item, **fields: object) -> ServerEvent:
    return {"type": kind, "item_id": item.id, **fields}


def _transcription(kind: str, item: _Item, **fields: object) -> ServerEvent:
    return _about(f"conversation.item.input_audio_transcription.{kind}", item, content_index=0, **fields)


def _said(item: _Item) -> list[ServerEvent]:
    delta, item.held = item.held if item.text else item.held.lstrip(), ""
    item.text += delta
    return [_transcription("delta", item, delta=delta)] if delta and item.is_wanted else []


def _completed(item: _Item) -> list[ServerEvent]:
    if not item.is_wanted:
        return []
    usage = {"type": "duration", "seconds": round(item.seconds, 3)}
    return [_transcription("completed", item, transcript=item.text, usage=usage)]
