"""Whole files, good and bad, decoded piece by piece."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve_app.audio.upload import BLOCK_SAMPLES, decode_upload
from serve_app.errors import AudioTooLong, InvalidAudio
from tests.audio_signals import chord, encoded, snr_db
from tests.support import SAMPLES

LOSSLESS, LOSSY = 50, 20


def decoded(file: bytes, max_seconds: float = 60) -> NDArray[np.float32]:
    return np.concatenate(list(decode_upload(file, max_seconds)))


@pytest.mark.parametrize(
    ("container", "codec", "rates_hz", "least_db"),
    [
        ("wav", "pcm_s16le", (8_000, 16_000, 22_050, 44_100), LOSSLESS),
        ("wav", "pcm_s24le", (48_000,), LOSSLESS),
        ("wav", "pcm_f32le", (24_000,), LOSSLESS),
        ("wav", "pcm_u8", (24_000,), 25),
        ("wav", "pcm_mulaw", (8_000,), 25),
        ("wav", "pcm_alaw", (8_000,), 25),
        ("flac", "flac", (8_000, 16_000, 44_100, 96_000), LOSSLESS),
        ("mp3", "libmp3lame", (16_000, 44_100), LOSSY),
        ("ogg", "libopus", (48_000,), LOSSY),
        ("ogg", "flac", (44_100,), LOSSLESS),
        ("webm", "libopus", (48_000,), LOSSY),
        ("matroska", "pcm_s16le", (48_000,), LOSSLESS),
        ("ipod", "aac", (44_100,), LOSSY),
        ("mp4", "aac", (48_000,), LOSSY),
    ],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_carries_the_signal(container, codec, rates_hz, least_db, channels):
    for rate_hz in rates_hz:
        file = encoded(chord(rate_hz), rate_hz, container, codec, channels=channels)
        samples = decoded(file)
        assert 48_000 - 4 <= len(samples) <= 48_000 + 600  # AAC's last frame is not cut
        assert snr_db(samples[:48_000], chord(24_000)) > least_db


def test_fragmented_m4a_as_browsers_record_it():
    file = encoded(chord(48_000), 48_000, "mp4", "aac", movflags="frag_keyframe+empty_moov")
    samples = decoded(file)[512:]  # such a file does not say how much its encoder has put in front
    assert snr_db(samples[:48_000], chord(24_000)) > LOSSY


def test_blocks_are_a_second_and_the_last_one_the_rest():
    blocks = list(decode_upload(encoded(chord(44_100, 3.5), 44_100, "flac", "flac"), 60))
    assert [len(block) for block in blocks] == [BLOCK_SAMPLES] * 3 + [BLOCK_SAMPLES // 2]
    assert {block.dtype for block in blocks} == {np.dtype(np.float32)}


@pytest.mark.parametrize("name", ["hello-en.wav", "stop-en.flac", "thanks-en.mp3", "oui-fr.vorbis.ogg"])
def test_file_objects_and_bytes_are_the_same(name):
    with (SAMPLES / name).open("rb") as file:
        np.testing.assert_array_equal(
            np.concatenate(list(decode_upload(file, 60))), decoded((SAMPLES / name).read_bytes())
        )


# ---------------------------------------------------------------------- limits


@pytest.mark.parametrize(("container", "codec"), [("wav", "pcm_s16le"), ("ogg", "flac"), ("mp3", "libmp3lame")])
def test_the_limit_is_named_as_soon_as_it_is_passed(container, codec):
    file = encoded(chord(24_000, 10.0), 24_000, container, codec)
    taken = 0
    with pytest.raises(AudioTooLong, match=r"^expected at most 4.5 s of audio, got more$"):
        for block in decode_upload(file, 4.5):
            taken += len(block)
    assert taken == 4 * 24_000
    assert len(decoded(file, 10.1)) >= 240_000


@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("ipod", "aac"), ("mp4", "aac")])
def test_where_the_header_tells_the_limit_is_passed_before_anything_is_decoded(container, codec):
    file = encoded(chord(24_000, 10.0), 24_000, container, codec)
    with pytest.raises(AudioTooLong, match=r"^expected at most 4.5 s of audio, got 10 s$"):
        next(decode_upload(file, 4.5))
    assert len(decoded(file, 10.1)) >= 240_000


@pytest.mark.parametrize(("container", "codec"), [("wav", "pcm_s16le"), ("flac", "flac")])
def test_exactly_the_limit_is_no_more_than_it(container, codec):
    assert len(decoded(encoded(chord(24_000, 2.0), 24_000, container, codec), 2.0)) == 48_000


@pytest.fixture(scope="module")
def hours_of_silence() -> bytes:
    """Three hours in a small file, whose header does not tell."""
    file = bytearray(encoded(np.zeros(8_000 * 3_600 * 3, np.float32), 8_000, "flac", "flac"))
    assert len(file) < 2_100_000  # 207 MB as 16-bit PCM
    file[21] &= 0xF0
    file[22:26] = bytes(4)  # the number of samples, of 36 bits
    return bytes(file)


def test_hours_of_silence_in_a_tiny_file_are_stopped_at_the_limit(hours_of_silence):
    taken = 0
    tracemalloc.start()
    try:
        with pytest.raises(AudioTooLong, match="expected at most 600 s"):
            for block in decode_upload(hours_of_silence, 600):
                taken += len(block)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 599 * 24_000 <= taken <= 600 * 24_000
    assert peak < 20_000_000  # an hour of samples has 345 MB


# ---------------------------------------------------------------------- bad files


def wav(data: bytes, *, size: int | None = None, rate_hz: int = 24_000, channels: int = 1, bits: int = 16) -> bytes:
    """A WAV file that may lie."""
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, channels, rate_hz, rate_hz * 2, 2, bits)
    size = len(data) if size is None else size
    return (
        b"RIFF" + struct.pack("<I", 36 + size & 0xFFFFFFFF) + b"WAVE" + head + struct.pack("<4sI", b"data", size) + data
    )


SAMPLES_S16 = (chord(24_000) * 32_767).astype("<i2").tobytes()


@pytest.mark.parametrize("size", [0, 1, 2_000, 95_000, 96_001, 2**31 - 1, 2**32 - 1])
def test_a_wav_file_that_lies_about_its_length_gives_what_is_there(size):
    samples = decoded(wav(SAMPLES_S16, size=size))
    assert snr_db(samples, chord(24_000)) > LOSSLESS


def test_what_follows_the_samples_of_a_wav_file_is_not_played():
    assert len(decoded(wav(SAMPLES_S16) + b"LIST\xf0\x0f\0\0" + bytes(4_080), max_seconds=9)) == 48_000


@pytest.mark.parametrize(
    "lie",
    [{"rate_hz": 0}, {"rate_hz": 2**31 - 1}, {"rate_hz": 999}, {"channels": 0}, {"channels": 65_535}, {"bits": 0}],
)
def test_other_lies_of_wav_files_get_a_typed_error_or_audio(lie):
    try:
        samples = decoded(wav(SAMPLES_S16, **lie))
    except InvalidAudio:
        return
    assert np.isfinite(samples).all()


def test_half_an_mp3_gives_half_the_audio():
    file = (SAMPLES / "thanks-en.mp3").read_bytes()
    whole, half = decoded(file), decoded(file[: len(file) // 2])
    assert abs(len(half) / len(whole) - 0.5) < 0.05
    same = len(half) - 4_800
    assert snr_db(half[:same], whole[:same]) > 40


def test_an_mp3_from_its_middle_gives_the_rest():
    file = encoded(chord(24_000, 4.0), 24_000, "mp3", "libmp3lame")
    second = file.find(b"\xff\xf3", len(file) // 2)
    assert 1.5 < len(decoded(file[second:])) / 24_000 < 2.5


@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("ogg", "libopus"), ("webm", "libopus")])
def test_half_of_other_files_gives_about_half_the_audio(container, codec):
    file = encoded(chord(48_000, 4.0), 48_000, container, codec)
    assert 0.9 < len(decoded(file[: len(file) // 2])) / 24_000 < 2.8


def test_half_an_m4a_whose_index_is_missing():
    file = encoded(chord(48_000), 48_000, "ipod", "aac")
    with pytest.raises(
        InvalidAudio, match=r"^expected a WAV, FLAC, MP3, Ogg, WebM or M4A file, got an MP4 or M4A file"
    ):
        decoded(file[: len(file) // 2])


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "expected an audio file, got an empty one"),
        (b"just some text\n" * 100, "expected a WAV, FLAC, .* file, got one that begins with b'just some text"),
        (b"PK\x03\x04" + bytes(1_000), "begins with b'PK"),
        (b"#EXTM3U\nfile:///etc/passwd\n", "begins with b'#EXTM3U"),
        (b"\x1aE\xdf\xa3" + bytes(500), "a WebM or Matroska file that does not decode"),
        (b"fLaC" + bytes(500), "a FLAC file"),
        (b"RIFF\x24\0\0\0WAVE", "a WAV file"),
        (wav(b""), "a WAV file without a single sample"),
        (wav(b"\0"), "a WAV file without a single sample"),
        (b"ID3\x04\0\0\0\0\0\0" + bytes(3_000), "an MP3 file"),
        (b"\0\0\0\x18ftypM4A " + bytes(100), "an MP4 or M4A file"),
    ],
)
def test_what_is_no_audio_file(file, message):
    with pytest.raises(InvalidAudio, match=message):
        decoded(file)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_samples_that_are_no_audio(value):
    samples = chord(24_000, 0.5)
    samples[5_000] = value
    head = encoded(samples, 24_000, "wav", "pcm_f32le")
    with pytest.raises(InvalidAudio, match="expected finite samples"):
        decoded(head)


FILES = [
    encoded(chord(48_000, 0.5), 48_000, container, codec)
    for container, codec in [
        ("wav", "pcm_s16le"), ("flac", "flac"), ("mp3", "libmp3lame"), ("ogg", "libopus"), ("webm", "libopus"),
        ("ipod", "aac"),
    ]
]  # fmt: skip


@settings(deadline=None)
@given(
    st.sampled_from(FILES),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=20),
    st.floats(0, 1),
    st.booleans(),
)
def test_any_damage_is_audio_or_a_typed_error(file, changes, end, in_header):
    damaged = bytearray(file)
    for place, value in changes:
        damaged[int(place * (400 if in_header else len(file)))] = value
    try:
        samples = decoded(bytes(damaged[: int(end * len(file))]), max_seconds=30)
    except (InvalidAudio, AudioTooLong):
        return
    assert np.isfinite(samples).all()


@settings(deadline=None)
@given(
    st.sampled_from(
        [b"RIFF\0\0\0\0WAVE", b"fLaC", b"OggS\0\x02", b"ID3\x04\0\0\0\0\0\0", b"\x1aE\xdf\xa3", b"\0\0\0\x18ftyp"]
    ),
    st.binary(max_size=2_000),
)
def test_any_bytes_are_audio_or_a_typed_error(start, data):
    try:
        assert np.isfinite(decoded(start + data, max_seconds=30)).all()
    except (InvalidAudio, AudioTooLong):
        return


def test_the_file_stays_open_and_a_decoder_may_be_dropped_halfway():
    file = io.BytesIO(encoded(chord(24_000, 5.0), 24_000, "flac", "flac"))
    blocks = decode_upload(file, 60)
    next(blocks)
    blocks.close()
    assert not file.closed
