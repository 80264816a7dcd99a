"""The command line: `python -m loadtest.engine --help`."""

import json
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from rich.console import Console

from loadtest import results
from loadtest.engine import admission, cold_start, report
from loadtest.engine.loads import DEFAULT_MAX_WAIT_S
from loadtest.engine.measuring import AGES, Effort
from loadtest.engine.models import application_args, source_of
from loadtest.engine.plot import draw
from loadtest.engine.runner import Plan, run
from loadtest.progress import Progress
from serve_app.checkpoint.files import CheckpointError
from serve_app.cli.failure import FAILED
from serve_app.settings import SettingsError

STREAMS = "1,8,32"
"""Numbers of slots that are measured where none are asked for."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    model: Annotated[str, typer.Option(help="As the setting `model`: demo, stt-1b-en_fr, a folder, …")] = "demo",
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Its shape only; no download.")] = False,
    streams: Annotated[
        str, typer.Option(help="Numbers of slots, with commas.", show_default=f"{STREAMS}; auto with --admission")
    ] = "",
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to run.")] = "auto",
    dtype: Annotated[Literal["auto", "float32", "bfloat16"], typer.Option(help="The language model's type.")] = "auto",
    ages: Annotated[str, typer.Option(help="early: sessions that have just begun; full: caches full.")] = "early,full",
    seconds: Annotated[float, typer.Option(min=0.4, help="Audio of each stream, per load.")] = 4.0,
    most_seconds: Annotated[float, typer.Option(min=0, help="No new round of a load after so long.")] = 30.0,
    max_wait: Annotated[float, typer.Option(min=0, help="As engine.max_wait_seconds.")] = DEFAULT_MAX_WAIT_S,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads on a CPU; all cores without it.")] = None,
    search: Annotated[bool, typer.Option(help="Look for the largest number of streams in real time.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw step time against streams into this file.")] = None,
    save: Annotated[bool, typer.Option("--save", help="Keep the result in loadtest/results.")] = False,
    cold: Annotated[bool, typer.Option("--cold-start", help="Instead: start an engine, and tell its stages.")] = False,
    admit: Annotated[
        bool,
        typer.Option("--admission", help="Instead: let streams in, one number of slots or auto, until one is refused."),
    ] = False,
) -> None:
    """Measure the engine: our model and moshi's batched stepping in turns, tokens compared.

    Exits with 1 where a token differs.
    """
    if cold and admit:
        raise typer.BadParameter("--cold-start and --admission: expected one of them")
    if (cold or admit) and (save or plot):
        raise typer.BadParameter("--save and --plot: expected neither with --cold-start or --admission")
    counts = [] if admit else _numbers(streams or STREAMS)
    slots = _slots(streams or "auto") if admit else counts[-1]
    chosen_ages = tuple(age for age in AGES if age in ages.split(","))
    if not chosen_ages or set(ages.split(",")) - set(AGES):
        raise typer.BadParameter(f"--ages: expected early, full or both with a comma, got {ages!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter("--device: expected a CUDA GPU for cuda, torch sees none on this machine")
    where = torch.device("cuda" if device == "cuda" or (device == "auto" and torch.cuda.is_available()) else "cpu")
    plan = Plan(counts, chosen_ages, Effort(seconds, most_seconds, max_wait), search, threads)
    try:
        with (
            Progress("getting the weights") as progress,
            source_of(model, random_weights, where, dtype) as source,
        ):
            if cold:
                progress.tell(0.0, "starting an engine")
                with application_args(source, where.type, slots) as args:
                    started = cold_start.measure(args)
            elif admit:
                progress.tell(0.0, "starting an engine")
                with application_args(source, where.type, slots) as args:
                    admitted = admission.measure(
                        args, seconds, "full" in chosen_ages, lambda text: progress.tell(0.0, text)
                    )
            else:
                result = run(source, where, plan, progress.tell)
    except (CheckpointError, SettingsError, cold_start.ColdStartFailed, admission.AdmissionFailed, ValueError) as error:
        Console(stderr=True, highlight=False).print(str(error), markup=False, soft_wrap=True)
        raise typer.Exit(FAILED) from None
    if cold:
        cold_start.show(started, as_json)
        return
    if admit:
        admission.show(admitted, as_json)
        return
    result.model = f"{model} (random weights)" if random_weights else model
    arguments = ["-m", "loadtest.engine", *sys.argv[1:]]
    result.command = shlex.join(["python", *arguments])
    result.started_at = datetime.now(UTC).isoformat(timespec="seconds")
    fields = result.as_fields()
    if plot:
        draw(result, plot)
    if save:
        file = results.save(report.name_of(fields), "python", arguments, fields, results.FOLDER)
        print(f"saved: {file}", file=sys.stderr)
    if as_json:
        print(json.dumps(fields))
    else:
        report.print_table(result)
    raise typer.Exit(0 if all(one.agreement.equal for one in result.measured) else FAILED)


def _numbers(streams: str) -> list[int]:
    try:
        counts = sorted({int(count) for count in streams.split(",")})
    except ValueError:
        counts = []
    if not counts or counts[0] < 1:
        raise typer.BadParameter(f"--streams: expected numbers with commas, from 1 on, got {streams!r}")
    return counts


def _slots(streams: str) -> int | Literal["auto"]:
    """The one number of slots that an engine is to let streams into."""
    if streams == "auto":
        return "auto"
    if not streams.isdecimal() or int(streams) < 1:
        raise typer.BadParameter(
            f"--streams: expected one number from 1 on, or auto, with --admission, got {streams!r}"
        )
    return int(streams)


if __name__ == "__main__":
    app()
