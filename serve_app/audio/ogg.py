"""Ogg pages (RFC 3533) out of bytes that come in pieces of any size."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from serve_app.errors import InvalidAudio

CAPTURE_PATTERN = b"OggS"
PAGE_START = CAPTURE_PATTERN + b"\x00"
"""How every Ogg page begins: capture pattern, version 0."""

_HEADER_BYTES = 27
_CONTINUED, _FIRST, _LAST = 1, 2, 4
_FULL_SEGMENT = 255

_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True)
class Page:
    """One page whose checksum is right."""

    is_continued: bool
    """The first segment goes on with a packet of the page before."""
    is_first: bool
    is_last: bool
    granule: int
    """Where the page ends, in the codec's own units; -1 if no packet ends on it."""
    serial: int
    number: int
    segments: tuple[bytes, ...]
    """The packets on the page, or parts of them."""
    is_open: bool
    """The last segment goes on on the next page."""


class PageReader:
    """Holds less than one page (65,307 bytes)."""

    def __init__(self) -> None:
        self._rest = b""
        self._taken = 0

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Page]:
        """Yield the pages that are complete now.

        Raises InvalidAudio, naming the byte, where no page begins that should or a checksum is wrong. What comes after
        that is not looked at: over a connection that loses nothing, damage means that the sender is wrong.
        """
        self._rest += data
        start = 0
        try:
            while (size := self._size(start)) and start + size <= len(self._rest):
                page = self._rest[start : start + size]
                start += size
                yield self._parse(page, self._taken + start - size)
        finally:
            self._rest = self._rest[start:]
            self._taken += start

    @property
    def waiting_bytes(self) -> int:
        """Bytes of a page that is not complete."""
        return len(self._rest)

    def _size(self, start: int) -> int:
        """Size of the page that begins here, 0 where that is not known yet."""
        head = self._rest[start : start + _HEADER_BYTES]
        if head[:5] != PAGE_START[: len(head)]:
            raise InvalidAudio(
                f'expected an Ogg page ("OggS", version 0) at byte {self._taken + start}, got {head[:5].hex(" ")}'
            )
        if len(head) < _HEADER_BYTES:
            return 0
        lacing = self._rest[start + _HEADER_BYTES : start + _HEADER_BYTES + head[26]]
        return _HEADER_BYTES + head[26] + sum(lacing) if len(lacing) == head[26] else 0

    @staticmethod
    def _parse(page: bytes, place: int) -> Page:
        expected = int.from_bytes(page[22:26], "little")
        if checksum(page[:22] + bytes(4) + page[26:]) != expected:
            raise InvalidAudio(f"expected an undamaged Ogg page at byte {place}, got one with a wrong checksum")
        lacing = page[_HEADER_BYTES : _HEADER_BYTES + page[26]]
        segments, start, end = [], _HEADER_BYTES + len(lacing), _HEADER_BYTES + len(lacing)
        for length in lacing:
            end += length
            if length < _FULL_SEGMENT:
                segments.append(page[start:end])
                start = end
        is_open = bool(lacing) and lacing[-1] == _FULL_SEGMENT
        if is_open:
            segments.append(page[start:end])
        return Page(
            is_continued=bool(page[5] & _CONTINUED),
            is_first=bool(page[5] & _FIRST),
            is_last=bool(page[5] & _LAST),
            granule=int.from_bytes(page[6:14], "little", signed=True),
            serial=int.from_bytes(page[14:18], "little"),
            number=int.from_bytes(page[18:22], "little"),
            segments=tuple(segments),
            is_open=is_open,
        )


def checksum(page: bytes) -> int:
    """Ogg's CRC of a page whose checksum field is zero.

    It is zlib's polynomial with the bits the other way round and without its inversions, so zlib can compute it.
    """
    mirrored = zlib.crc32(page.translate(_MIRRORED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{mirrored:032b}"[::-1], 2)
