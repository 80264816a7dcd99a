"""Resampling a stream: no seams, whatever the pieces."""

import numpy as np
import pytest
import soxr
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio.resampler import Resampler
from tests.audio_signals import chord, snr_db

RATES_HZ = [8_000, 16_000, 22_050, 44_100, 48_000]


def in_pieces(samples, rate_hz, sizes):
    resampler, start, parts = Resampler(rate_hz), 0, []
    while start < len(samples):
        size = sizes[len(parts) % len(sizes)]
        parts.append(resampler.push(samples[start : start + size]))
        start += size
    return np.concatenate([*parts, resampler.finish()])


@given(st.sampled_from(RATES_HZ), st.lists(st.integers(1, 2_000), min_size=1, max_size=8))
def test_pieces_of_any_size_give_exactly_the_one_shot_result(rate_hz, sizes):
    samples = chord(rate_hz, 0.3)
    np.testing.assert_array_equal(in_pieces(samples, rate_hz, sizes), soxr.resample(samples, rate_hz, 24_000))


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_a_sine_in_odd_pieces_has_no_clicks(rate_hz):
    sine = np.sin(2 * np.pi * 440 * np.arange(rate_hz) / rate_hz).astype(np.float32)
    expected = np.sin(2 * np.pi * 440 * np.arange(24_000) / 24_000)
    middle = slice(2_400, -2_400)  # the sine begins and ends at once, which rings
    assert np.abs(in_pieces(sine, rate_hz, [1, 333, 17])[middle] - expected[middle]).max() < 1e-4


@pytest.mark.parametrize("rate_hz", [*RATES_HZ, 24_000])
def test_what_comes_out_is_what_went_in_at_another_rate(rate_hz):
    assert snr_db(in_pieces(chord(rate_hz), rate_hz, [480]), chord(24_000)) > 60


@pytest.mark.parametrize("rate_hz", [*RATES_HZ, 24_000])
def test_nothing_in_nothing_out_and_a_second_stream_after_the_first(rate_hz):
    resampler = Resampler(rate_hz)
    assert len(resampler.finish()) == 0
    assert len(resampler.push(np.zeros(0, np.float32))) == 0
    first = np.concatenate([resampler.push(chord(rate_hz, 0.2)), resampler.finish()])
    assert len(resampler.finish()) == 0
    second = np.concatenate([resampler.push(chord(rate_hz, 0.2)), resampler.finish()])
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("rate_hz", RATES_HZ)
def test_little_waits_inside(rate_hz):
    assert len(Resampler(rate_hz).push(chord(rate_hz, 0.5))) >= (0.5 - 0.08) * 24_000
