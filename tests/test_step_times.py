import pytest

from serve_app.engine.step_times import MIN_STEPS, WINDOW_SECONDS, StepTimes


def steps(count: int, duration: float, rows: int = 4) -> StepTimes:
    times = StepTimes()
    for index in range(count):
        times.add(end=index * 0.08, duration=duration, rows=rows)
    return times


def test_without_steps_all_headroom_is_there():
    assert StepTimes().headroom(now=0.0) == 1.0
    assert StepTimes().percentiles(now=0.0) == (0.0, 0.0)


def test_few_steps_are_not_believed():
    assert steps(MIN_STEPS - 1, duration=0.2).headroom(now=2.0) == 1.0


def test_steps_so_slow_that_few_fit_into_the_window_are_believed():
    times = StepTimes()
    for number in range(30):
        times.add(number * 0.5, 0.5, 8)
    assert times.headroom(now=15.0) < -5


def test_headroom_is_what_the_slow_steps_leave_of_a_frame():
    assert steps(100, duration=0.02).headroom(now=8.0) == pytest.approx(0.75)
    assert steps(100, duration=0.1).headroom(now=8.0) == pytest.approx(-0.25)


def test_old_steps_are_forgotten():
    times = steps(100, duration=0.1)
    assert times.headroom(now=100 * 0.08 + WINDOW_SECONDS) == 1.0
    assert times.batch_size_mean(now=100 * 0.08 + WINDOW_SECONDS) == 0.0
    assert (times.steps_total, times.frames_total) == (100, 400)


def test_busy_share_follows_the_load_and_fades():
    times = steps(100, duration=0.04)
    assert times.busy_share(now=99 * 0.08) == pytest.approx(0.5, abs=0.1)
    assert times.busy_share(now=99 * 0.08 + 5) < 0.01
