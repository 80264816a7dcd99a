"""Audio that comes faster or slower than its declared rate says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio.formats import SAMPLE_RATES_HZ, AudioFormat
from serve_app.audio.pace import WATCHED_SECONDS, PaceCheck
from serve_app.errors import InvalidAudio

F32 = AudioFormat()


def send(declared: AudioFormat, pace: float, seconds: float = 30.0, chunk: float = 0.08, jitter: float = 0.0) -> float:
    """Send in chunks at a multiple of real time; how long it went well."""
    random = np.random.default_rng(0)
    check = PaceCheck(declared)
    for number in range(round(seconds / chunk)):
        now = number * chunk + random.uniform(0, jitter)
        try:
            check.check(round(declared.bytes_per_second * pace * chunk), now)
        except InvalidAudio:
            return now
    return seconds


def problem(declared: AudioFormat, sent: AudioFormat) -> str:
    with pytest.raises(InvalidAudio) as error:
        check = PaceCheck(declared)
        for number in range(400):
            check.check(round(sent.bytes_per_second * 0.08), number * 0.08)
    return error.value.message


@pytest.mark.parametrize(
    ("declared", "sent"),
    [
        (F32, AudioFormat("f32", 16_000)),
        (F32, AudioFormat("f32", 8_000)),
        (AudioFormat("s16", 16_000), AudioFormat("s16", 8_000)),
        (AudioFormat("s16", 48_000), AudioFormat("s16", 16_000)),
        (AudioFormat("s16", 48_000), AudioFormat("s16", 22_050)),
        (AudioFormat("s16", 24_000), AudioFormat("s16", 44_100)),
        (AudioFormat("s16", 16_000), AudioFormat("s16", 44_100)),
        (AudioFormat("s16", 16_000), AudioFormat("s16", 22_050)),
    ],
)
def test_another_rate_is_named(declared, sent):
    message = problem(declared, sent)
    assert f"expected about {declared.bytes_per_second} bytes a second ({declared.query})" in message
    assert f"got {sent.bytes_per_second} for 12 s" in message
    assert f"this looks like {sent.sample_rate_hz} Hz, {sent.encoding} ({sent.query})" in message


def test_mono_declared_as_stereo():
    """Which half the rate would explain as well."""
    message = problem(AudioFormat("s16", 16_000, 2), AudioFormat("s16", 16_000))
    assert "got 32000 for 12 s" in message


@pytest.mark.parametrize("chunk", [0.02, 0.08, 0.25, 0.5])
@pytest.mark.parametrize("jitter", [0.0, 0.02])
def test_it_takes_a_while(chunk, jitter):
    assert WATCHED_SECONDS - 1 <= send(F32, 2 / 3, chunk=chunk, jitter=jitter) <= WATCHED_SECONDS + 8


@pytest.mark.parametrize("rate_hz", SAMPLE_RATES_HZ)
@given(st.floats(0.76, 1.29), st.sampled_from([0.01, 0.02, 0.08, 0.25, 1.0]), st.floats(0, 0.5))
def test_about_real_time_is_fine(rate_hz, pace, chunk, jitter):
    assert send(AudioFormat("s16", rate_hz), pace, chunk=chunk, jitter=min(jitter, chunk)) == 30.0


@pytest.mark.parametrize("pace", [1.5, 2, 2.5, 3, 4, 5, 8, 10, 100])
@pytest.mark.parametrize("rate_hz", SAMPLE_RATES_HZ)
def test_files_at_the_paces_people_choose_are_fine(pace, rate_hz):
    assert send(AudioFormat("s16", rate_hz), pace) == 30.0


def test_speech_with_pauses_is_fine():
    """A client that sends only while somebody speaks: two thirds of the time."""
    check = PaceCheck(F32)
    for number in range(750):
        if number % 75 < 50:  # four seconds on, two off
            check.check(7_680, number * 0.08)


def test_a_network_that_stutters_is_fine():
    random = np.random.default_rng(1)
    check, now = PaceCheck(F32), 0.0
    for _ in range(750):
        now += random.exponential(0.12)
        check.check(7_680, now)


def test_what_was_held_up_does_not_count():
    check = PaceCheck(F32)
    for number in range(1_000):
        check.check(5_120, number * 0.08)
        if number % 100 == 99:
            check.reset()


@given(st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 1e4)), max_size=50))
def test_any_sizes_and_times(arrivals):
    check, now = PaceCheck(F32), 0.0
    for size, pause in arrivals:
        now += pause
        check.check(size, now)
