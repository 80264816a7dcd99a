"""An engine's start in a process of its own, as a replica does it but without Ray: `--cold-start`.

`python -m loadtest.engine.cold_start ARGS` is that process; ARGS are the application's as JSON.
"""

import json
import subprocess
import sys
from typing import Any

from serve_app.engine.start_times import StartTimes

TEXTS = {
    "process": "Python itself",
    "imports": "imports",
    "weights": "weights",
    "slots": "number of slots",
    "warm_up": "warm-up",
    "first_token": "first token",
    "total": "process start to first token",
}


class ColdStartFailed(Exception):
    """The engine did not start; the text is what it said last."""


def measure(args: dict[str, Any]) -> dict[str, float]:
    """Start an engine with the application's `args`; seconds by stage. Raises ColdStartFailed."""
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.engine.cold_start", json.dumps(args | {"log_level": "error"})],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ColdStartFailed((done.stderr.strip().splitlines() or ["it said nothing"])[-1])
    return dict(json.loads(done.stdout.splitlines()[-1]))


def show(seconds: dict[str, float], as_json: bool) -> None:
    """Print a start's stages."""
    if as_json:
        print(json.dumps(seconds))
        return
    for name, value in seconds.items():
        stage = name.removesuffix("_seconds")
        print(f"{TEXTS.get(stage, stage):>28}  {value:6.2f} s")


def start(args: dict[str, Any], times: StartTimes) -> dict[str, float]:
    """Start an engine in this process."""
    with times.stage("imports"):
        from serve_app import settings
        from serve_app.engine.loading import load_model
        from serve_app.engine.service import EngineService
        from serve_app.telemetry import configure_logging

    loaded = settings.from_args(args, environ={})
    configure_logging(loaded.log_level, loaded.log_format)
    EngineService(load_model(loaded, times), name="cold-start", engine=loaded.engine, link=loaded.link)
    return times.as_fields()


if __name__ == "__main__":
    print(json.dumps(start(json.loads(sys.argv[1]), StartTimes())))
