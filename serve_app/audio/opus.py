"""Opus in Ogg (RFC 7845), decoded while it comes."""

from collections.abc import Iterator

import av
import numpy as np
from numpy.typing import NDArray

from serve_app.audio.ogg import Page, PageReader
from serve_app.audio.resampler import Resampler
from serve_app.errors import InvalidAudio

OPUS_RATE_HZ = 48_000
"""The rate that Opus always decodes to."""

BLOCK_SECONDS = 1.0
"""Decoded audio that is handed out at once, a packet more or less. Packets of two bytes can stand for 120 ms each, so
8 KiB of them are minutes of audio, which must neither hold up the event loop nor fill the memory."""

MAX_PACKET_BYTES = 65_536
"""Longer than any Opus packet can be."""

MAX_TAGS_BYTES = 1 << 20
"""Longest comment header that is skipped; a picture may be in it."""

_HEAD_PACKET, _TAGS_PACKET = 0, 1


class OpusDecoder:
    """Mono or stereo Ogg/Opus as 24 kHz mono, page by page; chained streams follow one another.

    Keeps to pre-skip and the last page's end. A page that is missing is skipped: a client that comes back after a cut
    may send its header pages again, and then the pages that the server has not seen. A stream that begins in its
    middle, without headers, is refused.
    """

    def __init__(self) -> None:
        self._pages = PageReader()
        self._resampler = Resampler(OPUS_RATE_HZ)
        self._codec: av.AudioCodecContext | None = None
        self._channels = 1
        self._serial = self._number = -1
        self._packets = 0  # complete ones of the current stream
        self._open = b""  # a packet that goes on on the next page
        self._open_bytes = 0
        self._last_granule = 0  # where the page before ended, counted with the pre-skip

    is_raw = False

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[NDArray[np.float32]]:
        """Take bytes; yield the samples of the pages that are complete now, float32 [n] at 24 kHz, as they are decoded.

        Raises InvalidAudio for damaged pages and packets, and for anything but mono or stereo Opus.
        """
        parts: list[NDArray[np.float32]] = []
        waiting = 0
        for page in self._pages.feed(data):
            for samples in self._decode(page):
                parts.append(samples)
                waiting += len(samples)
                if waiting >= BLOCK_SECONDS * OPUS_RATE_HZ:
                    yield self._resampler.push(np.concatenate(parts))
                    parts, waiting = [], 0
        yield self._resampler.push(np.concatenate([np.zeros(0, dtype=np.float32), *parts]))

    def finish(self) -> NDArray[np.float32]:
        """Say that no more bytes come; the rest, float32 [n] at 24 kHz. Raises InvalidAudio if a page is incomplete."""
        if waiting := self._pages.waiting_bytes:
            raise InvalidAudio(f"expected whole Ogg pages, got {waiting} bytes of one that is not complete")
        return self._resampler.finish()

    def _decode(self, page: Page) -> Iterator[NDArray[np.float32]]:
        """The samples of the page's packets, float32 [n] at 48 kHz, mono, each."""
        if page.is_first:
            self._begin(page)
        elif self._codec is None:
            raise InvalidAudio("expected an Ogg/Opus stream from its beginning (an OpusHead page), got a later page")
        elif page.serial != self._serial:
            raise InvalidAudio(f"expected one Opus stream, got pages of another one (serial number {page.serial})")
        # The last page says where the audio ends, which may be before its last packet does.
        left = max(0, page.granule - self._last_granule) if page.is_last and page.granule >= 0 else None
        if page.granule > 0:
            self._last_granule = page.granule
        for packet in self._whole_packets(page):
            samples = self._decode_packet(packet)[:left]
            if left is not None:
                left -= len(samples)
            yield samples

    def _begin(self, page: Page) -> None:
        head = page.segments[0] if page.segments else b""
        if not head.startswith(b"OpusHead") or len(head) < 19:
            raise InvalidAudio(f"expected Opus in Ogg (an OpusHead packet), got a stream that begins with {head[:8]!r}")
        version, channels = head[8], head[9]
        if version > 15 or channels not in (1, 2):
            raise InvalidAudio(f"expected mono or stereo Opus, version 1, got {channels} channels, version {version}")
        codec = av.CodecContext.create("opus", "r")
        if not isinstance(codec, av.AudioCodecContext):
            raise TypeError(f"expected an audio decoder, got {type(codec)}")
        codec.thread_count = 1
        codec.extradata = head
        codec.sample_rate = OPUS_RATE_HZ
        codec.layout = "mono" if channels == 1 else "stereo"
        self._codec, self._channels = codec, channels
        self._serial, self._number = page.serial, page.number - 1
        self._packets = self._open_bytes = 0
        self._open = b""
        self._last_granule = int.from_bytes(head[10:12], "little")  # the pre-skip, which the codec leaves out

    def _whole_packets(self, page: Page) -> list[bytes]:
        """The audio packets that end on this page; a packet of which a part is missing is left out."""
        segments = list(page.segments)
        is_next = page.number == (self._number + 1) & 0xFFFFFFFF
        self._number = page.number
        if not is_next or not page.is_continued:
            self._open, self._open_bytes = b"", 0
        if page.is_continued and segments and not self._open_bytes:
            segments = segments[1:]  # the rest of a packet whose beginning nobody has seen
        audio = []
        for place, segment in enumerate(segments):
            self._open_bytes += len(segment)
            is_tags = self._packets == _TAGS_PACKET
            if self._open_bytes > (MAX_TAGS_BYTES if is_tags else MAX_PACKET_BYTES):
                raise InvalidAudio(f"expected Opus packets of reasonable size, got one of {self._open_bytes} bytes")
            self._open = b"" if is_tags else self._open + segment
            if page.is_open and place == len(segments) - 1:
                break
            if self._packets not in (_HEAD_PACKET, _TAGS_PACKET):
                audio.append(self._open)
            self._packets += 1
            self._open, self._open_bytes = b"", 0
        return audio

    def _decode_packet(self, packet: bytes) -> NDArray[np.float32]:
        """A packet's samples, float32 [n] at 48 kHz, mono."""
        if not packet:  # which would tell the codec that the stream is over
            raise InvalidAudio("expected an Opus packet, got an empty one")
        assert self._codec is not None
        try:
            frames = self._codec.decode(av.Packet(packet))
        except (av.FFmpegError, ValueError) as error:
            raise InvalidAudio(f"expected an Opus packet, got {len(packet)} bytes that do not decode") from error
        planes = [np.asarray(frame.to_ndarray(), dtype=np.float32) for frame in frames]
        parts = [plane[0] if self._channels == 1 else plane.mean(axis=0) for plane in planes]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)
