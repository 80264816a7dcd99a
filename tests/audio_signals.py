"""Signals for tests of the audio layer, and how clients would encode them."""

import io

import av
import numpy as np
import soxr
from numpy.typing import NDArray

from serve_app.audio.formats import AudioFormat
from serve_app.audio.ogg import checksum
from serve_app.speech import SAMPLE_RATE_HZ

SECONDS = 2.0


def chord(rate_hz: int, seconds: float = SECONDS, gain: float = 0.25) -> NDArray[np.float32]:
    """Tones that every sample rate can carry, faded in and out so that the ends ring nowhere: float32 [n]."""
    times = np.arange(round(rate_hz * seconds)) / rate_hz
    tones = sum(np.sin(2 * np.pi * hertz * times) for hertz in (220, 1_000, 2_750)) / 1.5
    fade = np.minimum(1, np.minimum(times, times[::-1]) / 0.1)
    return (gain * tones * fade).astype(np.float32)


def at_24_khz(samples: NDArray[np.float32], rate_hz: int) -> NDArray[np.float32]:
    return samples if rate_hz == SAMPLE_RATE_HZ else soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ)


def snr_db(samples: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """How much louder the expected signal is than the difference; lengths may differ by a few samples."""
    assert abs(len(samples) - len(expected)) <= 4, (len(samples), len(expected))
    n = min(len(samples), len(expected))
    error = np.square(samples[:n].astype(np.float64) - expected[:n]).mean()
    return 10 * float(np.log10(np.square(expected[:n].astype(np.float64)).mean() / max(error, 1e-20)))


def raw(samples: NDArray[np.float32], audio_format: AudioFormat) -> bytes:
    """Samples at the format's rate as a client sends them; with two channels, all of it is on one and noise cancels."""
    if audio_format.channels == 2:
        difference = np.float32(0.1) * np.sin(np.arange(len(samples), dtype=np.float32))
        samples = np.stack([samples + difference, samples - difference], axis=1).reshape(-1)
    if audio_format.encoding == "f32":
        return samples.astype("<f4").tobytes()
    integers = np.clip(np.round(samples * 32_768), -32_768, 32_767).astype("<i2")
    return integers.tobytes() if audio_format.encoding == "s16" else _g711(integers, audio_format.encoding)


def _g711(integers: NDArray[np.int16], encoding: str) -> bytes:
    codec = av.CodecContext.create(f"pcm_{encoding}", "w")
    codec.sample_rate, codec.layout, codec.format = 8_000, "mono", "s16"
    frame = av.AudioFrame.from_ndarray(integers[None], format="s16", layout="mono")
    frame.rate = 8_000
    return b"".join(bytes(packet) for packet in codec.encode(frame))


def encoded(
    samples: NDArray[np.float32], rate_hz: int, container: str, codec: str, *, channels: int = 1, **options: str
) -> bytes:
    """A file of the samples, all channels the same, made by FFmpeg."""
    file = io.BytesIO()
    layout = "mono" if channels == 1 else "stereo"
    of_container = {name: options.pop(name) for name in ("page_duration", "movflags") if name in options}
    with av.open(file, "w", format=container, options=of_container) as output:
        stream = output.add_stream(codec, rate=rate_hz, layout=layout, options=options)
        step = stream.codec_context.frame_size or 4_096
        resampler = av.AudioResampler(stream.codec_context.format or "flt", layout, rate_hz, frame_size=step)
        # A second at a time: FFmpeg is asked for hours as well.
        for start in range(0, len(samples), rate_hz):
            part = np.repeat(samples[start : start + rate_hz], channels)[None]
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part), format="flt", layout=layout)
            frame.rate, frame.pts = rate_hz, start
            for piece in resampler.resample(frame):
                output.mux(stream.encode(piece))
        for piece in resampler.resample(None):
            output.mux(stream.encode(piece))
        output.mux(stream.encode(None))
    return file.getvalue()


def ogg_page(packets: list[bytes], *, flags: int = 0, granule: int = 0, serial: int = 1, number: int = 0) -> bytes:
    """One page with these packets, whatever they are; its checksum is right."""
    lacing = b"".join(b"\xff" * (len(packet) // 255) + bytes([len(packet) % 255]) for packet in packets)
    head = b"OggS\x00" + bytes([flags]) + granule.to_bytes(8, "little", signed=True) + serial.to_bytes(4, "little")
    page = head + number.to_bytes(4, "little") + bytes(4) + bytes([len(lacing)]) + lacing + b"".join(packets)
    return page[:22] + checksum(page).to_bytes(4, "little") + page[26:]


def open_page(packet_part: bytes, number: int) -> bytes:
    """A page from the middle of a packet that goes on; the part must be a multiple of 255 bytes."""
    lacing = b"\xff" * (len(packet_part) // 255)
    page = ogg_page([], flags=number > 1, number=number)[:26] + bytes([len(lacing)]) + lacing + packet_part
    page = page[:22] + bytes(4) + page[26:]
    return page[:22] + checksum(page).to_bytes(4, "little") + page[26:]


def opus_head(channels: int = 1, pre_skip: int = 312, version: int = 1) -> bytes:
    return (
        b"OpusHead"
        + bytes([version, channels])
        + pre_skip.to_bytes(2, "little")
        + (48_000).to_bytes(4, "little")
        + bytes(3)
    )


def opus_headers(**head: int) -> bytes:
    return ogg_page([opus_head(**head)], flags=2) + ogg_page([b"OpusTags" + bytes(8)], number=1)


def opus_bomb(seconds: int) -> bytes:
    """So much silence in packets of two bytes for 120 ms each: 26 bytes for a second."""
    packets, numbers = [b"\xfb\x06"] * 125, range(2, 2 + seconds // 15)
    return opus_headers() + b"".join(ogg_page(packets, number=number) for number in numbers)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]
