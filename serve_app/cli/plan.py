"""`stt plan`: which GPU, how many, and what that costs."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from serve_app.cli.failure import BAD_INPUT, fail
from serve_app.plan import BUFFER_REPLICAS, COLD_START_SECONDS, WARM_REPLICAS, GpuPlan, Option
from serve_app.plan import plan as make_plan
from serve_app.settings import AutoscalingSettings, SettingsError, name_of_model, read_gpus

WIDTH = 120
"""Columns of the table where the output is no terminal."""


def plan(
    sessions: Annotated[int, typer.Option(min=1, help="Sessions at once, at the peak.")],
    model: Annotated[str, typer.Option(help="A name in configs/models, or its Hugging Face id.")] = "stt-1b-en_fr",
    gpu: Annotated[str | None, typer.Option(help="Only these, such as L4,L40S,H100; without it all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Say how many engines so many sessions need on each type of GPU, and what they cost."""
    try:
        gpus = read_gpus()
        names = [name.strip() for name in gpu.split(",")] if gpu else list(gpus.gpus)
        plans = make_plan(gpus, name_of_model(model), sessions, names)
    except (SettingsError, ValueError) as error:
        fail(error, BAD_INPUT)
    if as_json:
        typer.echo(json.dumps({"sessions": sessions, "model": model, "plans": [asdict(one) for one in plans]}))
        return
    _print(plans, sessions, model)


def _print(plans: list[GpuPlan], sessions: int, model: str) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    share = AutoscalingSettings().target_share
    table = Table(title=f"{sessions} sessions of {model} at once, cheapest first", title_justify="left")
    for heading in ("GPU", "slots", "option", "engines", "$/hour", "$/session-hour", "idle: engines, $/hour", "why"):
        table.add_column(heading, justify="left" if heading in ("GPU", "option", "why") else "right")
    for one in plans:
        slots = f"{one.slots} {one.basis}"
        for option in one.options:
            first = option is one.options[0]
            table.add_row(one.gpu if first else "", slots if first else "", *_cells(option), one.why if first else "")
        if not one.options:
            table.add_row(one.gpu, "0", "", "", "", "", "", one.why)
    console.print(table)
    if plans[0].options and plans[0].options[0].dollars_per_hour is not None:
        best = plans[0]
        console.print(
            f"{best.gpu} is the cheapest: engine: {{gpu: {best.gpu}, slots: {best.slots},"
            f" autoscaling: {{max_replicas: {best.options[-1].replicas}}}}}",
            highlight=False,
        )
    notes = (
        f"Engines are filled to {share:.0%} of their slots, the autoscaler's rule.",
        f"cold: no engine while nobody speaks; the first words then take {COLD_START_SECONDS} s (as the earlier",
        "services report; minutes where a machine must be got first), and nothing is lost.",
        f"warm: {WARM_REPLICAS} engines always run, and {BUFFER_REPLICAS} more is ready for bursts.",
        "derived: computed from memory and bandwidth (serve_app/gpus.py), not measured.",
        "Prices are list prices of GPUs alone (configs/gpus.yaml); ingress, traffic and storage come on top.",
    )
    console.print("\n".join(notes), highlight=False)


def _cells(option: Option) -> tuple[str, ...]:
    def dollars(value: float | None, digits: int = 2) -> str:
        return "?" if value is None else f"{value:.{digits}f}"

    return (
        option.kind,
        str(option.replicas),
        dollars(option.dollars_per_hour),
        dollars(option.dollars_per_session_hour, 4),
        f"{option.idle_replicas}, {dollars(option.idle_dollars_per_hour)}",
    )
