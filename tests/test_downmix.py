"""Several channels as one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio.downmix import downmix


@given(st.integers(1, 32), st.integers(0, 50))
def test_it_is_the_mean(channels, length):
    samples = np.random.default_rng(0).normal(0, 1, (length, channels)).astype(np.float32)
    before = samples.copy()
    mixed = downmix(samples.reshape(-1), channels)
    np.testing.assert_allclose(mixed, samples.mean(axis=1), atol=1e-5)
    assert mixed.dtype == np.float32
    np.testing.assert_array_equal(samples, before)
