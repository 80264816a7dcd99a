"""How many streams the engine carries in real time."""

from collections.abc import Callable

import numpy as np

from loadtest.engine.loads import loads
from loadtest.engine.measuring import Audio, Contest, Effort, Measured, full_histories
from loadtest.engine.sides import Ours
from serve_app.model import Checkpoint
from serve_app.speech import FRAME_SECONDS

PRECISION = 0.04
"""Share of the result by which it may be too low."""

TRIES = 2
"""Other programs may disturb a try; what succeeds once can be carried."""

PROBE_AUDIO_S, PROBE_MOST_S = 2.0, 10.0
"""How long a number of streams is tried."""


def percentile_s(values: list[float], percent: float) -> float:
    """A percentile; NaN of nothing."""
    return float(np.percentile(values, percent)) if values else float("nan")


def in_real_time(waits_and_steps_s: list[float]) -> bool:
    """Whether 99 % of the frames have their result before the stream's next frame comes."""
    return percentile_s(waits_and_steps_s, 99) <= FRAME_SECONDS


def in_time(measured: list[Measured], age: str) -> list[int]:
    """The measured numbers of streams that our model carries in real time at random phases."""
    return [
        one.streams
        for one in measured
        if one.age == age and one.load == "random" and in_real_time(one.ours.waits_and_steps_s)
    ]


def largest(fits: Callable[[int], bool], most: int, known: int = 0) -> int:
    """The largest number up to `most` that fits, within PRECISION, if all below it do; `known` is one that does."""
    low, high, step = known, most + 1, max(1, known)
    while low + step < high:
        if not fits(low + step):
            high = low + step
            break
        low += step
        step = low
    while high - low > max(1, round(PRECISION * low)):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def upper_bound(measured: list[Measured]) -> int:
    """More streams than can be in real time: so many that their steps alone, all aligned, would take a whole frame."""
    points = sorted((one.streams, percentile_s(one.ours.steps_s, 50)) for one in measured if one.load == "aligned")
    (few, short), (many, long) = points[0], points[-1]
    least = long / many / 10  # one more stream costs a tenth of the mean at least
    per_stream = max((long - short) / (many - few), least) if many > few else least
    return max(2, int(1.25 * (many + max(0.0, FRAME_SECONDS - long) / per_stream)))


def realtime_streams(
    checkpoint: Checkpoint, audio: Audio, measured: list[Measured], age: str, most: int, max_wait_s: float
) -> int:
    """Streams at random phases whose frames have their results in time, at most `most`."""
    effort = Effort(PROBE_AUDIO_S, PROBE_MOST_S, max_wait_s)
    good = in_time(measured, age)
    most = min(most, upper_bound([one for one in measured if one.age == age]))
    ours = Ours(checkpoint, most)
    if age == "full":
        ours.fill(full_histories(checkpoint, most, audio))
    contest = Contest(checkpoint, audio, ours, None)

    def fits(streams: int) -> bool:
        load = next(load for load in loads(streams) if load.name == "random")
        if age == "early":
            ours.restart()
        return any(in_real_time(contest.measure(load, age, effort).ours.waits_and_steps_s) for _ in range(TRIES))

    return largest(fits, most, min(max(good, default=0), most))
