"""What the header of a WAV file says about the samples behind it."""

import struct

from serve_app.audio.formats import SAMPLE_RATES_HZ, AudioFormat

_ENCODINGS = {(1, 16): "s16", (3, 32): "f32", (7, 8): "mulaw", (6, 8): "alaw"}


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
