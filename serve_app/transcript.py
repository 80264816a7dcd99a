"""From frame results to tokens, words and turn ends: pure, one stream at a time.

The rule for words is that of Kyutai's moshi-server (`moshi-core`, asr.rs): text token 0 is a word boundary, 3 is
padding, everything else a piece of text. A word is a run of pieces ended by 0 or 3; it starts at the time of the last
0 before it and ends at the time of the next 0. Two rare cases upstream leaves open are settled here: a piece that
starts a new word inside a run splits it, and a word that never gets its closing 0 ends after a second.
"""

import codecs
import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from serve_app.speech import END_OF_PADDING_TOKEN, FRAMES_PER_SECOND, PADDING_TOKEN, FrameResult, ModelInfo

MAX_END_WAIT_FRAMES = 13
"""A complete word waits this long (1.04 s) for the boundary that ends it."""

UNENDED_WORD_SECONDS = 1.0
"""How long a word lasts that never gets that boundary."""

MAX_WORD_CHARACTERS = 256
"""A longer run is no word but a model that repeats itself; it is split, so that it stays bounded."""

ERRATIC_FRAMES = 12
"""Pause probabilities mean nothing in the first frames of a stream (Unmute ignores as many)."""

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CONTROL_PIECES = frozenset({"<unk>", "<s>", "</s>", "<pad>"})


@dataclass(frozen=True, slots=True)
class Token:
    """A bit of text, as soon as the model says it."""

    text: str
    """The text; a leading space starts a word."""
    frame: int
    """Index of the frame whose result completed it."""


@dataclass(frozen=True, slots=True)
class WordStart:
    """A word whose text is complete and whose end is not known yet; its `Word` follows within about a second."""

    text: str
    """The word, without surrounding spaces."""
    start_s: float
    """Start in the client's audio, in seconds."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word with its place in the client's audio; words come in order and do not overlap."""

    text: str
    """The word, without surrounding spaces."""
    start_s: float
    """Start in seconds, never negative."""
    end_s: float
    """End in seconds, never before the start."""
    confidence: float = 0.0
    """Mean of the probabilities that the model gave the word's tokens."""


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """The speaker has paused after at least one word; comes once per turn."""

    time_s: float
    """When, in seconds of the client's audio (on the clock of the words)."""


Event = Token | WordStart | Word | TurnEnd
"""What a transcript is made of."""


class Vocabulary:
    """What each text token stands for, as UTF-8 bytes: a character may be spread over several byte tokens."""

    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = tuple(_bytes_of(piece) for piece in pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, token: int) -> bytes:
        """Return the UTF-8 bytes of a token, `▁` as a space; none for control pieces and ids beyond the tokenizer's."""
        return self._pieces[token] if 0 <= token < len(self._pieces) else b""


@dataclass(slots=True)
class _Run:
    """The word in the making, or complete and waiting for its end. Times are engine seconds."""

    start: float
    """Time of the boundary before it."""
    text: str = ""
    last_piece: float = 0.0
    """Time of its last piece."""
    complete_at: int = -1
    """Frame that completed its text; -1 while pieces may follow."""
    pieces: int = 0
    probabilities: float = 0.0
    """Sum of its pieces' probabilities."""

    @property
    def confidence(self) -> float:
        """Mean of its pieces' probabilities."""
        return self.probabilities / self.pieces


