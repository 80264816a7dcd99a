"""A Ray cluster of several nodes on this machine: each one a session of processes, which is killed at once."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import psutil

from serve_app.cli import processes
from serve_app.cli.server import IN_REAL_TIME, StartFailed, free_port, private_ray
from serve_app.settings import PROJECT_ROOT

START_SECONDS = 120.0
"""How long a node may take to start."""

STARTS = 3
"""Tries to start one."""

ADDRESS = "127.0.0.2"
"""Of every node: Ray takes 127.0.0.1 for the machine's own one, which others can reach."""

STARTED = b"Ray runtime started"

OBJECT_STORE_BYTES = 100 * 2**20

_RAY = str(Path(sys.executable).with_name("ray"))


class Node:
    """One node: what `ray start` has started, and all that came of it."""

    def __init__(self, options: list[str], environment: dict[str, str], output: BinaryIO) -> None:
        command = [
            _RAY, "start", "--block", "--disable-usage-stats", f"--node-ip-address={ADDRESS}",
            f"--object-store-memory={OBJECT_STORE_BYTES}", "--dashboard-agent-listen-port=0",
            "--min-worker-port=0", "--max-worker-port=0", *options,
        ]  # fmt: skip
        self._session = processes.Session(command, environment, str(PROJECT_ROOT))
        self._started = threading.Event()
        threading.Thread(target=self._copy, args=(output,), daemon=True).start()

    def has_started(self) -> bool:
        """Wait until it is part of the cluster; False if it gives up, as Ray does on a busy machine."""
        deadline = time.monotonic() + START_SECONDS
        while self._session.command.poll() is None and time.monotonic() < deadline:
            if self._started.wait(0.2):
                return True
        return False

    def holds(self, process: psutil.Process) -> bool:
        """Whether the process runs here."""
        try:
            return os.getsid(process.pid) == self._session.command.pid
        except ProcessLookupError:
            return False

    def processes(self, name: str) -> list[psutil.Process]:
        """Those whose command line contains `name`."""
        found = []
        for process in processes.members(self._session.command.pid):
            with contextlib.suppress(psutil.Error):
                if name in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill(self) -> None:
        """SIGKILL for everything here."""
        self._session.stop(signal.SIGKILL, patience_s=0)

    def _copy(self, output: BinaryIO) -> None:
        assert self._session.command.stdout is not None  # it is a pipe
        for line in self._session.command.stdout:
            if STARTED in line:
                self._started.set()
            with contextlib.suppress(ValueError):  # it may be closed by now
                output.write(line)


class Nodes:
    """The nodes of a cluster. The first one, the head, has no room for replicas; each of the others has one CPU."""

    def __init__(self, folder: Path, output: BinaryIO) -> None:
        """Start the head. `folder`, whose path must be short, holds its files; `output` gets what nodes print.

        Raises StartFailed.
        """
        self._folder = folder
        self._output = output
        self.token = private_ray(folder)["RAY_AUTH_TOKEN"]
        """What the dashboard wants to see."""
        self._address = ""
        self.dashboard = ""
        """Where the head's dashboard is."""
        self.workers: list[Node] = []
        self.head = self._start(self._head_options)

    def add(self) -> None:
        """Start one more node, and wait until it is there: several at once are too much for Ray. Raises StartFailed."""
        self.workers.append(self._start(lambda: [f"--address={self._address}", "--num-cpus=1"]))

    def of(self, process: psutil.Process) -> Node:
        """The node that a process runs on. Raises LookupError."""
        for node in (self.head, *self.workers):
            if node.holds(process):
                return node
        raise LookupError(f"expected process {process.pid} on a node, it is on none")

    def kill(self, node: Node) -> None:
        """Lose a node without a word."""
        self.workers.remove(node)
        node.kill()

    def stop(self) -> None:
        """End all of them."""
        for node in (*self.workers, self.head):
            node.kill()

    def _head_options(self) -> list[str]:
        """With ports that are free now; one may be taken before Ray has it, and then Ray gives up."""
        gcs, dashboard = free_port(), free_port()
        self._address = f"{ADDRESS}:{gcs}"
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        return [
            "--head", "--num-cpus=0", f"--port={gcs}", f"--temp-dir={self._folder / 'ray'}",
            "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            f"--ray-client-server-port={free_port()}",
        ]  # fmt: skip

    def _start(self, options: Callable[[], list[str]]) -> Node:
        """Start a node; `options` are asked for anew, ports and all, at each try."""
        for _ in range(STARTS):
            environment = private_ray(self._folder) | {
                **IN_REAL_TIME,
                "RAY_AUTH_TOKEN": self.token,
                "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(free_port()),  # each has a proxy, and all have one address
                "PYTHONPATH": str(PROJECT_ROOT),
            }
            node = Node(options(), dict(os.environ) | environment, self._output)
            if node.has_started():
                return node
            node.kill()
        raise StartFailed(f"expected a node to start in one of {STARTS} tries")
