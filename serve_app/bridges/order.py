"""From the order in which a device's chunks come to the order in which they were spoken: pure, no clock of its own.

Chunks that follow one another are one session. Where one is missing, those behind it are held back for a while; a gap
ends the session, and so does silence on the topic.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.bridges.audio import Sound
from serve_app.bridges.messages import AudioChunk
from serve_app.bridges.settings import LONGEST_GAP_SECONDS, KafkaSettings

FIRST_NUMBER = 1
"""Where devices begin to count, or one before: of a device whose first chunk has another number, the first may still be
on its way. The one before this is not waited for, and takes its place in front of it when it comes."""

OVERLAP_SECONDS = 0.5
"""Clocks may be so wrong: a chunk that was recorded so much before the last one ended may still come behind it."""

MOST_LATE = 2
"""So many pieces in a row whose numbers count up may be late; with one more the device has begun to count again, and
its clock was set back."""


@dataclass(frozen=True)
class Piece:
    """A chunk that can be transcribed, and what became of it so far."""

    chunk: AudioChunk
    """Without its encoded audio."""
    offset: int
    """Its place in its partition."""
    sound: Sound
    answered: bool
    """Whether its answer was committed in an earlier life of the bridge: it only tells what was said before."""
    arrived_at: float
    """When it came, on the monotonic clock."""

    @property
    def begins_at(self) -> float:
        """When its first sample was recorded, in seconds since the epoch."""
        return self.chunk.recorded_at.timestamp()

    @property
    def ends_at(self) -> float:
        """When its last sample was recorded, in seconds since the epoch."""
        return self.begins_at + self.sound.seconds


@dataclass(frozen=True)
class Spoken:
    """The next piece of the session."""

    piece: Piece
    begins: bool
    """Whether a session begins with it; one before it has ended."""


@dataclass(frozen=True)
class SpokenBefore:
    """A piece of the session that was spoken before the one with which it began."""

    piece: Piece


@dataclass(frozen=True)
class SessionEnds:
    """Nothing more belongs to the session."""


@dataclass(frozen=True)
class TooLate:
    """A piece whose place is past (the pieces behind it were not held back any longer), or another piece's."""

    piece: Piece
    expected: int


Step = Spoken | SpokenBefore | SessionEnds | TooLate


class Order:
    """Puts one device's chunks in order. Times are seconds of any clock that only rises."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._gap_s = settings.session_gap_seconds
        self._most_held = settings.reorder_chunks
        self._hold_s = settings.reorder_seconds
        self._held: dict[int, tuple[Piece, float]] = {}  # with the time at which each has come
        self._late: tuple[int, ...] = ()  # numbers of the pieces that were late, since one was not
        self._last: Piece | None = None  # of the session, or of the one before
        self._expected: int | None = None
        self._open = False
        self._first: Piece | None = None  # of the open session, if its number is the first one
        self._touched_at = 0.0

    @property
    def is_idle(self) -> bool:
        """Whether no session is open and nothing is held back."""
        return not self._open and not self._held

    def take(self, piece: Piece, now: float) -> Iterator[Step]:
        """Take the piece that has come; what follows from it. To be iterated to the end."""
        number = piece.chunk.sequence_number
        expected = self._where_to_begin(piece) if self._expected is None else self._expected
        if number is None or number == expected:
            yield from self._next(piece)
            yield from self._those_that_follow()
        elif self._first and self._adjoins(piece, self._first):
            self._first = None
            yield SpokenBefore(piece)
        elif number > expected and self._holds_back and number not in self._held:
            self._held[number] = piece, now
            if len(self._held) > self._most_held:
                yield from self._give_up_waiting()
        elif number > expected and number not in self._held:
            yield from self._next(piece)
        elif number < expected and self._counts_again(piece, number, expected):
            yield from self._all_held()
            yield from self._begin(piece)
        else:
            self._late = (*self._late, number)[-MOST_LATE:]
            yield TooLate(piece, expected)
            return  # it is no sign that the session goes on
        self._late = ()
        self._touched_at = now

    def tick(self, now: float, deaf_until: float) -> Iterator[Step]:
        """What follows from the time that has passed. To be iterated to the end.

        Until `deaf_until` chunks may have come that nobody has read.
        """
        while self._held and now - max(min(at for _, at in self._held.values()), deaf_until) >= self._hold_s:
            yield from self._give_up_waiting()
        if self._open and not self._held and self._last:
            # The next chunk of a device that goes on is due when it has been spoken.
            patience_s = min(self._gap_s + self._last.sound.seconds, LONGEST_GAP_SECONDS)
            if now - max(self._touched_at, deaf_until) >= patience_s:
                self._open, self._first = False, None
                yield SessionEnds()

    @property
    def _holds_back(self) -> bool:
        return self._hold_s > 0 and self._most_held > 0

    def _adjoins(self, piece: Piece, first: Piece) -> bool:
        """Whether the piece has the number before the first one, and was recorded just before that one."""
        is_in_time = self._holds_back and piece.arrived_at - first.arrived_at < self._hold_s
        precedes = piece.begins_at < first.begins_at and abs(first.begins_at - piece.ends_at) <= self._gap_s
        return is_in_time and precedes and piece.chunk.sequence_number == FIRST_NUMBER - 1

    def _counts_again(self, piece: Piece, number: int, expected: int) -> bool:
        """Whether the device has begun to count again, where its number is smaller than the one expected."""
        is_newer = self._last is not None and piece.begins_at >= self._last.ends_at - OVERLAP_SECONDS
        is_first = number <= FIRST_NUMBER and expected - number > self._most_held
        return is_newer or is_first or self._late == tuple(range(number - MOST_LATE, number))

    def _where_to_begin(self, piece: Piece) -> int:
        """The number that is waited for where none has come yet, or the piece before this one had none."""
        number = piece.chunk.sequence_number or 0
        knows_more = piece.answered or self._last is not None
        return number if knows_more or number <= FIRST_NUMBER or not self._holds_back else FIRST_NUMBER

    def _next(self, piece: Piece) -> Iterator[Step]:
        """The piece is the next one, if only what is missing before it is past hope."""
        number, last = piece.chunk.sequence_number, self._last
        has_gap = number is not None and self._expected is not None and number != self._expected
        if not self._open or not last or has_gap or abs(piece.begins_at - last.ends_at) > self._gap_s:
            yield from self._begin(piece)
        else:
            yield from self._go_on(piece, begins=False)

    def _begin(self, piece: Piece) -> Iterator[Step]:
        if self._open:
            yield SessionEnds()
        self._open, self._first = True, piece if piece.chunk.sequence_number == FIRST_NUMBER else None
        yield from self._go_on(piece, begins=True)

    def _go_on(self, piece: Piece, *, begins: bool) -> Iterator[Step]:
        number = piece.chunk.sequence_number
        self._last, self._expected = piece, None if number is None else number + 1
        yield Spoken(piece, begins)

    def _those_that_follow(self) -> Iterator[Step]:
        while self._expected is not None and (held := self._held.pop(self._expected, None)):
            yield from self._next(held[0])

    def _give_up_waiting(self) -> Iterator[Step]:
        """The chunks before the first one that is held back are lost."""
        yield from self._next(self._held.pop(min(self._held))[0])
        yield from self._those_that_follow()

    def _all_held(self) -> Iterator[Step]:
        for number in sorted(self._held):
            yield from self._next(self._held.pop(number)[0])
