"""Which messages of a partition are answered, whatever the order of their answers: pure.

Kafka keeps one position for each partition: everything before it is done. Devices share a partition, and their answers
overtake one another. So what is done beyond the position is told in the text that may be committed with it.
"""

import base64

SCHEME = "done:"
"""What our texts begin with: others may have committed positions of this group, too."""

MOST_AHEAD = 16_384
"""Messages behind the first one without an answer, after which no more are read; their bits make 2.8 KB."""

MOST_TOLD = 22_528
"""Messages behind the position of which a text tells: those that were read at once with the last one are more than
MOST_AHEAD, and compacted topics have holes. Their bits make 3.8 KB; with the topic's mark brokers take 4 KB."""


class Ledger:
    """One partition's."""

    def __init__(self, position: int = 0, text: str = "") -> None:
        """`position` and `text` were committed last; 0 where nothing was."""
        self._committed = position
        self._next = position
        self._pending: dict[int, None] = {}  # in ascending order
        self._done = _offsets(text, position)

    def saw(self, offset: int) -> bool:
        """A message has come; offsets ascend. Whether it is answered already; else it is pending until `done`."""
        self._next = max(self._next, offset + 1)
        if offset < self._committed or offset in self._done:
            return True
        self._pending[offset] = None
        return False

    def done(self, offset: int) -> None:
        """A pending message is answered."""
        del self._pending[offset]
        self._done.add(offset)

    @property
    def pending(self) -> int:
        """Messages without an answer."""
        return len(self._pending)

    @property
    def span(self) -> int:
        """Messages from the first one without an answer on."""
        return self._next - self.position

    @property
    def position(self) -> int:
        """Everything before this is answered."""
        return next(iter(self._pending), self._next)

    def statement(self) -> tuple[int, str]:
        """What to commit: the position, and in a text what is done beyond it."""
        position = self.position
        self._done = {offset for offset in self._done if offset >= position}
        if not self._done:
            return position, ""
        bits = sum(1 << (offset - position) for offset in self._done if offset - position < MOST_TOLD)
        packed = bits.to_bytes((bits.bit_length() + 7) // 8, "little")
        return position, SCHEME + base64.b64encode(packed).decode()


def _offsets(text: str, position: int) -> set[int]:
    """What a text says; nothing where it is none of ours."""
    if not text.startswith(SCHEME):
        return set()
    try:
        bits = int.from_bytes(base64.b64decode(text.removeprefix(SCHEME), validate=True), "little")
    except ValueError:
        return set()
    return {position + place for place in range(bits.bit_length()) if bits >> place & 1}
