"""Applications for a comparison of accelerator types: one after the other on the Ray cluster, each with engines of one.

They get names and routes of their own beside whatever else the cluster serves, and are gone afterwards, whatever
happens. Serve itself is only shut down again where it was not running before.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import yaml

from serve_app.cli.config import DEFAULT_CONFIG, Overrides, effective_config
from serve_app.cli.processes import signals_as_exits, signals_ignored
from serve_app.settings import PROJECT_ROOT, Settings, from_args

GPUS_FILE = PROJECT_ROOT / "configs" / "gpus.yaml"

POLL_S = 0.5

SHUTDOWN_S = 5


class NoCluster(Exception):
    """There is no Ray cluster to deploy to, or Serve does not run on it."""


class DeployFailed(Exception):
    """An application did not start; the text says why."""


@dataclass(frozen=True)
class App:
    """A running application."""

    url: str
    """Where clients stream to."""
    price_per_stream_hour: float | None
    """Dollars, by `configs/gpus.yaml`; None where that does not know the GPU or the model."""


class Fleet:
    """The cluster, as a context manager: the one that RAY_ADDRESS names, else the one on this machine."""

    def __init__(self, config: Path | None) -> None:
        """`config` is a Serve config file. Raises `UnusableConfig`."""
        self._config, self._address = effective_config(config or DEFAULT_CONFIG, Overrides())
        self._exits = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Connect. Raises `NoCluster`."""
        os.environ.setdefault("RAY_SERVE_ENABLE_HA_PROXY", "1")  # read when Serve is imported
        import ray
        from ray import serve

        from serve_app.app import listening_host

        try:
            ray.init(os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, RuntimeError) as error:  # the latter while a cluster is still starting
            raise NoCluster(
                "expected a Ray cluster to deploy to: set RAY_ADDRESS, or run RAY_SERVE_ENABLE_HA_PROXY=1 ray start"
                f" --head ({error})"
            ) from None
        self._exits.enter_context(signals_as_exits())
        self._exits.callback(ray.shutdown)
        try:
            if listening_host() is None:
                serve.start(http_options={"host": self._address.host, "port": self._address.port})
                self._exits.callback(serve.shutdown)
        except RuntimeError as error:
            self._exits.close()
            raise NoCluster(f"Serve does not start on the cluster: {error}") from None
        except BaseException:
            self._exits.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the cluster as it was."""
        with signals_ignored():
            self._exits.close()

    @contextlib.contextmanager
    def deployed(self, gpu: str, timeout_s: float) -> Iterator[App]:
        """Run an application whose engines ask for this accelerator type. Raises `DeployFailed`, `SettingsError`."""
        from ray import serve

        from serve_app.app import wire

        settings = self._settings(gpu)
        name = settings.app_name
        try:
            target = serve.RunTarget(wire(settings), name=name, route_prefix=f"/{name}")
            serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
            base = self._wait(name, gpu, timeout_s)
            yield App(f"ws://{base}/v1/stream", price_per_stream_hour(gpu, settings.model))
        finally:
            with signals_ignored():
                serve.delete(name)

    def _settings(self, gpu: str) -> Settings:
        args: dict[str, Any] = self._config["applications"][0].get("args") or {}
        engine = {**(args.get("engine") or {}), "gpu": gpu}
        # When it is deleted nobody is there any more.
        ingress = {**(args.get("ingress") or {}), "graceful_shutdown_timeout_seconds": SHUTDOWN_S}
        environment = {name: value for name, value in os.environ.items() if name != "KYUTAI_GPU"}
        return from_args(
            {**args, "engine": engine, "ingress": ingress}, environment, options={"app_name": f"stt-{gpu.lower()}"}
        )

    def _wait(self, name: str, gpu: str, timeout_s: float) -> str:
        """Until the application takes sessions: its host, port and route. Raises `DeployFailed`."""
        from ray import serve
        from ray.serve.context import _get_global_client

        listening = _get_global_client().http_config  # Ray has no public way to ask
        host = "127.0.0.1" if listening.host in ("0.0.0.0", "", "::") else listening.host
        base = f"{host}:{listening.port}/{name}"
        deadline = time.monotonic() + timeout_s
        told = ""
        while time.monotonic() < deadline:
            if application := serve.status().applications.get(name):
                told = application.message or told
                if application.status in ("DEPLOY_FAILED", "UNHEALTHY"):
                    raise DeployFailed(" ".join(told.split()))
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://{base}/readyz", timeout=5, trust_env=False).is_success:
                    return base
            time.sleep(POLL_S)
        raise DeployFailed(f"not ready after {timeout_s:g} s ({_why_not(gpu)}) {' '.join(told.split())}".rstrip())


def price_per_stream_hour(gpu: str, model: str, file: Path = GPUS_FILE) -> float | None:
    """Dollars for one stream on a full GPU; None where the file does not know."""
    try:
        entry = yaml.safe_load(file.read_text(encoding="utf-8"))["gpus"][gpu]
        return float(entry["price"]["dollars_per_hour"] / entry["capacity"][model]["slots"])
    except (FileNotFoundError, LookupError, TypeError):
        return None


def _why_not(gpu: str) -> str:
    """What the cluster has of the accelerator type."""
    import ray

    mark = "accelerator_type:"
    there = sorted(name.removeprefix(mark) for name in ray.cluster_resources() if name.startswith(mark))
    if gpu in there:
        return f"the cluster has {gpu}"
    return f"no node with accelerator type {gpu}; the cluster has {', '.join(there) or 'none'}"
