"""Tells audio files apart by how they begin."""

from dataclasses import dataclass

HEAD_BYTES = 4_096
"""How much of a beginning is enough to recognise everything here (an MP3 without a tag takes three frames)."""


@dataclass(frozen=True)
class Container:
    """A kind of file."""

    name: str
    """What people call it."""
    demuxer: str
    """What FFmpeg calls it."""


WAV = Container("a WAV file", "wav")
FLAC = Container("a FLAC file", "flac")
OGG = Container("an Ogg file", "ogg")
MP3 = Container("an MP3 file", "mp3")
WEBM = Container("a WebM or Matroska file", "matroska")
MP4 = Container("an MP4 or M4A file", "mov")

SUPPORTED = "WAV, FLAC, MP3, Ogg, WebM or M4A"

_MP3_KBITS = {
    3: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    2: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MP3_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
_MP3_FRAMES = 3


def recognise(head: bytes) -> Container | None:
    """What a file that begins with these bytes (up to `HEAD_BYTES` of them) is; None if it is nothing known."""
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return WAV
    if head[4:8] == b"ftyp":
        return MP4
    for magic, container in ((b"fLaC", FLAC), (b"OggS\x00", OGG), (b"\x1aE\xdf\xa3", WEBM)):
        if head.startswith(magic):
            return container
    if head.startswith(b"ID3") and len(head) >= 10 and head[3] in (2, 3, 4) and max(head[6:10]) < 128:
        return MP3
    return MP3 if _is_mp3(head) else None


def _is_mp3(head: bytes) -> bool:
    """Several frames of MPEG layer III in a row: the two bytes that one of them begins with come up in any audio."""
    place = 0
    for _ in range(_MP3_FRAMES):
        size = _mp3_frame_bytes(head[place : place + 4])
        if not size:
            return False
        place += size
    return True


def _mp3_frame_bytes(header: bytes) -> int:
    """Size of the frame that has this header of 4 bytes, 0 if it is none."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0
    version, kbits, rate = header[1] >> 3 & 3, header[2] >> 4, header[2] >> 2 & 3
    if version == 1 or kbits in (0, 15) or rate == 3:
        return 0
    per_frame = 144_000 if version == 3 else 72_000
    bits = _MP3_KBITS[3 if version == 3 else 2][kbits]
    return per_frame * bits // _MP3_RATES_HZ[version][rate] + (header[2] >> 1 & 1)
