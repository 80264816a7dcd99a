"""When a moment of the audio arrived."""

from hypothesis import given
from hypothesis import strategies as st

from serve_app.session.arrivals import KEPT_FRAMES, Arrivals


def test_a_moment_arrived_with_its_frame():
    arrivals = Arrivals()
    for frame in range(1, 11):
        arrivals.note(frame * 1_920, now=100 + frame)
    assert arrivals.at(0.04) == 101
    assert arrivals.at(0.08) == 101
    assert arrivals.at(0.081) == 102
    assert arrivals.at(0.8) == 110
    assert arrivals.at(5.0) == 110  # nothing later has come


def test_what_came_elsewhere_or_long_ago_is_not_known():
    arrivals = Arrivals(24_000)
    assert arrivals.at(0.5) is None
    arrivals.note(26_000, 1.0)
    assert arrivals.at(1.0) is None
    assert arrivals.at(1.05) == 1.0
    for frame in range(KEPT_FRAMES):
        arrivals.note(30_000 + frame * 1_920, 2.0)
    assert arrivals.at(1.05) is None


@given(st.lists(st.integers(1, 5_000), min_size=1, max_size=60))
def test_pieces_of_any_size_tell_within_a_frame(pieces):
    arrivals, samples, came = Arrivals(), 0, []
    for number, piece in enumerate(pieces):
        samples += piece
        arrivals.note(samples, float(number))
        came += [number] * piece
    for sample in range(0, samples - 1_920, 997):
        told = arrivals.at((sample + 1) / 24_000)
        assert told is not None
        assert came[sample] <= told <= came[sample + 1_920]
