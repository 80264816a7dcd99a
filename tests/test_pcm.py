"""Bytes to samples to frames."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from serve_app.audio.pcm import Float32Decoder, Framer
from serve_app.errors import InvalidAudio
from serve_app.speech import FRAME_SAMPLES, MAX_AMPLITUDE

AUDIO = hnp.arrays(np.float32, st.integers(0, 64), elements=st.floats(-1000, 1000, width=32))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


@given(AUDIO, st.lists(st.integers(0, 256)))
def test_any_split_of_the_bytes_gives_the_same_samples(audio: NDArray[np.float32], places: list[int]) -> None:
    decoder = Float32Decoder()
    parts = [decoder.feed(chunk) for chunk in cut(audio.astype("<f4").tobytes(), places)]
    decoder.finish()
    np.testing.assert_array_equal(np.concatenate(parts), audio)
    assert {part.dtype for part in parts} == {np.dtype(np.float32)}


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


@pytest.mark.parametrize("data_type", [bytes, bytearray, memoryview])
def test_all_kinds_of_bytes(data_type: type) -> None:
    assert Float32Decoder().feed(data_type(np.float32(0.5).tobytes())).tolist() == [0.5]


@pytest.mark.parametrize("trailing", [1, 2, 3])
def test_an_incomplete_last_sample(trailing: int) -> None:
    decoder = Float32Decoder()
    assert len(decoder.feed(bytes(8 + trailing))) == 2
    with pytest.raises(InvalidAudio, match=f"^expected a multiple of 4 bytes, got {trailing} trailing$"):
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
    decoder = Float32Decoder()
    decoder.feed(audio.tobytes()[:14])
    with pytest.raises(InvalidAudio, match=expected):
        decoder.feed(audio.tobytes()[14:])


def test_16_bit_speech_sent_as_float32_is_refused() -> None:
    noise = np.random.default_rng(0).normal(0, 3000, 2 * FRAME_SAMPLES).astype("<i2")
    with pytest.raises(InvalidAudio, match="16-bit PCM"):
        Float32Decoder().feed(noise.tobytes())


def test_loud_audio_is_kept_as_it_is() -> None:
    loud = np.array([1.5, -3.0, MAX_AMPLITUDE, -MAX_AMPLITUDE], dtype="<f4")
    np.testing.assert_array_equal(Float32Decoder().feed(loud.tobytes()), loud)


def test_frames_do_not_change_with_the_callers_buffer() -> None:
    buffer = np.ones(FRAME_SAMPLES + 1, dtype=np.float32)
    framer = Framer()
    frames = framer.push(buffer)
    buffer[:] = 9
    last, padding = framer.pad()
    assert frames.min() == frames.max() == 1
    assert last is not None
    assert (last[0], padding) == (1, FRAME_SAMPLES - 1)