class Transcript:
    """The events of one stream; feed every frame result once, in order.

    `to_client_seconds` maps seconds of the audio the engine got to seconds of the audio the client sent: a session
    inserts silence at a flush that the client knows nothing of. It must never decrease.
    """

    def __init__(
        self,
        info: ModelInfo,
        pause_head: int = 2,
        pause_threshold: float = 0.6,
        to_client_seconds: Callable[[float], float] = float,
    ) -> None:
        self._vocabulary = vocabulary_of(info.pieces)
        self._delay_frames = info.delay_frames
        self._pause_head = pause_head
        self._pause_threshold = pause_threshold
        self._to_client_seconds = to_client_seconds
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._run: _Run | None = None
        # Time of the last 0 that no later word's end has passed; upstream starts a stream with 0.0.
        self._boundary: float | None = 0.0
        self._word_start_s = 0.0  # Start of the word of the last `WordStart`, client seconds.
        self._words_end_s = 0.0  # End of the last `Word`, client seconds.
        self._frame = 0  # Of the last result.
        self._heard = False  # Text since the last turn end?

    def add(self, result: FrameResult) -> list[Event]:
        """Take the next frame result and return what it brings, in order."""
        events: list[Event] = []
        self._frame = result.frame
        now = self._seconds_of(result.frame)
        if result.token not in (END_OF_PADDING_TOKEN, PADDING_TOKEN):
            self._add_piece(self._vocabulary[result.token], result, now, events)
        else:
            self._complete(result.frame, events)
            if result.token == END_OF_PADDING_TOKEN:
                self._end_word(now, events)
                self._boundary = now
        run = self._run
        if run and run.complete_at >= 0 and result.frame - run.complete_at >= MAX_END_WAIT_FRAMES:
            self._end_word(_unended(run), events)
        if self._turn_ends(result):
            if self._run:
                self._end_word(min(_unended(self._run), now), events)
            self._heard = False
            events.append(TurnEnd(max(0.0, self._to_client_seconds(now))))
        return events

    def finish(self, end_s: float) -> list[Event]:
        """Return what is left at the end or at a flush; `end_s` is the duration of the client's audio in seconds."""
        events: list[Event] = []
        self._complete(self._frame, events)
        if self._run:
            self._end_word(_unended(self._run), events, limit_s=end_s)
        return events

    @property
    def settled_s(self) -> float:
        """No word that is still to come ends before this, in seconds of the client's audio."""
        run, settled = self._run, self._seconds_of(self._frame)
        if run:
            settled = min(settled, run.last_piece if run.complete_at < 0 else _unended(run))
        return max(self._words_end_s, self._to_client_seconds(settled))

    def _seconds_of(self, frame: int) -> float:
        """Upstream's time of step i is (i - delay) / 12.5 s, and frame f is the decoder's step f + 1."""
        return max(0.0, (frame + 1 - self._delay_frames) / FRAMES_PER_SECOND)

    def _add_piece(self, piece: bytes, result: FrameResult, now: float, events: list[Event]) -> None:
        if not piece:
            return
        run, frame = self._run, result.frame
        if run and (run.complete_at >= 0 or self._starts_a_word(piece, run)):
            # Two words with no boundary between them: the second starts where it is first heard of.
            self._complete(frame, events)
            self._end_word(min(_unended(run), now), events)
        if not self._run:
            self._run = _Run(start=now if self._boundary is None else self._boundary)
        self._run.last_piece = now
        self._run.pieces += 1
        self._run.probabilities += result.probability
        self._say(self._utf8.decode(piece), frame, events)

    def _starts_a_word(self, piece: bytes, run: _Run) -> bool:
        """Whether the piece cannot belong to the run's word."""
        has_text = run.text.strip() or self._utf8.getstate()[0]  # Text, or the first bytes of a character.
        return bool(has_text) and (piece.startswith(b" ") or len(run.text) >= MAX_WORD_CHARACTERS)

    def _say(self, text: str, frame: int, events: list[Event]) -> None:
        if text and self._run:
            self._run.text += text
            self._heard = self._heard or not text.isspace()
            events.append(Token(text, frame))

    def _complete(self, frame: int, events: list[Event]) -> None:
        """The run, if there is one, gets no more pieces."""
        run = self._run
        if not run or run.complete_at >= 0:
            return
        self._say(self._utf8.decode(b"", final=True), frame, events)  # Half a character reads U+FFFD.
        if not run.text.strip():
            self._run = None
            return
        run.complete_at = frame
        # Monotonic even where rounding in the caller's map is not.
        self._word_start_s = max(self._words_end_s, self._to_client_seconds(run.start))
        events.append(WordStart(run.text.strip(), self._word_start_s))

    def _end_word(self, end: float, events: list[Event], limit_s: float = math.inf) -> None:
        """Emit the complete word, if one waits, with its end in engine seconds; `limit_s` is in client seconds."""
        run, self._run = self._run, None
        if run:
            self._words_end_s = max(self._word_start_s, min(self._to_client_seconds(end), limit_s))
            self._boundary = None
            events.append(Word(run.text.strip(), self._word_start_s, self._words_end_s, run.confidence))

    def _turn_ends(self, result: FrameResult) -> bool:
        return (
            self._heard
            and (self._run is None or self._run.complete_at >= 0)  # Not in the middle of a word.
            and result.frame >= ERRATIC_FRAMES
            and len(result.pauses) > self._pause_head
            and result.pauses[self._pause_head] > self._pause_threshold
        )


def _unended(run: _Run) -> float:
    """Where a word ends that gets no boundary: after a second, or with its last piece if that is later."""
    return max(run.start + UNENDED_WORD_SECONDS, run.last_piece)


def _bytes_of(piece: str) -> bytes:
    byte = _BYTE_PIECE.fullmatch(piece)
    if byte:
        return bytes.fromhex(byte[1])
    return b"" if piece in _CONTROL_PIECES else piece.replace("▁", " ").encode()


@functools.lru_cache(maxsize=8)
def vocabulary_of(pieces: tuple[str, ...]) -> Vocabulary:
    """One vocabulary for all streams of a model."""
    return Vocabulary(pieces)
