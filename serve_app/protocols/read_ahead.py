"""How much is read of clients that have no slot yet: enough for all of them to be heard, much while engines start."""

OWN_BYTES = 2**20
"""What every connection may have read ahead, a message more or less: 10 s of float32 samples."""

MOST_BYTES = 12 * 2**20
"""What one connection may have read ahead if the memory for all allows it: two minutes of float32 samples."""

SHARED_BYTES = 512 * 2**20
"""Memory, of an ingress replica, for what is beyond the connections' own."""


MESSAGE_BYTES = 256
"""What a message takes beside its content, so that many small ones are bounded, too."""


class ReadAhead:
    """The memory that the connections of an ingress replica share."""

    def __init__(self, free: int = SHARED_BYTES) -> None:
        self._free = free

    def open(self) -> "ReadAheadOfOne":
        """For one connection; close it when what was read is on its way to a slot, or the connection is over."""
        return ReadAheadOfOne(self)

    def lend(self, size: int) -> None:
        """Take from the memory, or with a negative size give back; may overdraw it by a message per connection."""
        self._free -= size

    @property
    def has_room(self) -> bool:
        """Whether there is some left."""
        return self._free > 0


class ReadAheadOfOne:
    """What one connection has read ahead."""

    def __init__(self, shared: ReadAhead) -> None:
        self._shared = shared
        self._read = 0
        self._lent = 0

    def add(self, size: int) -> None:
        """A message with a content of so many bytes was read."""
        self._read += size + MESSAGE_BYTES
        lend = max(0, self._read - OWN_BYTES) - self._lent
        self._shared.lend(lend)
        self._lent += lend

    @property
    def has_room(self) -> bool:
        """Whether another message may be read."""
        return self._read < OWN_BYTES or (self._read < MOST_BYTES and self._shared.has_room)

    def close(self) -> None:
        """Give back what was lent."""
        self._shared.lend(-self._lent)
        self._lent = 0
