"""The nodes of `loadtest.chaos`, with a stand-in for `ray start`. With the real one: tests/long/test_chaos.py."""

import itertools
import socket
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

from loadtest.chaos import nodes
from loadtest.chaos.nodes import Nodes
from serve_app.cli.server import StartFailed, free_port

RAY = """
import re, socket, sys, time
ports = re.findall(r"--(?:dashboard-)?port=([0-9]+)", " ".join(sys.argv))
held = [socket.create_server(("127.0.0.1", int(port))) for port in ports]
print("Ray runtime started", flush=True)
time.sleep(600)
"""
"""Takes the ports that it is given, or fails as Ray does."""


@pytest.fixture(autouse=True)
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ray"
    program.write_text(f"#!{sys.executable}{RAY}")
    program.chmod(0o755)
    monkeypatch.setattr(nodes, "_RAY", str(program))


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", free_port())) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("place", [0, 1], ids=["gcs", "dashboard"])
def test_a_port_that_somebody_has_taken_meanwhile_is_chosen_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int, place: int
):
    first = [free_port(), free_port(), free_port()]
    first[place] = taken
    ports = itertools.chain(first, iter(free_port, None))
    monkeypatch.setattr(nodes, "free_port", lambda: next(ports))
    started = Nodes(tmp_path, BytesIO())
    try:
        port = int(started.dashboard.rpartition(":")[2])
        socket.create_connection(("127.0.0.1", port), timeout=60).close()
        started.add()
        assert len(started.workers) == 1
    finally:
        started.stop()


def test_it_gives_up_after_a_few_tries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int):
    monkeypatch.setattr(nodes, "free_port", lambda: taken)
    with pytest.raises(StartFailed, match="in one of 3 tries"):
        Nodes(tmp_path, BytesIO())
