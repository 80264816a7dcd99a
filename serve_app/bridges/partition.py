"""What the bridge knows of a partition: its devices, which messages are answered, and what is to be produced."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

from confluent_kafka import Message

from serve_app.bridges.audio import Sound, decode_chunk
from serve_app.bridges.broker import Record, TooLarge
from serve_app.bridges.device import Answer
from serve_app.bridges.ledger import MOST_AHEAD, Ledger
from serve_app.bridges.messages import AudioChunk, ChunkTranscript, TranscribedWord, UnreadableChunk, read_chunk
from serve_app.bridges.order import Order, Piece, SessionEnds, Spoken, SpokenBefore, Step, TooLate
from serve_app.bridges.settings import KafkaSettings
from serve_app.bridges.transcriber import Live, Transcriber
from serve_app.telemetry import get_logger
from serve_app.telemetry.bridge_metrics import BridgeMetrics

_log = get_logger(__name__)

MOST_PENDING_BYTES = 64 * 2**20
"""Audio of a partition that may wait for its answers; one chunk always may."""

MOST_IDS = 50_000
"""Chunks of a partition that are remembered, to know them when they come again."""

LONGEST_TURN_SECONDS = 0.5
"""How much of the time between two ticks counts at most as silence: in a longer one the bridge has not listened."""

MOST_KEY_BYTES = 1024
"""What is kept of a dead letter's key."""


@dataclass(frozen=True)
class Readable:
    """A message's audio chunk."""

    chunk: AudioChunk
    """Without its encoded audio."""
    sound: Sound


def read_message(message: Message, settings: KafkaSettings) -> Readable | str:
    """What is in a message; where that is no chunk that can be transcribed, the reason. Blocking: it decodes audio."""
    value = message.value()
    if value is not None and len(value) > settings.max_message_bytes:
        return f"expected at most {settings.max_message_bytes} bytes, got {len(value)}"
    try:
        chunk = read_chunk(value)
        return Readable(chunk.model_copy(update={"audio_data": b""}), decode_chunk(chunk, settings.max_chunk_seconds))
    except UnreadableChunk as error:
        return str(error)
    except Exception as error:  # our own mistake, or a decoder's: no message may stop the others
        _log.error("message not understood", offset=message.offset(), exc_info=error)
        return f"reading it failed: {type(error).__name__}"


