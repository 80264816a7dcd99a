"""One session of one device: pieces of audio in, one answer for each out. Pure: no task, no clock, no network.

The audio is sent to the service as one stream. What the service says of it has times in that stream, and each word
belongs to the piece in which it ends. A piece is answered once the service has said that no more words end in it.

The stream may have to begin again, on another connection or in another process: then the latest pieces that are
answered are heard again, for what they tell about the next ones, and what is said in them is known.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from serve_app.audio.resampler import Resampler
from serve_app.bridges.audio import Sound
from serve_app.bridges.order import Piece

RESOLUTION_S = 0.001
"""The service rounds times to this."""


@dataclass(frozen=True)
class HeardWord:
    """A word and its place, in seconds from the beginning of its piece; it may have begun before that."""

    text: str
    start_s: float
    end_s: float
    confidence: float | None


@dataclass(frozen=True)
class Answer:
    """What was said in a piece."""

    piece: Piece
    words: tuple[HeardWord, ...]


@dataclass(eq=False)
class _Kept:
    """A piece that a stream which begins again has to hear."""

    piece: Piece
    answered: bool


@dataclass
class _Place:
    """A piece in the stream."""

    kept: _Kept
    start_s: float
    end_s: float
    words: list[HeardWord]


class DeviceSession:
    """See the module's docstring."""

    def __init__(self, history_seconds: float) -> None:
        """So much audio before the first piece without an answer is kept."""
        self._history_seconds = history_seconds
        self._pieces: deque[_Kept] = deque()
        self._ended = False
        self.restart()

    def restart(self, *, alone: bool = False) -> None:
        """A new stream: everything that is kept has to be sent to it; `alone`: the first piece without an answer."""
        self._alone = alone
        self._to_send = deque([kept for kept in self._pieces if not kept.answered][:1] if alone else self._pieces)
        self._sent_s = 0.0
        self._end_is_sent = False
        self._places: deque[_Place] = deque()
        self._resampler: Resampler | None = None
        self._rate_hz = 0

    # ------------------------------------------------------------------ from the device

    def add(self, piece: Piece) -> None:
        """The next piece."""
        kept = _Kept(piece, piece.answered)
        self._pieces.append(kept)
        if not self._alone:
            self._to_send.append(kept)
        self._forget()

    def add_before(self, piece: Piece) -> None:
        """One that was spoken before all others. A stream that goes on does not hear it; the next one does."""
        self._pieces.appendleft(_Kept(piece, piece.answered))

    def end(self) -> None:
        """No more pieces come."""
        self._ended = True

    # ------------------------------------------------------------------ to the service

    @property
    def is_waiting(self) -> bool:
        """Whether there are pieces without an answer."""
        return any(not kept.answered for kept in self._pieces)

    @property
    def is_behind(self) -> bool:
        """Whether pieces without an answer have not even been sent: it is not the device that is waited for."""
        return self.is_waiting and (self._alone or bool(self._to_send))

    @property
    def is_over(self) -> bool:
        """Whether everything has come and is answered."""
        return self._ended and not self.is_waiting

    def next_audio(self) -> NDArray[np.float32] | None:
        """The audio of the next piece to send, float32 [n] at 24 kHz; None if it has not come yet."""
        if not self._to_send:
            return None
        kept = self._to_send.popleft()
        start_s, self._sent_s = self._sent_s, self._sent_s + kept.piece.sound.seconds
        self._places.append(_Place(kept, start_s, self._sent_s, []))
        return self._resampled(kept.piece.sound)

    def last_audio(self) -> NDArray[np.float32] | None:
        """What is left to send before the stream's end, if that is due; float32 [n] at 24 kHz."""
        if not (self._ended or self._alone) or self._end_is_sent or self._to_send:
            return None
        self._end_is_sent = True
        return self._resampler.finish() if self._resampler else np.zeros(0, np.float32)

    def _resampled(self, sound: Sound) -> NDArray[np.float32]:
        """Pieces of one rate are resampled as one stream; where it changes, one ends and another one begins."""
        rest: NDArray[np.float32] = np.zeros(0, np.float32)
        if self._resampler is None or self._rate_hz != sound.rate_hz:
            rest = self._resampler.finish() if self._resampler else rest
            self._resampler, self._rate_hz = Resampler(sound.rate_hz), sound.rate_hz
        return np.concatenate((rest, self._resampler.push(sound.samples)))

    # ------------------------------------------------------------------ from the service

    def hear(self, text: str, start_s: float, end_s: float, confidence: float | None) -> None:
        """A word, with its times in the stream.

        One that ends where an answer was given already, which the service rules out, would go to the next piece: better
        there than nowhere.
        """
        for place in self._places:
            if end_s <= place.end_s or place is self._places[-1]:
                times = start_s - place.start_s, end_s - place.start_s
                place.words.append(HeardWord(text, *times, confidence))
                return

    def settle(self, until_s: float) -> Iterator[Answer]:
        """No word that follows ends before this, in seconds of the stream: the answers that are complete now."""
        while self._places and self._places[0].end_s <= until_s - RESOLUTION_S:
            yield from self._answer(self._places.popleft())

    def finish(self) -> Iterator[Answer]:
        """The service has said everything: the rest of the answers."""
        while self._places:
            yield from self._answer(self._places.popleft())

    def refuse(self) -> Piece | None:
        """Take the first piece without an answer out: the service fails on it."""
        kept = next((kept for kept in self._pieces if not kept.answered), None)
        if kept is None:
            return None
        self._pieces.remove(kept)
        self.restart()
        return kept.piece

    def _answer(self, place: _Place) -> Iterator[Answer]:
        if not place.kept.answered:
            place.kept.answered = True
            self._forget()
            yield Answer(place.kept.piece, tuple(place.words))

    def _forget(self) -> None:
        """Keep no more answered pieces than history asks for."""
        answered = list(takewhile(lambda kept: kept.answered, self._pieces))
        history_s = sum(kept.piece.sound.seconds for kept in answered)
        for kept in answered:
            history_s -= kept.piece.sound.seconds
            if history_s < self._history_seconds:
                return
            self._pieces.popleft()
            if self._to_send and self._to_send[0] is kept:
                self._to_send.popleft()
