"""The week as a picture."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from loadtest.simulate.run import Outcome
from loadtest.simulate.week import STEP_S, Week


def draw(file: Path, week: Week, outcomes: dict[str, Outcome], oracle_engines: NDArray[np.int64]) -> None:
    """Sessions, engines and waiting sessions over time, into a file whose ending names the format (PNG, SVG, PDF)."""
    days = np.arange(week.steps) * STEP_S / 86_400
    figure = Figure(figsize=(12, 9), layout="constrained")
    sessions, engines, waiting = figure.subplots(3, sharex=True)
    sessions.plot(days, week.sessions, color="black", linewidth=0.8)
    sessions.set_ylabel("sessions")
    engines.plot(days, oracle_engines, color="black", linewidth=0.8, label="oracle")
    for name, outcome in outcomes.items():
        engines.plot(days, outcome.engines, linewidth=0.8, label=name)
        waiting.plot(days, outcome.waiting, linewidth=0.8, label=name)
    engines.set_ylabel("running engines")
    engines.legend(loc="upper right")
    waiting.set_ylabel("sessions without a slot")
    waiting.set_yscale("symlog", linthresh=1)
    waiting.set_xlabel("days")
    for axes in (sessions, engines, waiting):
        for step in week.losses:
            axes.axvline(days[step], color="orange", linewidth=0.4)
        if week.outage:
            axes.axvspan(days[week.outage.start], days[week.outage.stop], color="red", alpha=0.2)
        axes.grid(alpha=0.3)
    sessions.set_title("spot losses in orange, the zone outage in red", fontsize=9, loc="left")
    figure.savefig(file, dpi=120)
