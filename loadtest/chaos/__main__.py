"""The command line: `python -m loadtest.chaos --help`."""

import shutil
import tempfile
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from loadtest.chaos import report
from loadtest.chaos.runner import Undisturbed, run
from loadtest.chaos.scenarios import SCENARIOS
from loadtest.chaos.service import ServiceMisbehaves
from serve_app.cli.failure import FAILED
from serve_app.cli.server import StartFailed

ALL = "all"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

ScenarioName = StrEnum("ScenarioName", [(name, name) for name in (*SCENARIOS, ALL)])


@app.command()
def main(
    scenario: Annotated[ScenarioName, typer.Option(help="What to do to the service.")],
    sessions: Annotated[int, typer.Option(min=1, help="Sessions that speak meanwhile.")] = 8,
    seconds: Annotated[float, typer.Option(min=12, help="Least audio of each session; more sees more harm.")] = 40,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per scenario.")] = False,
    keep_log: Annotated[bool, typer.Option(help="Keep what the service printed, and say where.")] = False,
) -> None:
    """Start a service, harm it while sessions speak, and compare their words with an undisturbed run.

    The exit status is 0 only when no session, word or slot was lost, no word doubled or changed, and nothing else went
    wrong.
    """
    names = list(SCENARIOS) if scenario == ALL else [scenario.value]
    progress = report.Progress()
    logs = Path(tempfile.mkdtemp(prefix="stt-chaos-logs-"))
    outcomes, broken = [], False
    try:
        for name in names:
            try:
                outcome = run(name, sessions, seconds, logs / f"{name}.log", progress.scenario(name))
            except (Undisturbed, StartFailed, ServiceMisbehaves) as error:
                progress.scenario(name)(f"failed: {error}")
                broken = True
                continue
            outcomes.append(outcome)
            if as_json:
                report.print_json(outcome)
    finally:
        if keep_log:
            progress.scenario("logs")(str(logs))
        else:
            shutil.rmtree(logs, ignore_errors=True)
    if outcomes and not as_json:
        report.print_table(outcomes)
    raise typer.Exit(FAILED if broken or not all(outcome.passed for outcome in outcomes) else 0)


if __name__ == "__main__":
    app()
