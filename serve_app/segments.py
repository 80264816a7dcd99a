"""From words to segments, the lines of a transcript or of subtitles: pure, one stream at a time."""

from dataclasses import dataclass

from serve_app.transcript import Event, TurnEnd, Word

GAP_SECONDS = 1.0
"""So long a gap between two words ends a segment."""

MAX_SECONDS = 10.0
"""No segment is longer, or one who never pauses would fill the screen."""


@dataclass(frozen=True)
class Segment:
    """Words that belong together; at least one."""

    words: tuple[Word, ...]

    @property
    def text(self) -> str:
        """The words, with spaces between them."""
        return " ".join(word.text for word in self.words)

    @property
    def start_s(self) -> float:
        """Start in the client's audio, in seconds."""
        return self.words[0].start_s

    @property
    def end_s(self) -> float:
        """End in seconds, never before the start."""
        return self.words[-1].end_s


class Segmenter:
    """Feed it every event of a stream, in order; it looks at words and turn ends."""

    def __init__(self) -> None:
        self._words: list[Word] = []

    def add(self, event: Event) -> Segment | None:
        """Take the next event; the segment that is over with it, if one is."""
        match event:
            case TurnEnd():
                return self.finish()
            case Word():
                over = self.finish() if self._words and self._is_apart(event) else None
                self._words.append(event)
                return over
        return None

    def finish(self) -> Segment | None:
        """The segment that was being collected, if there is one."""
        words, self._words = tuple(self._words), []
        return Segment(words) if words else None

    def _is_apart(self, word: Word) -> bool:
        first, last = self._words[0], self._words[-1]
        return word.start_s - last.end_s >= GAP_SECONDS or word.end_s - first.start_s > MAX_SECONDS
