"""What the header of a WAV file says about the samples behind it, and whether that is true."""

import io
import struct
from typing import BinaryIO

from serve_app.audio.formats import SAMPLE_RATES_HZ, AudioFormat

_ENCODINGS = {(1, 16): "s16", (3, 32): "f32", (7, 8): "mulaw", (6, 8): "alaw"}
_MAX_CHUNKS = 1_000


def declared_by_wav(head: bytes) -> str:
    """How to declare the samples of the file that begins with `head`, in brackets; empty if they cannot be sent."""
    place = head.find(b"fmt ", 12, 512)
    if place < 0 or len(head) < place + 24:
        return ""
    kind, channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", head, place + 8)
    encoding = _ENCODINGS.get((kind, bits))
    if not encoding or rate_hz not in SAMPLE_RATES_HZ or channels not in (1, 2):
        return ""
    return f" ({AudioFormat(encoding, rate_hz, channels).query})"


def is_length_wrong(file: BinaryIO) -> bool:
    """The header gives fewer bytes of samples than there are: it was written before them, and never corrected.

    True if what follows the samples is not a chain of chunks up to the end of the file. The file is left at its start.
    """
    end = file.seek(0, io.SEEK_END)
    place, is_behind_samples = 12, False
    try:
        for _ in range(_MAX_CHUNKS):
            file.seek(place)
            head = file.read(8)
            if len(head) < 8:
                return False
            name, size = head[:4], int.from_bytes(head[4:], "little")
            is_chunk = all(0x20 <= byte < 0x7F for byte in name) and place + 8 + size <= end
            if is_behind_samples and not is_chunk:
                return True
            is_behind_samples = is_behind_samples or name == b"data"
            place += 8 + size + size % 2  # chunks begin at even places
        return False
    finally:
        file.seek(0)
