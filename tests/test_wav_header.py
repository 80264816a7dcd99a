"""WAV headers, true and false."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio.wav_header import declared_by_wav, is_length_wrong
from tests.audio_signals import chord, encoded

FILE = encoded(chord(16_000, 0.5), 16_000, "wav", "pcm_s16le")


@pytest.mark.parametrize(
    ("codec", "rate_hz", "channels", "declared"),
    [
        ("pcm_s16le", 16_000, 1, " (?format=s16&sample_rate=16000)"),
        ("pcm_s16le", 48_000, 2, " (?format=s16&sample_rate=48000&channels=2)"),
        ("pcm_f32le", 24_000, 1, " (?format=f32&sample_rate=24000)"),
        ("pcm_mulaw", 8_000, 1, " (?format=mulaw&sample_rate=8000)"),
        ("pcm_alaw", 8_000, 1, " (?format=alaw&sample_rate=8000)"),
        ("pcm_s24le", 24_000, 1, ""),
        ("pcm_s16le", 12_345, 1, ""),
    ],
)
def test_how_to_declare_what_is_in_a_file(codec, rate_hz, channels, declared):
    file = encoded(chord(rate_hz, 0.1), rate_hz, "wav", codec, channels=channels)
    assert declared_by_wav(file[:64]) == declared


def with_length(size: int, behind: bytes = b"") -> io.BytesIO:
    place = FILE.index(b"data") + 4
    return io.BytesIO(FILE[:place] + size.to_bytes(4, "little") + FILE[place + 4 :] + behind)


SIZE = len(FILE) - FILE.index(b"data") - 8


@pytest.mark.parametrize("size", [0, 2, 1_000, SIZE - 20])
def test_too_small_a_length_is_wrong(size):
    assert is_length_wrong(with_length(size))


@pytest.mark.parametrize("size", [SIZE, SIZE + 1, 2**31 - 1, 2**32 - 1])
def test_the_right_length_and_too_large_ones_leave_the_samples_whole(size):
    file = with_length(size)
    assert not is_length_wrong(file)
    assert file.tell() == 0


def test_chunks_behind_the_samples_are_no_samples():
    assert not is_length_wrong(with_length(SIZE, b"LIST\x04\0\0\0INFOid3 \x03\0\0\0abc"))


@given(st.binary(max_size=300), st.booleans())
def test_any_bytes(data, is_almost_wav):
    data = FILE[:50] + data if is_almost_wav else data
    declared_by_wav(data)
    is_length_wrong(io.BytesIO(data))
