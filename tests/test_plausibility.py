"""Wrong declarations are noticed, right ones never are."""

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serve_app.audio.encodings import to_float32
from serve_app.audio.files import read_audio
from serve_app.audio.formats import SAMPLE_BYTES, AudioFormat
from serve_app.audio.plausibility import WINDOW_BYTES, PlausibilityCheck, check_samples
from serve_app.errors import InvalidAudio
from tests.audio_signals import cut, raw
from tests.support import SAMPLES, manifest

CLIPS = [entry["file"] for entry in manifest()]
ENCODINGS = list(SAMPLE_BYTES)


@functools.cache
def clip(name: str) -> np.ndarray:
    return read_audio(SAMPLES / name)[: 24_000 * 12]


def look(data: bytes, declared: AudioFormat, size: int = 7_680) -> None:
    """Check a stream as the decoder does; raises InvalidAudio."""
    check, place = PlausibilityCheck(declared), 0
    for piece in cut(data[: len(data) - len(data) % declared.frame_bytes], size):
        if declared.encoding == "f32":
            check_samples(to_float32("f32", piece), piece, place)
        check.check(piece)
        place += size // 4


def looks_like(data: bytes, declared: AudioFormat) -> str:
    with pytest.raises(InvalidAudio) as error:
        look(data, declared)
    return error.value.message.partition("looks like ")[2]


@settings(deadline=None)
@given(
    st.sampled_from(CLIPS),
    st.sampled_from(ENCODINGS),
    st.sampled_from([1, 2]),
    st.floats(-60, 60),
    st.integers(0, 24_000 * 6),
    st.booleans(),
)
def test_speech_of_any_loudness_is_what_it_is(name, encoding, channels, gain_db, start, is_clipped):
    samples = clip(name)[start:] * np.float32(10 ** (gain_db / 20))
    if is_clipped or encoding != "f32":
        samples = samples.clip(-1, 1)
    elif np.abs(samples).max() > 900:
        return
    look(raw(samples, AudioFormat(encoding, 24_000, channels)), AudioFormat(encoding, 24_000, channels))


@settings(deadline=None)
@given(
    st.sampled_from(ENCODINGS),
    st.sampled_from(["white", "uniform", "brown", "clipped", "clicks", "steps"]),
    st.floats(-100, 0),
    st.integers(0, 2**32 - 1),
)
def test_noise_of_any_kind_is_what_it_is(encoding, kind, gain_db, seed):
    random = np.random.default_rng(seed)
    white = random.normal(0, 0.3, 48_000)
    noise = {
        "white": white,
        "uniform": random.uniform(-1, 1, 48_000),
        "brown": np.cumsum(white) / 50,
        "clipped": np.sign(white),
        "clicks": white * (random.random(48_000) > 0.99),
        "steps": np.repeat(white[::100], 100),
    }[kind]
    samples = (noise.clip(-1, 1) * 10 ** (gain_db / 20)).astype(np.float32)
    look(raw(samples, AudioFormat(encoding)), AudioFormat(encoding))


@settings(deadline=None)
@given(st.sampled_from(ENCODINGS), st.floats(1, 11_999), st.floats(-90, 0), st.booleans())
def test_tones_are_what_they_are(encoding, hertz, gain_db, is_square):
    tone = np.sin(2 * np.pi * hertz * np.arange(48_000) / 24_000) * 10 ** (gain_db / 20)
    if is_square:
        tone = np.sign(tone) * np.abs(tone).max()
    look(raw(tone.astype(np.float32), AudioFormat(encoding)), AudioFormat(encoding))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("level", [0, 1e-40, 1e-30, 1e-12, 0.001, 0.5, 1])
def test_silence_and_constants_are_what_they_are(encoding, level):
    look(raw(np.full(48_000, level, np.float32), AudioFormat(encoding)), AudioFormat(encoding))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_what_filters_leave_of_silence_is_no_mistake(seed):
    """Floats far below what is audible, decaying."""
    random = np.random.default_rng(seed)
    decay = (random.normal(0, 1, 48_000) * np.geomspace(1e-20, 1e-44, 48_000)).astype(np.float32)
    look(raw(decay, AudioFormat()), AudioFormat())


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize(
    ("sent", "declared", "found"),
    [
        ("f32", "s16", "float32 samples (?format=f32)"),
        ("f32", "mulaw", "float32 samples (?format=f32)"),
        ("f32", "alaw", "float32 samples (?format=f32)"),
    ],
)
def test_the_usual_mistakes(name, sent, declared, found):
    assert looks_like(raw(clip(name), AudioFormat(sent)), AudioFormat(declared)) == found


@pytest.mark.parametrize("sent", ["s16", "mulaw", "alaw"])
@pytest.mark.parametrize("name", CLIPS)
def test_other_formats_sent_as_float32(name, sent):
    """Noticed in what comes first, which may be too quiet to tell what it is."""
    data = raw(clip(name), AudioFormat(sent))
    unknown = "another format sent as float32, such as 16-bit PCM (?format=s16)"
    assert looks_like(data, AudioFormat()) == unknown or f"?format={sent}" in looks_like(data, AudioFormat())
    speech = raw(clip(name)[np.abs(clip(name)).argmax() :], AudioFormat(sent))
    assert f"?format={sent}" in looks_like(speech, AudioFormat())


def test_the_wrong_byte_order():
    for name in ("hello-en.wav", "bonjour-fr.wav"):
        swapped = np.frombuffer(raw(clip(name), AudioFormat("s16")), "<i2").byteswap().tobytes()
        assert looks_like(swapped, AudioFormat("s16")).startswith("big-endian 16-bit PCM")
        swapped = np.frombuffer(raw(clip(name), AudioFormat()), "<u4").byteswap().tobytes()
        assert looks_like(swapped, AudioFormat("s16")).startswith("big-endian float32")


def test_quiet_positive_integers_sent_as_float32():
    """No NaN comes up in them: read as floats they are tiny, and would be silence."""
    hum = (0.01 + 0.005 * np.sin(2 * np.pi * 50 * np.arange(96_000) / 24_000)).astype(np.float32)
    assert looks_like(raw(hum, AudioFormat("s16")), AudioFormat()) == "16-bit PCM (?format=s16)"


def test_unscaled_integers_as_float32():
    loud = (clip("hello-en.wav") * 32_768).astype("<f4").tobytes()
    assert looks_like(loud, AudioFormat()) == "integers that were not scaled to -1 ... 1"


def test_it_is_noticed_within_seconds_of_speech():
    data = raw(clip("hello-en.wav"), AudioFormat())
    check = PlausibilityCheck(AudioFormat("s16"))
    with pytest.raises(InvalidAudio, match="expected s16 samples, got something that looks like float32"):
        check.check(data[: 12 * WINDOW_BYTES])


@settings(deadline=None)
@given(hnp.arrays(np.uint8, st.integers(0, 4 * WINDOW_BYTES)), st.sampled_from(ENCODINGS), st.sampled_from([1, 2]))
def test_any_bytes_pass_or_get_a_typed_error(data, encoding, channels):
    try:
        look(data.tobytes(), AudioFormat(encoding, 24_000, channels), size=8_000)
    except InvalidAudio as error:
        message = error.message
    else:
        return
    assert "looks like" in message
