"""A service of our own to harm: two small engines, and what Serve's dashboard tells of them.

It is started by the real launcher on one node, or deployed to several nodes.
"""

import asyncio
import contextlib
import json
import re
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

from loadtest.chaos.nodes import Nodes
from serve_app.cli import leftovers, processes
from serve_app.cli.config import DEFAULT_CONFIG, Overrides
from serve_app.cli.server import free_port, running

ENGINES = 2
APPLICATION = "stt"
POLL_SECONDS = 0.25

START_SECONDS = 180.0
"""How long an application may take to come up on several nodes."""

_DASHBOARD = re.compile(rb"dashboard at \D*?(http://[\w.:\[\]-]+:\d+)")
_COLOURS = re.compile(rb"\x1b\[[0-9;]*m")


class ServiceMisbehaves(Exception):
    """The service did not get where it should within the time it was given."""


@dataclass(frozen=True)
class Replica:
    """One process of the service, as Serve knows it."""

    name: str
    process: psutil.Process


@dataclass(frozen=True)
class _PrivateRay(Overrides):
    """A Ray of our own whose dashboard we may use, whatever the environment says."""

    token: str = ""

    def environment(self) -> dict[str, str]:
        return super().environment() | {
            "RAY_ADDRESS": "local",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
        }


class Service:
    """A running service: where it is, what it says of itself, which processes it consists of, how to redeploy it."""

    def __init__(
        self, url: str, config: dict[str, Any], dashboard: str, token: str, nodes: Nodes | None = None
    ) -> None:
        self.url = url
        """Where clients stream to."""
        self.nodes = nodes
        """What it runs on, if that is more than one node."""
        self._base = url.replace("ws://", "http://").removesuffix("/v1/stream")
        self._config = config
        self._dashboard = dashboard
        self._headers = {"Authorization": f"Bearer {token}"}

    @property
    def slots(self) -> int:
        """Slots of all engines together."""
        engine = self._config["applications"][0]["args"]["engine"]
        return int(engine["slots"]) * int(engine["replicas"])

    async def status(self) -> dict[str, Any]:
        """`GET /status`. Raises httpx.HTTPError while no ingress answers."""
        answer = await self._get(f"{self._base}/status")
        return dict(answer.json())

    async def sessions_over(self, outcome: str) -> int:
        """Sessions that ended with this outcome, by the ingress's own metrics."""
        return int(sum(await self._metric("stt_sessions_total", outcome=outcome)))

    async def moves(self, reason: str) -> int:
        """Sessions that took another slot for this reason, by the ingress's own metrics."""
        return int(sum(await self._metric("stt_moves_total", reason=reason)))

    async def sessions_saved(self) -> int:
        """Sessions in the vault, as the ingress replicas know it; those that have died may still be told of."""
        return int(min(await self._metric("stt_vault_sessions"), default=0))

    async def slots_used(self) -> int:
        """Slots taken on the engines that the ingress is connected to, by its own account."""
        return int(sum(load["slots_used"] for load in (await self.status())["engines"].values()))

    async def replicas(self, deployment: str) -> list[Replica]:
        """The living replicas of a deployment that Serve counts as running."""
        answer = await self._get(f"{self._dashboard}/api/serve/applications/", headers=self._headers)
        found = []
        for replica in answer.json()["applications"][APPLICATION]["deployments"][deployment]["replicas"]:
            if replica["state"] != "RUNNING":
                continue
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(replica["pid"])
                if f"ServeReplica:{APPLICATION}:{deployment}" in " ".join(process.cmdline()):
                    found.append(Replica(replica["replica_id"], process))
        return found

    async def vault(self) -> psutil.Process:
        """The process that keeps the checkpoints. Raises LookupError while there is none."""
        engine = (await self.replicas("engine"))[0].process
        for process in engine.parent().children():  # of the node that runs everything here
            with contextlib.suppress(psutil.Error):
                if "VaultActor" in " ".join(process.cmdline()):
                    return process
        raise LookupError("expected a vault among the node's processes, got none")

    async def busiest_engine(self) -> Replica:
        """The engine that holds the most sessions."""
        loads = (await self.status())["engines"]
        replicas = await self.replicas("engine")
        return max(replicas, key=lambda replica: loads.get(replica.name, {}).get("slots_used", 0.0))

    async def wait_for_replicas(self, deployment: str, count: int, without: frozenset[str] = frozenset()) -> None:
        """Wait until as many replicas run, none of them one of `without`."""

        async def reached() -> bool:
            names = {replica.name for replica in await self.replicas(deployment)}
            return len(names) == count and not names & without

        await self.wait_until(reached, f"{count} running replicas of {deployment}", timeout_s=90)

    async def wait_until(self, reached: Callable[[], Awaitable[bool]], what: str, timeout_s: float) -> None:
        """Wait for a condition, not reached while the service cannot be asked. Raises ServiceMisbehaves."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError, ValueError, LookupError):
                if await reached():
                    return
            await asyncio.sleep(POLL_SECONDS)
        raise ServiceMisbehaves(f"expected {what} within {timeout_s:g} s")

    async def deploy(
        self, args: Mapping[str, Any] | None = None, engine_deployment: Mapping[str, Any] | None = None
    ) -> None:
        """Do what `serve deploy` does, with these changes to the config that runs now.

        `args` are the application's, group by group; `engine_deployment` are options of the engine's deployment.
        """
        config = deepcopy(self._config)
        application = config["applications"][0]
        application["args"] = _merged(application["args"], args or {})
        if engine_deployment:
            application["deployments"] = [{"name": "engine", **engine_deployment}]
        async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
            address = f"{self._dashboard}/api/serve/applications/"
            answer = await http.put(address, json=config, headers=self._headers)
        if answer.is_error:
            raise ServiceMisbehaves(f"Serve refused the new config: {answer.text.strip()}")
        self._config = config

    async def _metric(self, name: str, **labels: str) -> list[float]:
        text = (await self._get(f"{self._base}/metrics")).text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return [s.value for s in samples if s.name == name and labels.items() <= s.labels.items()]

    async def _get(self, address: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
            answer = await http.get(address, headers=dict(headers or {}))
            return answer.raise_for_status()


@contextlib.contextmanager
def started(slots: int, args: Mapping[str, Any], log: Path) -> Iterator[Service]:
    """Run a service with `slots` per engine and further `args`; everything ends with the block.

    Raises what `serve_app.cli.server.running` and `wait_until_ready` raise.
    """
    config, port = _config(slots, args), free_port()
    token = secrets.token_hex(32)
    overrides = _PrivateRay(host="127.0.0.1", port=port, name=APPLICATION, token=token)
    with tempfile.TemporaryDirectory(prefix="stt-chaos-") as folder, log.open("wb") as output:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(config), encoding="utf-8")
        with running(file, overrides, output) as server:
            server.wait_until_ready()
            found = _DASHBOARD.search(_COLOURS.sub(b"", log.read_bytes()))
            if found is None:
                raise ServiceMisbehaves("expected Ray to print the address of its dashboard")
            config["http_options"] = {"host": "127.0.0.1", "port": port}
            yield Service(server.url, config, found[1].decode(), token)


@contextlib.contextmanager
def started_on_nodes(count: int, slots: int, args: Mapping[str, Any], log: Path) -> Iterator[Service]:
    """The same on as many nodes and a head, each with room for two replicas. Raises StartFailed, ServiceMisbehaves."""
    half = {"num_cpus": 0.5}
    config, port = _config(slots, _merged(args, {"engine": half, "ingress": half})), free_port()
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    folder = leftovers.RunFolder()
    with log.open("wb") as output, processes.signals_as_exits():
        nodes = None
        try:
            nodes = Nodes(folder.path, output)
            for _ in range(count):
                nodes.add()
            service = Service(f"ws://127.0.0.1:{port}/v1/stream", config, nodes.dashboard, nodes.token, nodes)
            asyncio.run(_deployed(service))
            yield service
        finally:
            with processes.signals_ignored():
                if nodes:
                    nodes.stop()
                folder.remove()


async def _deployed(service: Service) -> None:
    async def accepted() -> bool:
        await service.deploy()
        return True

    async def answers() -> bool:
        return bool((await service.status())["ready"])

    await service.wait_until(accepted, "an answer of Ray's dashboard", START_SECONDS)
    await service.wait_until(answers, "an ingress with an engine", START_SECONDS)


def _config(slots: int, args: Mapping[str, Any]) -> dict[str, Any]:
    """What to deploy."""
    config = yaml.safe_load(DEFAULT_CONFIG.read_text(encoding="utf-8"))
    # Several engines share the cores with everything else: fractions, so that Ray places them on any machine.
    small: dict[str, Any] = {
        "model": "demo",
        # What is looked for is loss: a machine that does other things, too, must not look like a full service.
        "engine": {"slots": slots, "num_cpus": 0.3, "torch_threads": 1, "min_headroom": -100.0},
        "ingress": {"num_cpus": 0.2},
    }
    if "autoscaling" not in args.get("engine", {}):
        small["engine"]["replicas"] = ENGINES
    config["applications"][0] |= {"name": APPLICATION, "args": _merged(small, args)}
    # JSON, because that is what goes to the dashboard later: numbers and names only.
    return dict(json.loads(json.dumps(config)))


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Both, group by group; the changes win."""
    result = dict(base)
    for key, value in changes.items():
        result[key] = _merged(result.get(key, {}), value) if isinstance(value, Mapping) else value
    return result
