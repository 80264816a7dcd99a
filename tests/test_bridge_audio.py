"""The audio in chunks."""

import numpy as np
import pytest

from serve_app.audio.resampler import Resampler
from serve_app.bridges.audio import decode_chunk
from serve_app.bridges.messages import AudioChunk, UnreadableChunk
from tests.kafka_support import BEGINNING, encode

RATES_HZ = (8_000, 11_025, 16_000, 32_000, 44_100, 48_000)


def tone(rate_hz: int, seconds: float = 1.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def chunk(data: bytes, **changes) -> AudioChunk:
    fields = {"device_id": "d", "recorded_at": BEGINNING, "audio_data": data, "chunk_id": "c"} | changes
    return AudioChunk.model_construct(**{"format": "wav", "sample_rate": None, "duration_seconds": None, **fields})


@pytest.mark.parametrize("rate_hz", RATES_HZ)
@pytest.mark.parametrize("encoding", ["s16", "f32"])
def test_raw_samples_of_any_rate(encoding, rate_hz):
    samples = tone(rate_hz)
    message = chunk(encode(samples, encoding, rate_hz), format=encoding, sample_rate=rate_hz, duration_seconds=1.5)
    sound = decode_chunk(message, 60)
    assert (sound.rate_hz, sound.seconds) == (rate_hz, pytest.approx(1.5, abs=0.001))
    np.testing.assert_allclose(sound.samples, samples, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "rate_hz"), [("wav", rate) for rate in RATES_HZ] + [("mp3", 16_000), ("mp3", 44_100), ("opus", 48_000)]
)
def test_files_of_any_rate(kind, rate_hz):
    sound = decode_chunk(chunk(encode(tone(rate_hz), kind, rate_hz), format=kind, duration_seconds=1.5), 60)
    resampler = Resampler(sound.rate_hz)
    heard = np.concatenate((resampler.push(sound.samples), resampler.finish()))
    assert sound.seconds == pytest.approx(1.5, abs=0.1)
    spectrum = np.abs(np.fft.rfft(heard[4_800:28_800]))
    assert np.argmax(spectrum) == 440
    assert np.abs(heard[4_800:28_800]).max() == pytest.approx(0.5, abs=0.05)


def test_the_header_of_a_file_wins():
    assert decode_chunk(chunk(encode(tone(8_000), "wav", 8_000), sample_rate=16_000), 60).rate_hz == 8_000


@pytest.mark.parametrize("changes", [{}, {"format": "s16", "sample_rate": 8_000}, {"format": "mp3"}])
def test_no_audio_is_no_samples(changes):
    assert len(decode_chunk(chunk(b"", **changes), 60).samples) == 0


def test_a_file_without_samples_is_no_samples():
    empty = encode(tone(8_000), "wav", 8_000)[:78]  # the header alone
    assert len(decode_chunk(chunk(empty), 60).samples) <= 8


RAW = encode(tone(16_000), "s16", 16_000)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (chunk(RAW, format="s16"), "sample_rate: expected a number of Hz with the format s16, got none"),
        (chunk(RAW[:-1], format="s16", sample_rate=16_000), "expected a multiple of 2 bytes, got 47999"),
        (chunk(RAW, format="s16", sample_rate=48_000, duration_seconds=1.5), "is the sample rate right?"),
        (chunk(RAW, format="s16", sample_rate=16_000, duration_seconds=0.1), "expected 1.50 s"),
        (chunk(RAW * 50, format="s16", sample_rate=16_000), "expected at most 60 s of audio, got more"),
        (chunk(encode(tone(8_000, 70), "wav", 8_000)), "expected at most 60 s of audio, got more"),
        (chunk(RAW, format="f32", sample_rate=16_000), "expected finite float32 samples"),
        (chunk(RAW), "expected a WAV"),
        (chunk(encode(tone(8_000), "wav", 8_000), format="s16", sample_rate=8_000), "got a WAV file"),
        (chunk(b"ID3\x03" + bytes(500), format="mp3"), "audio_data: expected"),
    ],
)
def test_audio_that_is_not_what_it_is_said_to_be(message, reason):
    with pytest.raises(UnreadableChunk) as error:
        decode_chunk(message, 60)
    assert reason in str(error.value)