class Partition:
    """One partition of the input topic, while it is ours. Use it in one event loop."""

    def __init__(
        self, ledger: Ledger, settings: KafkaSettings, transcriber: Transcriber, metrics: BridgeMetrics
    ) -> None:
        """`ledger` knows what was answered before."""
        self.ledger = ledger
        """Which messages are answered."""
        self.ready: list[Record] = []
        """What is to be produced, in order."""
        self.is_uncommitted = False
        """Whether the ledger knows more than was committed."""
        self.paused = False
        """Whether it is read no further."""
        self._settings = settings
        self._transcriber = transcriber
        self._metrics = metrics
        self._devices: dict[str, _Device] = {}
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._waiting: dict[int, Message] = {}  # by offset, what may become a dead letter
        self._bytes = 0
        self._ticked_at = time.monotonic()
        self._listened_s = 0.0  # the clock by which devices are silent; the next two are times on it
        self._progress_at = self._deaf_until = 0.0

    @property
    def is_full(self) -> bool:
        """Whether so much waits that no more should be read."""
        return (
            self.ledger.pending >= self._settings.max_pending_chunks
            or self.ledger.span >= MOST_AHEAD
            or self._bytes >= MOST_PENDING_BYTES
        )

    @property
    def has_room(self) -> bool:
        """Whether so little waits that it may be read again."""
        return (
            self.ledger.pending <= self._settings.max_pending_chunks // 2
            and self.ledger.span < MOST_AHEAD // 2
            and self._bytes <= MOST_PENDING_BYTES // 2
        )

    @property
    def devices(self) -> int:
        """Devices that are speaking."""
        return len(self._devices)

    def take(self, message: Message, content: Readable | str) -> None:
        """The next message, and what `read_message` says of it."""
        offset = message.offset() or 0
        answered = self.ledger.saw(offset)
        if isinstance(content, str):
            if not answered:
                self._bury(message, content)
            return
        name = content.chunk.device_id, content.chunk.chunk_id
        if name in self._known:
            if not answered:
                self._metrics.duplicates_total.inc()
                self._done(offset)
            return
        self._known[name] = None
        if len(self._known) > MOST_IDS:
            self._known.popitem(last=False)
        piece = Piece(content.chunk, offset, content.sound, answered, time.monotonic())
        if not answered:
            self._bytes += _size(piece, message)
            self._waiting[offset] = message
        device = self._devices.get(content.chunk.device_id)
        if device is None:
            device = self._devices[content.chunk.device_id] = _Device(self, self._settings, self._transcriber)
        device.take(piece, self._listened_s)

    def tick(self) -> None:
        """Let time pass. Raises what a device's task has raised, which is our own mistake."""
        before, self._ticked_at = self._ticked_at, time.monotonic()
        self._listened_s += min(self._ticked_at - before, LONGEST_TURN_SECONDS)
        now = self._listened_s
        if self.paused and now - self._progress_at < self._settings.session_gap_seconds:
            self._deaf_until = now  # what comes is not read: nobody's silence means anything
        for name, device in list(self._devices.items()):
            device.tick(now, self._deaf_until)
            if device.is_idle:
                device.close()
                del self._devices[name]

    def give_up(self, refused: TooLarge) -> None:
        """Where this is ours: a dead letter takes an answer's place, and nothing takes a dead letter's."""
        record, reason = refused.record, refused.reason
        place = next((place for place, ready in enumerate(self.ready) if ready is record), None)
        if place is None:
            return
        if record.source is not None:
            _log.error("transcript too large", offset=record.source.offset(), reason=reason)
            self._metrics.dead_letters_total.inc()
            self.ready[place] = dead_letter(record.source, f"transcript: {reason}", self._settings)
        else:
            facts = {name: fact.decode() for name, fact in record.headers}
            _log.error("dead letter too large, it is lost", too_large=reason, **facts)
            del self.ready[place]

    async def close(self) -> None:
        """Let go of everything."""
        devices, self._devices = list(self._devices.values()), {}
        for device in devices:
            device.close()
        await asyncio.gather(*(device.task for device in devices), return_exceptions=True)

    # ------------------------------------------------------------------ for the devices

    def answer(self, answer: Answer) -> None:
        """What was said in a piece."""
        seconds = time.monotonic() - answer.piece.arrived_at
        self._metrics.processing_seconds.observe(seconds)
        self._metrics.transcripts_total.inc()
        transcript = _transcript(answer, self._settings.language, self._transcriber.model, seconds)
        key, value = answer.piece.chunk.device_id.encode(), transcript.model_dump_json().encode()
        self.ready.append(Record(self._settings.output_topic, key, value, source=self._release(answer.piece)))
        self._done(answer.piece.offset)

    def refuse(self, piece: Piece, reason: str) -> None:
        """A piece gets no answer; nothing is to be said of one that had its answer before."""
        if not piece.answered:
            self._bury(self._release(piece), reason)

    # ------------------------------------------------------------------ inside

    def _release(self, piece: Piece) -> Message:
        """The piece's message, for which nobody waits any more."""
        message = self._waiting.pop(piece.offset)
        self._bytes -= _size(piece, message)
        return message

    def _bury(self, message: Message, reason: str) -> None:
        self._metrics.dead_letters_total.inc()
        self.ready.append(dead_letter(message, reason, self._settings))
        self._done(message.offset() or 0)

    def _done(self, offset: int) -> None:
        self.ledger.done(offset)
        self.is_uncommitted = True
        self._progress_at = self._listened_s
        self._metrics.chunks_total.inc()


