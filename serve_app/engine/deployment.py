"""The engine as a Ray Serve deployment: a thin shell that turns leases into streaming calls."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import ray
from prometheus_client import CollectorRegistry
from ray import serve

from serve_app.engine.start_times import StartTimes
from serve_app.errors import AtCapacity
from serve_app.link.messages import Grant, Refusal
from serve_app.openmp import wait_without_spinning
from serve_app.settings import Settings
from serve_app.speech import History, ModelInfo
from serve_app.telemetry import EngineMetrics, configure_logging, get_logger
from serve_app.telemetry.board import ENGINE, Source
from serve_app.telemetry.publisher import Publisher
from serve_app.telemetry.ray_board import RayBoard

if TYPE_CHECKING:
    from serve_app.engine.service import EngineService

_log = get_logger(__name__)

CONTROL_CALLS = 32
"""Calls beside the sessions that a replica must be able to answer, with a refusal, when every slot is taken."""

REFUSED_SECONDS = 2.0
"""Longest time that a refused call stays open; its caller ends it before that."""


class Engine:
    """One replica: one model, its slots, its link server."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        """Load the model; Serve counts the replica as started when this is through. Raises CheckpointError."""
        times = StartTimes()
        configure_logging(settings.log_level, settings.log_format)
        name = serve.get_replica_context().replica_id.unique_id
        metrics = EngineMetrics(CollectorRegistry())
        self._service = await asyncio.to_thread(_load, settings, name, metrics, times)
        for stage, seconds in times.as_fields().items():
            metrics.start_seconds.labels(stage.removesuffix("_seconds")).set(seconds)
        host = ray.util.get_node_ip_address() if settings.link.host == "auto" else settings.link.host
        await self._service.start(host, settings.link.port)
        self._publisher = Publisher(Source(ENGINE, name, settings.model), metrics.registry, RayBoard(settings.app_name))
        self._publisher.start()

    async def describe(self) -> ModelInfo:
        """Facts about the loaded model."""
        return self._service.info

    async def open_session(self, session_id: str, history: History | None = None) -> AsyncIterator[Grant | Refusal]:
        """Lease a slot for as long as the call stays open; with a history, for a stream that continues after it.

        The first item is the grant, or the refusal. The call ends by itself when the stream does, or a while after the
        refusal.
        """
        try:
            with self._service.lease(history) as lease:
                _log.info("lease opened", session_id=session_id, stream=lease.grant.stream)
                yield lease.grant
                await lease.wait_ended()
        except AtCapacity as refusal:
            yield Refusal(self._service.name, refusal.message)
            # Whoever goes on waiting keeps the call: Serve counts it as a session that needs a slot.
            await asyncio.sleep(REFUSED_SECONDS)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `serve_app.autoscaling` wants to know of this replica; Serve asks about once a second."""
        load = self._service.load()
        return {name: load[name] for name in ("slots", "slots_used", "headroom")}

    async def check_health(self) -> None:
        """Raise if the step loop is broken: Serve then replaces this replica."""
        self._service.check_health()

    async def __del__(self) -> None:
        """Serve awaits this when the replica is stopped gracefully."""
        if hasattr(self, "_service"):  # the constructor may have failed
            await self._service.stop()
        if hasattr(self, "_publisher"):
            await self._publisher.stop()


def _load(settings: Settings, name: str, metrics: EngineMetrics, times: StartTimes) -> "EngineService":
    wait_without_spinning()
    with times.stage("imports"):
        # Here, not at the top of the file: whoever builds the application needs no torch for it.
        from serve_app.engine.loading import load_model
        from serve_app.engine.service import EngineService

    model = load_model(settings, times)
    return EngineService(model, name=name, engine=settings.engine, link=settings.link, metrics=metrics)
