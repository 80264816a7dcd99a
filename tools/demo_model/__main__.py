"""`python -m tools.demo_model train`, and `report`."""

import errno
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from serve_app.model import CheckpointError
from tools.demo_model import card, report
from tools.demo_model.evaluate import Results, evaluate, load
from tools.demo_model.recipe import FULL
from tools.demo_model.stages import Stages
from tools.demo_model.training import TrainingError
from tools.espeak import SpeechError

CHECKPOINT = Path(__file__).resolve().parents[2] / "configs" / "models" / "demo"
WORK = Path(__file__).resolve().parents[2] / "build" / "demo-model"
TEST_SEED = 1_000

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
Folder = Annotated[Path, typer.Option("--checkpoint", help="The checkpoint's folder.")]


@app.command()
def train(
    checkpoint: Folder = CHECKPOINT,
    work: Annotated[Path, typer.Option(help="Where stages keep their results; a second run uses them again.")] = WORK,
    seed: Annotated[int, typer.Option(min=0, help="Another seed makes another model.")] = 1,
) -> None:
    """Train the model from nothing, write its checkpoint, evaluate it, and write its report and its card."""
    try:
        Stages(FULL, seed, work).checkpoint(checkpoint)
        card.write(_reported(checkpoint), checkpoint)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _fail(
            f"the disk is full: free some space and run again, or remove {work}; what is complete there is used again"
        )
    except (SpeechError, TrainingError) as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail(f"interrupted; the next run goes on with what is in {work}")


@app.command(name="report")
def report_(checkpoint: Folder = CHECKPOINT) -> None:
    """Evaluate a checkpoint, write its report beside it and print it."""
    try:
        _reported(checkpoint)
    except (SpeechError, CheckpointError) as error:
        _fail(str(error))


def _reported(checkpoint: Path) -> Results:
    results = evaluate(load(checkpoint), FULL, TEST_SEED)
    text = report.write(results, checkpoint)
    console = Console()
    console.print(Markdown(text) if console.is_terminal else text, soft_wrap=True, markup=False, highlight=False)
    return results


def _fail(text: str) -> None:
    print(f"demo-model: {text}", file=sys.stderr)
    raise typer.Exit(1)


if __name__ == "__main__":
    app()
