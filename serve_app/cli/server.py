"""Run the service as `serve run` does, beside anything else on this machine, and leave nothing behind."""

import contextlib
import errno
import json
import random
import re
import secrets
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, BinaryIO

import httpx
import typer
import yaml

from serve_app.cli import leftovers, open_files, own_cpus, processes
from serve_app.cli.config import Address, Overrides, effective_config
from serve_app.cli.own_gpus import OwnGpus
from serve_app.cli.ray_access import write_ray_access
from serve_app.cli.serve_status import failure
from serve_app.errors import NO_ENGINE
from serve_app.settings import PROJECT_ROOT

START_TIMEOUT_S = 300.0
"""How long a start may take by default: Ray, the application, and loading a model. A download comes before."""

FAREWELL_S = 10.0
"""How long clients are sent away before everything is stopped."""

LOOKS = 3
"""Looks in a row that must show no client."""

LOG_TAIL_LINES = 20

SERVE_DEFAULT_NAME = "default"
"""What Serve calls an application without a name."""

_DASHBOARD = re.compile(rb"http://[\w.:\[\]-]+:\d+")
_COLOURS = re.compile(rb"\x1b\[[0-9;]*m")


StartTimeout = Annotated[
    float,
    typer.Option(
        min=1,
        help="Seconds the start may take. A model is downloaded before that, however long it takes; only on a cluster "
        "(RAY_ADDRESS), where the engines download it, the download counts.",
    ),
]
"""The option of the commands that start the service."""


class StartFailed(Exception):
    """The service did not come up; the text says why."""


PORTS = range(20_000, 30_000)
"""Where to look for free ports: below those that the kernel gives to anybody (from 32768) and Serve's (30000)."""


def free_port() -> int:
    """A TCP port that is free on every interface right now. Raises StartFailed if none can be found."""
    for port in random.sample(PORTS, 100):
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            return port
    raise StartFailed(f"no free port found between {PORTS.start} and {PORTS.stop}")