class _Device:
    """One device's chunks on their way to the service."""

    def __init__(self, partition: Partition, settings: KafkaSettings, transcriber: Transcriber) -> None:
        self._partition = partition
        self._history_seconds = settings.history_seconds
        self._transcriber = transcriber
        self._order = Order(settings)
        self._sessions: asyncio.Queue[Live] = asyncio.Queue()  # bounded by the pieces in them
        self._live: Live | None = None
        self._unfinished = 0
        self.task = asyncio.create_task(self._transcribe())

    @property
    def is_idle(self) -> bool:
        """Whether everything it has said is answered, and it says no more."""
        return self._order.is_idle and not self._unfinished

    def take(self, piece: Piece, now: float) -> None:
        self._do(self._order.take(piece, now))

    def tick(self, now: float, deaf_until: float) -> None:
        if self.task.done():
            self.task.result()
        is_behind = self._live is not None and self._live.session.is_behind
        self._do(self._order.tick(now, now if is_behind else deaf_until))

    def close(self) -> None:
        self.task.cancel()

    def _do(self, steps: Iterator[Step]) -> None:
        for step in steps:
            match step:
                case Spoken(piece, begins):
                    if begins or self._live is None:
                        self._live = Live(self._history_seconds)
                        self._unfinished += 1
                        self._sessions.put_nowait(self._live)
                    self._add(piece, self._live.add)
                case SpokenBefore(piece):
                    if self._live:
                        self._add(piece, self._live.add_before)
                case SessionEnds():
                    if self._live:
                        self._live.end()
                case TooLate(piece, expected):
                    number = piece.chunk.sequence_number or 0
                    why = "too late" if number < expected else "another chunk with it came before"
                    self._partition.refuse(piece, f"sequence_number: expected {expected}, got {number}: {why}")

    def _add(self, piece: Piece, add: Callable[[Piece], None]) -> None:
        if len(piece.sound.samples):
            add(piece)
        elif not piece.answered:
            self._partition.answer(Answer(piece, ()))

    async def _transcribe(self) -> None:
        while True:
            live = await self._sessions.get()
            await self._transcriber.transcribe(live, self._partition.answer, self._partition.refuse)
            self._unfinished -= 1


def _size(piece: Piece, message: Message) -> int:
    return piece.sound.samples.nbytes + len(message.value() or b"")


def _transcript(answer: Answer, language: str, model: str, seconds: float) -> ChunkTranscript:
    chunk = answer.piece.chunk
    words = tuple(
        TranscribedWord(
            word=word.text,
            start_time=round(word.start_s, 3),
            end_time=round(word.end_s, 3),
            confidence=word.confidence,
            start_at=chunk.recorded_at + timedelta(seconds=round(word.start_s, 3)),
            end_at=chunk.recorded_at + timedelta(seconds=round(word.end_s, 3)),
        )
        for word in answer.words
    )
    return ChunkTranscript(
        device_id=chunk.device_id,
        recorded_at=chunk.recorded_at,
        chunk_id=chunk.chunk_id,
        words=words,
        full_text=" ".join(word.word for word in words),
        language=language,
        processing_time_ms=round(1000 * seconds, 1),
        model_version=model,
    )


def dead_letter(message: Message, reason: str, settings: KafkaSettings) -> Record:
    """A message that cannot be answered, as it came, and in headers why; long ones are cut off.

    The message's own headers are not read: confluent-kafka fails, or ends the process, where names are not UTF-8.
    """
    value = message.value() or b""
    facts = {
        "reason": reason,
        "source_topic": message.topic() or "",
        "source_partition": str(message.partition()),
        "source_offset": str(message.offset()),
        "original_bytes": str(len(value)),
    }
    key = message.key()
    return Record(
        settings.dead_letter_topic,
        key[:MOST_KEY_BYTES] if isinstance(key, bytes) else None,
        value[: settings.dead_letter_bytes],
        tuple((name, fact.encode()) for name, fact in facts.items()),
    )
