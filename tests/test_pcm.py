"""Bytes to samples to frames."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from serve_app.audio.encodings import to_float32, to_mulaw
from serve_app.audio.formats import SAMPLE_BYTES, SAMPLE_RATES_HZ, AudioFormat
from serve_app.audio.pcm import Framer, PcmDecoder
from serve_app.errors import InvalidAudio
from serve_app.speech import FRAME_SAMPLES, MAX_AMPLITUDE
from tests.audio_signals import chord, cut, encoded, raw, snr_db

AUDIO = hnp.arrays(np.float32, st.integers(0, 64), elements=st.floats(-1000, 1000, width=32))
F32 = AudioFormat()
EXPECTED_SNR_DB = {"f32": 60, "s16": 60, "mulaw": 25, "alaw": 25}
"""Of these levels: resampling adds less than -60 dB, G.711 has 8 bits."""


def split(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def decoded(audio_format: AudioFormat, pieces: list[bytes]) -> NDArray[np.float32]:
    decoder = PcmDecoder(audio_format)
    return np.concatenate([*(decoder.feed(piece) for piece in pieces), decoder.finish()])


@given(AUDIO, st.lists(st.integers(0, 256)))
def test_any_split_of_float32_gives_the_same_samples(audio: NDArray[np.float32], places: list[int]) -> None:
    samples = decoded(F32, split(audio.astype("<f4").tobytes(), places))
    np.testing.assert_array_equal(samples, audio)
    assert samples.dtype == np.float32


@pytest.mark.parametrize("encoding", SAMPLE_BYTES)
@pytest.mark.parametrize("rate_hz", SAMPLE_RATES_HZ)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_carries_the_same_signal(encoding: str, rate_hz: int, channels: int) -> None:
    audio_format = AudioFormat(encoding, rate_hz, channels)
    data = raw(chord(rate_hz), audio_format)
    assert len(data) == 2 * audio_format.bytes_per_second
    assert snr_db(decoded(audio_format, cut(data, 1_023)), chord(24_000)) > EXPECTED_SNR_DB[encoding]


@given(
    st.sampled_from(list(SAMPLE_BYTES)),
    st.sampled_from(SAMPLE_RATES_HZ),
    st.sampled_from([1, 2]),
    st.one_of(st.just(1), st.integers(1, 5_000)),
)
def test_the_size_of_the_pieces_changes_nothing(encoding: str, rate_hz: int, channels: int, size: int) -> None:
    audio_format = AudioFormat(encoding, rate_hz, channels)
    data = raw(chord(rate_hz, 0.1), audio_format)
    np.testing.assert_array_equal(decoded(audio_format, cut(data, size)), decoded(audio_format, [data]))


def test_stereo_is_the_mean_of_both_channels() -> None:
    stereo = np.array([0.5, 0.25, -1.0, 0.5], dtype="<f4")
    assert decoded(AudioFormat(channels=2), [stereo.tobytes()]).tolist() == [0.375, -0.25]


def test_known_bytes() -> None:
    assert to_float32("s16", b"\x00\x80\xff\x7f").tolist() == [-1, 32_767 / 32_768]
    assert to_float32("mulaw", b"\xff\x7f\x00\x80").tolist() == [0, 0, -32_124 / 32_768, 32_124 / 32_768]
    assert to_float32("alaw", b"\xd5\x55\xaa\x2a").tolist() == [8 / 32_768, -8 / 32_768, 32_256 / 32_768, -0.984375]


def test_mulaw_takes_the_nearest_level() -> None:
    levels = to_float32("mulaw", bytes(range(256)))
    samples = np.linspace(-1.1, 1.1, 1_001, dtype=np.float32)
    nearest = np.abs(samples[:, None] - levels).min(axis=1)
    assert np.array_equal(np.abs(samples - to_float32("mulaw", to_mulaw(samples))), nearest)


@pytest.mark.parametrize("rate_hz", SAMPLE_RATES_HZ)
def test_a_new_decoder_goes_on_where_the_old_one_stopped(rate_hz: int) -> None:
    """As after a cut: the client goes on from the samples that the server has counted, at 24 kHz."""
    audio_format = AudioFormat("s16", rate_hz)
    tones = {rate: 0.25 * np.sin(2 * np.pi * 220 * np.arange(2 * rate) / rate) for rate in (rate_hz, 24_000)}
    data = raw(tones[rate_hz].astype(np.float32), audio_format)
    first = PcmDecoder(audio_format).feed(data[: 2 * rate_hz])
    place = round(len(first) / 24_000 * rate_hz)
    whole = np.concatenate([first, decoded(audio_format, [data[2 * place :]])])
    assert abs(len(whole) - 48_000) <= 4
    assert snr_db(whole[:47_990], tones[24_000][:47_990]) > 15  # the seam is where it belongs, up to half a sample


@pytest.mark.parametrize("data_type", [bytes, bytearray, memoryview])
def test_all_kinds_of_bytes(data_type: type) -> None:
    assert PcmDecoder(F32).feed(data_type(np.float32(0.5).tobytes())).tolist() == [0.5]


@pytest.mark.parametrize(
    ("audio_format", "whole", "trailing"),
    [(F32, 4, 1), (F32, 4, 3), (AudioFormat("s16"), 2, 1), (AudioFormat("s16", 24_000, 2), 4, 2)],
)
def test_an_incomplete_last_sample(audio_format: AudioFormat, whole: int, trailing: int) -> None:
    decoder = PcmDecoder(audio_format)
    assert len(decoder.feed(bytes(2 * whole + trailing))) == 2
    with pytest.raises(InvalidAudio, match=f"^expected a multiple of {whole} bytes, got {trailing} trailing$"):
        decoder.finish()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.nan, "got nan at sample 7: this looks like another format"),
        (np.inf, "got inf at sample 7: this looks like another format"),
        (-np.inf, "got -inf at sample 7: this looks like another format"),
        (-3e30, "got -3e[+]30 at sample 7: this looks like another format sent as float32, such as 16-bit PCM"),
        (20_000, "got 20000 at sample 7: this looks like integers that were not scaled"),
    ],
)
def test_what_is_no_audio_is_refused_with_its_place_in_the_stream(value: float, expected: str) -> None:
    audio = np.zeros(10, dtype="<f4")
    audio[[7, 9]] = value
    decoder = PcmDecoder(F32)
    decoder.feed(audio.tobytes()[:14])
    with pytest.raises(InvalidAudio, match=expected):
        decoder.feed(audio.tobytes()[14:])


@pytest.mark.parametrize(
    ("container", "codec", "name"),
    [
        ("wav", "pcm_s16le", r"a WAV file: stream what follows its header \(\?format=s16&sample_rate=16000\)"),
        ("flac", "flac", "a FLAC file"),
        ("mp3", "libmp3lame", "an MP3 file"),
        ("webm", "libopus", "a WebM or Matroska file"),
        ("ipod", "aac", "an MP4 or M4A file"),
    ],
)
@pytest.mark.parametrize("size", [1, 960, 100_000])
@pytest.mark.parametrize("encoding", ["s16", "mulaw"])
def test_a_file_sent_as_raw_samples_is_called_by_its_name(
    container: str, codec: str, name: str, size: int, encoding: str
) -> None:
    rate_hz = 48_000 if codec == "libopus" else 16_000
    file = encoded(chord(rate_hz, 0.5), rate_hz, container, codec)
    with pytest.raises(InvalidAudio, match=f"expected raw {encoding} samples, got {name}"):
        decoded(AudioFormat(encoding, 16_000), cut(file[:10_000], size))


def test_loud_audio_is_kept_as_it_is() -> None:
    loud = np.array([1.5, -3.0, MAX_AMPLITUDE, -MAX_AMPLITUDE], dtype="<f4")
    np.testing.assert_array_equal(decoded(F32, [loud.tobytes()]), loud)


@given(st.sampled_from(list(SAMPLE_BYTES)), st.sampled_from([1, 2]), st.lists(st.binary(max_size=300), max_size=5))
def test_any_bytes_are_audio_or_a_typed_error(encoding: str, channels: int, pieces: list[bytes]) -> None:
    try:
        samples = decoded(AudioFormat(encoding, 8_000, channels), pieces)
    except InvalidAudio:
        return
    assert np.isfinite(samples).all()
    assert abs(len(samples) - 3 * len(b"".join(pieces)) / SAMPLE_BYTES[encoding] / channels) <= 3


@given(st.lists(st.integers(0, 3 * FRAME_SAMPLES), max_size=8))
def test_any_split_of_the_samples_gives_the_same_frames(sizes: list[int]) -> None:
    audio = np.arange(sum(sizes), dtype=np.float32)
    framer = Framer()
    frames = np.concatenate(
        [np.zeros((0, FRAME_SAMPLES), np.float32)]
        + [framer.push(part) for part in np.split(audio, np.cumsum(sizes)[:-1] if sizes else [])]
    )
    last, padding = framer.pad()
    rest = np.zeros(0, np.float32) if last is None else last[: FRAME_SAMPLES - padding]
    assert len(frames) == len(audio) // FRAME_SAMPLES
    np.testing.assert_array_equal(np.concatenate([frames.reshape(-1), rest]), audio)
    if last is None:
        assert (len(audio) % FRAME_SAMPLES, padding) == (0, 0)
    else:
        assert last.shape == (FRAME_SAMPLES,)
        assert last.dtype == np.float32
        assert padding == -len(audio) % FRAME_SAMPLES
        assert not last[FRAME_SAMPLES - padding :].any()
    assert framer.pad() == (None, 0)


def test_frames_do_not_change_with_the_callers_buffer() -> None:
    buffer = np.ones(FRAME_SAMPLES + 1, dtype=np.float32)
    framer = Framer()
    frames = framer.push(buffer)
    buffer[:] = 9
    last, padding = framer.pad()
    assert frames.min() == frames.max() == 1
    assert last is not None
    assert (last[0], padding) == (1, FRAME_SAMPLES - 1)