class Server:
    """A service that is starting or running in processes of its own."""

    def __init__(
        self,
        file: Path,
        config: dict[str, Any],
        address: Address,
        environment: dict[str, str],
        output: BinaryIO,
    ) -> None:
        """`file` holds the config; its folder is the service's own."""
        serve = str(Path(sys.executable).with_name("serve"))
        command = [serve, "run", "--app-dir", str(PROJECT_ROOT), str(file)]
        self._config = config
        self._application = config["applications"][0].get("name", SERVE_DEFAULT_NAME)
        self._address = address
        self._folder = file.parent
        self._environment = environment
        self._private = environment["RAY_ADDRESS"] == "local"
        self._authorization = {"Authorization": f"Bearer {environment.get('RAY_AUTH_TOKEN', '')}"}
        self._dashboard: str | None = None
        self._tail: deque[bytes] = deque(maxlen=LOG_TAIL_LINES)
        self._session = processes.Session(command, environment, str(PROJECT_ROOT))
        self._copying = threading.Thread(target=self._copy_output, args=(output,), daemon=True)
        self._copying.start()

    @property
    def url(self) -> str:
        """Where clients stream to."""
        return f"ws://{self._address.reachable_host}:{self._address.port}/v1/stream"

    @property
    def session(self) -> int:
        """The session that holds the service's processes."""
        return self._session.command.pid

    def ray_access(self) -> Path | None:
        """A new file that lets programs join the service's Ray; None where that is somebody else's cluster."""
        return write_ray_access(self._folder, self.session, self._environment) if self._private else None

    def wait_until_ready(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Wait until every model takes sessions. Raises `StartFailed` with the reason where that does not happen."""
        ready = f"http://{self._address.reachable_host}:{self._address.port}/readyz"
        deadline = time.monotonic() + timeout_s
        with httpx.Client(timeout=5, trust_env=False) as http:
            while time.monotonic() < deadline:
                if (status := self._session.command.poll()) is not None:
                    self._copying.join(5)
                    raise StartFailed(f"`serve run` ended with exit status {status}\n{self._log_tail()}")
                with contextlib.suppress(httpx.HTTPError):
                    answer = http.get(ready)
                    if answer.status_code == httpx.codes.OK and NO_ENGINE not in answer.text:
                        return
                if reason := self._deployment_failure(http):
                    raise StartFailed(reason)
                time.sleep(0.25)
        raise StartFailed(f"not ready after {timeout_s:g} s\n{self._log_tail()}")

    def wait(self) -> int:
        """Wait for the end of the service; its exit status."""
        return self._session.command.wait()

    def stop(self) -> None:
        """End the service and every process it started."""
        # A Ray of our own just ends; on somebody else's cluster Serve must be told to shut down, and may drain first.
        if self._private:
            if self._session.command.poll() is None:
                self._send_clients_away()
            self._session.stop(signal.SIGTERM, patience_s=10)
        else:
            self._session.stop(signal.SIGINT, patience_s=60)
        self._copying.join(5)

    def _send_clients_away(self) -> None:
        """Have the ingress tell its clients that the service stops (close code 1012), and wait for that, bounded."""
        status = f"http://{self._address.reachable_host}:{self._address.port}/status"
        deadline = time.monotonic() + FAREWELL_S
        told = False
        with (
            contextlib.suppress(httpx.HTTPError, ValueError, KeyError),
            httpx.Client(timeout=FAREWELL_S / 2, trust_env=False) as http,
        ):
            # Each look may reach another ingress replica. When none answers any more, nobody is left to be told.
            while time.monotonic() < deadline and any(self._clients(http, status) for _ in range(LOOKS)):
                if not told and self._dashboard:
                    told = True  # without applications: Serve stops ours, and leaves the proxy in front of it alone
                    http.put(
                        f"{self._dashboard}/api/serve/applications/",
                        json=json.loads(json.dumps(self._config | {"applications": []})),
                        headers=self._authorization,
                    )
                time.sleep(0.25)

    @staticmethod
    def _clients(http: httpx.Client, status: str) -> int:
        answer = http.get(status)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            return 1  # we have no key, and there may be some
        held = answer.raise_for_status().json()["held"]
        return int(held["sessions"] + held["clients_waiting"])

    def _copy_output(self, output: BinaryIO) -> None:
        assert self._session.command.stdout is not None  # it is a pipe
        for line in self._session.command.stdout:
            plain = _COLOURS.sub(b"", line)
            self._tail.append(plain)
            if self._dashboard is None and b"dashboard at" in plain and (found := _DASHBOARD.search(plain)):
                self._dashboard = found[0].decode()
            with contextlib.suppress(OSError, ValueError):  # a closed terminal must not stop the service
                output.write(line)
                output.flush()

    def _deployment_failure(self, http: httpx.Client) -> str | None:
        """Why an application failed to deploy, by Serve's own account: `serve run` itself goes on as if nothing was."""
        if self._dashboard is None:
            return None
        try:
            answer = http.get(f"{self._dashboard}/api/serve/applications/", headers=self._authorization).json()
            return failure(answer["applications"], self._application)
        except (httpx.HTTPError, ValueError, KeyError, TypeError, AttributeError):
            pass  # the dashboard comes up after Ray does, and has no applications at first
        return None

    def _log_tail(self) -> str:
        return b"".join(self._tail).decode(errors="replace").rstrip()


@contextlib.contextmanager
def running(config: Path, overrides: Overrides, output: BinaryIO) -> Iterator[Server]:
    """Start the service; whatever ends the block ends the service.

    Signals that would end this process raise SystemExit inside the block. `output` gets what the service prints.
    Raises `UnusableConfig`, `StartFailed`, and `SettingsError` where strangers could come in unasked, or where
    replicas ask a Ray of our own for GPUs or CPUs that this machine does not have.
    """
    effective, address = effective_config(config, overrides)
    _check_free(address)
    settings = overrides.settings(config)
    settings.auth.check_host(address.host)
    if overrides.private:
        OwnGpus.found().check(*(served.engine for served in settings.served.values()))
        if not effective["applications"][0].get("deployments"):  # Serve's own way to ask for something else
            own_cpus.check(settings, own_cpus.found())
    with processes.signals_as_exits():
        leftovers.sweep()
        server, folder = None, leftovers.RunFolder()
        try:
            file = folder.path / "serve_config.yaml"
            file.write_text(yaml.safe_dump(effective, sort_keys=False), encoding="utf-8")
            environment = _environment(overrides, folder.path)
            if overrides.private and (problem := open_files.problem(environment)):
                raise StartFailed(problem)
            server = Server(file, effective, address, environment, output)
            folder.remember(server.session)
            yield server
        finally:
            with processes.signals_ignored():
                if server is not None:
                    server.stop()
                folder.remove()


def _check_free(address: Address) -> None:
    try:
        family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        socket.create_server((address.host, address.port), family=family).close()
    except (OSError, UnicodeError) as error:  # the latter for what can be no host's name
        reason = getattr(error, "strerror", None) or error
        advice = "; --port chooses another" if getattr(error, "errno", None) == errno.EADDRINUSE else ""
        raise StartFailed(f"cannot listen on {address.host}:{address.port} ({reason}){advice}") from None


IN_REAL_TIME = MappingProxyType(
    {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",  # Serve's Python proxy is too slow for audio
        "RAY_worker_niceness": "0",  # Ray's 15 lets everything else on the machine go before words
    }
)
"""What every node's environment should have."""


def private_ray(folder: Path) -> dict[str, str]:
    """The environment of a Ray of our own, apart from all others on this machine; its files lie in `folder`."""
    ports = ("HAPROXY_METRICS", "HAPROXY_STATS", "FALLBACK_PROXY_HTTP", "FALLBACK_PROXY_GRPC")
    return {
        # Its dashboard tells why a deployment failed, to those who know the token.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # What two instances on one machine would fight over; replicas' own ports retry by themselves.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "metrics.sock"),
        **{f"RAY_SERVE_{name}_PORT": str(free_port()) for name in ports},
    }


def _environment(overrides: Overrides, folder: Path) -> dict[str, str]:
    """The environment for `serve run`; what the user set stays, except what `overrides` replace."""
    environment = overrides.environment()
    defaults = {
        **IN_REAL_TIME,
        "RAY_USAGE_STATS_ENABLED": "0",
        "STT_RUN_FOLDER": str(folder),  # tells a later start whose processes these are
    }
    if overrides.private:  # a Ray of our own, whatever else runs here
        defaults |= private_ray(folder)
    return defaults | environment
