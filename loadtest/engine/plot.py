"""Step time against streams."""

from pathlib import Path

import matplotlib

from loadtest.engine.capacity import percentile_s
from loadtest.engine.result import Result
from serve_app.speech import FRAME_SECONDS


def draw(result: Result, path: Path) -> None:
    """Draw the aligned load: both sides' median steps, the arithmetic floor, and the 80 ms that a frame lasts."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    colours = {"ours": "tab:blue", "moshi": "tab:orange"}
    for age, style in (("early", ":"), ("full", "-")):
        rows = sorted(
            (one for one in result.measured if one.age == age and one.load == "aligned"), key=lambda one: one.streams
        )
        for side, colour in colours.items():
            tallies = [(one.streams, getattr(one, side)) for one in rows if getattr(one, side)]
            if tallies:
                streams, times = zip(
                    *((count, 1e3 * percentile_s(tally.steps_s, 50)) for count, tally in tallies), strict=True
                )
                axes.plot(streams, times, style, color=colour, marker="o", label=f"{side}, {age} context")
        if rows and age == result.age:
            axes.plot(
                [one.streams for one in rows], list(map(result.floor_ms, rows)), "--", color="grey", label="floor"
            )
    axes.axhline(1e3 * FRAME_SECONDS, color="tab:red", linewidth=1, label="one frame")
    axes.set(
        xscale="log", yscale="log", xlabel="streams", ylabel="step, median (ms)",
        title=f"{result.model}, all frames aligned, {result.machine.device}",
    )  # fmt: skip
    axes.legend()
    figure.savefig(path)
    pyplot.close(figure)
