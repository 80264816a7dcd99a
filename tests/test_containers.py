"""Telling files apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio.containers import FLAC, HEAD_BYTES, MP3, MP4, OGG, WAV, WEBM, recognise
from serve_app.audio.files import read_audio
from serve_app.audio.formats import SAMPLE_BYTES, AudioFormat
from tests.audio_signals import chord, encoded, raw
from tests.support import SAMPLES, manifest

FILES = {
    ("wav", "pcm_s16le"): WAV,
    ("flac", "flac"): FLAC,
    ("ogg", "libopus"): OGG,
    ("mp3", "libmp3lame"): MP3,
    ("webm", "libopus"): WEBM,
    ("matroska", "pcm_s16le"): WEBM,
    ("ipod", "aac"): MP4,
    ("mp4", "aac"): MP4,
}


@pytest.mark.parametrize(("kind", "container"), FILES.items())
def test_files_of_every_kind(kind, container):
    assert recognise(encoded(chord(48_000, 0.5), 48_000, *kind)[:HEAD_BYTES]) is container


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("kbits", [32_000, 64_000])
def test_mp3_without_a_tag(rate_hz, kbits):
    file = encoded(chord(rate_hz, 1.0), rate_hz, "mp3", "libmp3lame", b=str(kbits))
    audio = file[10 + int.from_bytes(file[6:10], "big") :]  # the tag is shorter than 128 bytes
    assert audio[0] == 0xFF
    assert recognise(audio[:HEAD_BYTES]) is MP3


@pytest.mark.parametrize("entry", manifest(), ids=lambda entry: entry["file"])
def test_speech_is_no_file(entry):
    samples = read_audio(SAMPLES / entry["file"])[: 24_000 * 10]
    for encoding in SAMPLE_BYTES:
        data = raw(samples, AudioFormat(encoding))
        starts = range(0, len(data) - HEAD_BYTES, len(data) // 200)
        assert [recognise(data[start : start + HEAD_BYTES]) for start in starts] == [None] * len(starts)


def test_silence_and_noise_are_no_files():
    noise = np.random.default_rng(0).bytes(1 << 20)
    assert {recognise(noise[start : start + HEAD_BYTES]) for start in range(0, len(noise), 97)} == {None}
    for byte in range(256):
        assert recognise(bytes([byte]) * HEAD_BYTES) is None


@given(st.binary(max_size=100), st.sampled_from([b"", b"RIFF", b"ID3", b"\xff\xfb", b"fLaC", b"OggS"]))
def test_any_bytes(data, start):
    recognise(start + data)
