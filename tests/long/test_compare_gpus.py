"""`stt latency --compare-gpus` on a real Ray cluster whose accelerator types are simulated resources."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from serve_app.cli.leftovers import RunFolder
from serve_app.cli.processes import Session
from serve_app.cli.server import free_port, private_ray
from tests.support import PROJECT

SCRIPTS = Path(sys.executable).parent
START_SECONDS = 90
STARTED = "block forever"
"""In what `ray start --block` says once everything runs."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[dict[str, str]]:
    """The environment in which programs find a cluster with an L4 and a T4, and HAProxy's files apart from others'."""
    run_folder = RunFolder()  # short: sockets are in it
    folder, port = run_folder.path, free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(PROJECT),
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        **private_ray(folder),
    }
    command = [
        str(SCRIPTS / "ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=8", "--num-gpus=2",
        "--include-dashboard=false", f"--dashboard-port={free_port()}",
        '--resources={"accelerator_type:L4": 1, "accelerator_type:T4": 1}',
    ]  # fmt: skip
    session = Session(command, environment, str(PROJECT))
    threading.Thread(target=_drain, args=(session, folder / "log.txt"), daemon=True).start()
    try:
        _wait_for(folder / "log.txt")
        yield environment | {"RAY_ADDRESS": f"127.0.0.1:{port}", "STT_AUTH": "none"}
    finally:
        session.stop(signal.SIGTERM, patience_s=5)
        run_folder.remove()


def _drain(session: Session, log: Path) -> None:
    with log.open("wb") as file:
        for line in session.command.stdout or ():
            file.write(line)
            file.flush()


def _wait_for(log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not log.is_file() or STARTED not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.25)


def applications(environment: dict[str, str]) -> list[str]:
    """What Serve still has, asked from a process of its own."""
    ask = (
        "import ray; from ray import serve; ray.init(logging_level='ERROR');"
        "from serve_app.app import listening_host;"
        "print('applications', *(serve.status().applications if listening_host() else []))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", ask], cwd=PROJECT, env=environment, check=True, capture_output=True, text=True
    )
    return answer.stdout.splitlines()[-1].split()[1:]


@pytest.mark.timeout(280)
def test_an_app_per_accelerator_type_and_none_afterwards(cluster: dict[str, str], tmp_path: Path):
    config = yaml.safe_load((PROJECT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = free_port()
    small = {"slots": 8, "num_cpus": 0.5, "torch_threads": 1, "min_headroom": 0}
    config["applications"][0]["args"] |= {"model": "demo", "engine": small}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [
            sys.executable, "-m", "serve_app.cli.main", "latency", "--compare-gpus", "H100,L4", "-p", "2",
            "--rtf", "3", "--config", str(file), "--start-timeout", "45", "--json",
        ],
        cwd=PROJECT, env=cluster, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    h100, l4 = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 1  # the H100 is not there
    assert (h100["name"], l4["name"]) == ("H100", "L4")
    assert (l4["wer"], l4["failures"]) == (0.0, 0)
    assert l4["first_token_s"]["avg"] > 0
    assert "no node with accelerator type H100; the cluster has L4, T4" in h100["error"]
    assert applications(cluster) == []
