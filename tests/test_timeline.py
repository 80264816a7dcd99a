import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.session.timeline import KEPT_INSERTIONS, Timeline
from serve_app.speech import SAMPLE_RATE_HZ


def test_without_insertions_both_clocks_agree():
    assert Timeline()(3.25) == 3.25


def test_inserted_silence_takes_no_client_time():
    timeline = Timeline()
    timeline.insert(at_sample=24_000, samples=12_000)
    assert timeline(0.5) == 0.5
    assert timeline(1.2) == 1.0
    assert timeline(1.5) == 1.0
    assert timeline(2.0) == 1.5


def test_a_moment_before_the_stream_is_its_start():
    timeline = Timeline()
    timeline.insert(0, 24_000)
    assert timeline(-0.3) == 0.0
    assert timeline(0.9) == 0.0


@given(st.lists(st.tuples(st.integers(1, 50_000), st.integers(0, 50_000)), max_size=3 * KEPT_INSERTIONS))
def test_every_client_sample_keeps_its_time_however_many_flushes_came_before(pieces):
    """Client audio and silence in turns: the start of the latest client piece maps to what was sent before it."""
    timeline = Timeline()
    engine = client = 0
    for audio, silence in pieces:
        assert timeline(engine / SAMPLE_RATE_HZ) == pytest.approx(client / SAMPLE_RATE_HZ)
        engine += audio
        client += audio
        timeline.insert(engine, silence)
        engine += silence


@given(
    st.lists(st.tuples(st.integers(1, 50_000), st.integers(0, 50_000)), max_size=20),
    st.lists(st.floats(0, 60), min_size=2, max_size=20),
)
def test_time_never_runs_backwards(pieces, moments):
    timeline = Timeline()
    engine = 0
    for audio, silence in pieces:
        timeline.insert(engine + audio, silence)
        engine += audio + silence
    mapped = [timeline(moment) for moment in sorted(moments)]
    assert mapped == sorted(mapped)
