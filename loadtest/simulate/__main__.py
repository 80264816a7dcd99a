"""The command line of `loadtest.simulate`; its assumptions are in the package's docstring."""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

import loadtest.simulate
from loadtest.simulate.fleet import mean_start_s
from loadtest.simulate.plot import draw
from loadtest.simulate.policies import Fixed, Ours, Policy, ServesDefault
from loadtest.simulate.run import Outcome, oracle, simulate
from loadtest.simulate.week import make_week
from serve_app.autoscaling import Rules
from serve_app.cli.failure import BAD_INPUT, fail
from serve_app.settings import AutoscalingSettings, EngineSettings, SettingsError, name_of_model, read_gpus

OURS = "ours"

WIDTH = 120
"""Columns of the output where it is no terminal."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    peak_sessions: Annotated[int, typer.Option(min=1, help="Sessions at once, at the peak of the week.")] = 1_000_000,
    days: Annotated[int, typer.Option(min=1, max=28, help="How long; the outage is on the sixth day.")] = 7,
    gpu: Annotated[str, typer.Option(help="A GPU in configs/gpus.yaml.")] = "H100",
    model: Annotated[str, typer.Option(help="A model in configs/gpus.yaml.")] = "stt-1b-en_fr",
    seed: Annotated[int, typer.Option(help="Another one, another week.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw the week into this file.")] = None,
) -> None:
    """Simulate a week: what the engines cost and who has to wait, under several policies and an oracle."""
    started_at = time.monotonic()
    try:
        gpus = read_gpus()
        card, cost = gpus.gpu(gpu), gpus.models.get(name_of_model(model))
        if cost is None:
            raise ValueError(f"expected one of {', '.join(gpus.models)}, got {model!r}")
    except (SettingsError, ValueError) as error:
        fail(error, BAD_INPUT)
    capacity = card.capacity_for(name_of_model(model), cost)
    scaling = AutoscalingSettings(
        max_replicas=max(10, math.ceil(2 * peak_sessions / capacity.slots)), lead_seconds=mean_start_s()
    )
    rules = Rules(**EngineSettings(slots=capacity.slots, autoscaling=scaling).scaling_rules)
    week = make_week(peak_sessions, days, seed)
    oracle_hours, oracle_engines = oracle(week, capacity.slots)
    policies: dict[str, Policy] = {
        OURS: Ours(rules),
        "serve_default": ServesDefault(rules, rules.target_share),
        "serve_default_fuller": ServesDefault(rules, rules.steady_share),
        "fixed_at_peak": Fixed(rules, peak_sessions),
    }
    outcomes = {
        name: simulate(week, policy, rules, card, cost, scaling.start_timeout_seconds)
        for name, policy in policies.items()
    }
    if plot:
        draw(plot, week, outcomes, oracle_engines)
    setting = {
        "peak_sessions": peak_sessions,
        "days": days,
        "seed": seed,
        "gpu": gpu,
        "model": model,
        "slots": capacity.slots,
        "slots_basis": capacity.basis,
        "sessions_total": round(float(week.arrivals.sum())),
        "engines_at_peak_oracle": int(oracle_engines.max()),
        "rules": asdict(rules),
        "start_timeout_seconds": scaling.start_timeout_seconds,
    }
    if as_json:
        result = _plain(outcomes[OURS]) | {"oracle_gpu_hours": round(oracle_hours, 1)}
        result |= {"policies": {name: _plain(outcome) for name, outcome in outcomes.items()}, "setting": setting}
        print(json.dumps(result))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    print(loadtest.simulate.__doc__)
    print("\n".join(f"{name}: {value}" for name, value in setting.items()) + "\n")
    price = card.price.dollars_per_hour if card.price else None
    console.print(_table(outcomes, oracle_hours, price))
    console.print(f"simulated in {time.monotonic() - started_at:.0f} s", highlight=False)


def _plain(outcome: Outcome) -> dict[str, float]:
    """The numbers of an outcome, without the courses over time."""
    return {name: round(value, 6) for name, value in vars(outcome).items() if not isinstance(value, np.ndarray)}


def _table(outcomes: dict[str, Outcome], oracle_hours: float, price: float | None) -> Table:
    table = Table(title="the time simulated", title_justify="left")
    headings = ("policy", "GPU-hours", "over oracle", "million $", "> 2 s", "refused", "wait p99", "longest")
    for heading in (*headings, "moved", "in the outage"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")

    def dollars(hours: float) -> str:
        return "?" if price is None else f"{hours * price / 1e6:.3g}"

    table.add_row("oracle", f"{oracle_hours:,.0f}", "", dollars(oracle_hours), "0", "0", "0 s", "0 s")
    for name, outcome in outcomes.items():
        table.add_row(
            name,
            f"{outcome.gpu_hours:,.0f}",
            f"{outcome.gpu_hours / oracle_hours - 1:+.1%}",
            dollars(outcome.gpu_hours),
            f"{outcome.delayed_share:.4%}",
            f"{outcome.refused_share:.4%}",
            f"{outcome.wait_p99_s:.0f} s",
            f"{outcome.wait_longest_s:.0f} s",
            f"{outcome.moves_per_session:.2%}",
            f"{outcome.outage_delayed_share:.2%} delayed,\n{outcome.outage_refused_share:.2%} refused",
        )
    return table


if __name__ == "__main__":
    app()
