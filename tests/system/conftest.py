"""The whole application, started as a person starts it: `stt serve` with Ray, HAProxy, ingress and engine."""

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import websockets
import yaml

from serve_app.cli.server import free_port
from serve_app.smoke.endpoints import ENDPOINTS
from serve_app.smoke.run import FIRST_DIALECT, LIVE
from serve_app.smoke.uploads import UPLOADS
from tests.support import PROJECT

START_SECONDS = 240
ENGINES = 2
SLOTS_PER_ENGINE = 3
SLOTS = ENGINES * SLOTS_PER_ENGINE

STT = str(Path(sys.executable).with_name("stt"))


class RunningService:
    """A service in processes of its own, and what it printed."""

    def __init__(self, config: Path, log: Path, key: str = "") -> None:
        self.key = key
        self.port = free_port()
        self.log = log
        self.base = f"http://127.0.0.1:{self.port}"
        self.url = f"ws://127.0.0.1:{self.port}/v1/stream"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [STT, "serve", "--config", str(config), "--port", str(self.port)],
                stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    @property
    def ray_environment(self) -> dict[str, str]:
        """What a program gets into its environment by what the service prints for that."""
        printed = re.search(r"Ray programs on this machine join with: (\. \S+)", self.log.read_text())
        assert printed
        shell = subprocess.run(["sh", "-c", f"{printed[1]}; env -0"], capture_output=True, text=True, check=True)
        return dict(line.split("=", 1) for line in shell.stdout.split("\0") if line.startswith("RAY_"))

    def wait_until_ready(self, engines: int = ENGINES) -> None:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            try:
                # Ready means one engine; the tests need them all.
                if httpx.get(f"{self.base}/readyz", timeout=5).status_code == 200 and self.engines_up() == engines:
                    return
            except httpx.HTTPError:
                pass
            time.sleep(0.3)
        pytest.fail(f"the service did not become ready:\n{self.log.read_text()[-4_000:]}")

    def status(self) -> dict:
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        return httpx.get(f"{self.base}/status", headers=headers, timeout=10).raise_for_status().json()

    def slots_used(self) -> int:
        return int(sum(load["slots_used"] for load in self.status()["engines"].values()))

    async def wait_until_empty(self) -> None:
        """No session open and every slot free, by the service's own account."""
        async with asyncio.timeout(30):
            while (await asyncio.to_thread(self.status))["sessions_open"] or await asyncio.to_thread(self.slots_used):
                await asyncio.sleep(0.2)

    def processes(self, name: str = "") -> list[psutil.Process]:
        """Processes of this service whose title contains `name`."""
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if name in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def engines_up(self) -> int:
        """Engine replicas whose constructor is through: Ray shows what an actor is doing in its title."""
        return len(self.processes("ServeReplica:stt:engine")) - len(self.processes("engine.initialize"))

    def stop(self) -> list[psutil.Process]:
        """End it as a service manager does; returns what is still alive after that."""
        processes = self.processes()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        return psutil.wait_procs(processes, timeout=5)[1]


def write_config(folder: Path, **args) -> Path:
    config = yaml.safe_load((PROJECT / "serve_config.yaml").read_text())
    config["applications"][0]["args"] = args
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


@contextlib.contextmanager
def running_service(folder: Path, engines: int = ENGINES, key: str = "", **args) -> Iterator[RunningService]:
    """A service of its own with these `args`, of which `key` opens it; nothing may outlive it."""
    running = RunningService(write_config(folder, **args), folder / "log.txt", key)
    try:
        running.wait_until_ready(engines)
        yield running
    finally:
        left = running.stop()
    assert not left, f"processes outlived the service: {left}"


def smoke(service: RunningService, *arguments: str, key: str = "") -> tuple[int, dict, str]:
    """Exit status, report, and what stands on standard error."""
    done = subprocess.run(
        [STT, "smoke", "--url", service.base, "--json", *arguments],
        capture_output=True, text=True, timeout=200, check=False, env={**os.environ, "STT_API_KEY": key},
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout), done.stderr


def check_all_is_well(status: int, report: dict, words: list[str]) -> dict[str, dict]:
    """Every check is good, every dialect has heard these words; the checks by name."""
    assert (status, report["ok"]) == (0, True), [check for check in report["checks"] if not check["ok"]]
    checks = {check["name"]: check for check in report["checks"]}
    dialects = (FIRST_DIALECT, *LIVE, *UPLOADS)
    assert set(checks) == {*ENDPOINTS, *dialects}
    assert {checks[name]["text"] for name in dialects} == {" ".join(words)}
    return checks


@pytest.fixture(scope="package")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """One service for all system tests: the demo model with a few slots."""
    folder = tmp_path_factory.mktemp("service")
    config = write_config(
        folder,
        engine={
            "slots": SLOTS_PER_ENGINE,
            "replicas": ENGINES,
            "num_cpus": 0.4,
            "torch_threads": 1,
            "min_headroom": -100.0,
        },
        ingress={"num_cpus": 0.5},
        session={"idle_audio_timeout_seconds": 5.0, "resume_window_seconds": 3.0},
    )
    running = RunningService(config, folder / "log.txt")
    try:
        running.wait_until_ready()
        yield running
    finally:
        farewells, left = asyncio.run(stop_while_clients_speak(running))
    assert not left, f"processes outlived the service: {left}"
    assert farewells == [(1012, "restarting"), (1012, "restarting")]


async def stop_while_clients_speak(service: RunningService) -> tuple[list[tuple[int | None, str]], list]:
    """Stop the service; how the connections of two clients ended, one of which resumes by itself."""
    farewells = []
    async with (
        websockets.connect(service.url) as plain,
        websockets.connect(f"{service.url}?resumable=true") as movable,
    ):
        for connection in (plain, movable):
            await connection.recv()
            await connection.send(bytes(96_000))
        left = await asyncio.to_thread(service.stop)
        for connection in (plain, movable):
            async with asyncio.timeout(10):
                await connection.wait_closed()
            farewells.append((connection.close_code, (connection.close_reason or "")[:10]))
    return farewells, left
