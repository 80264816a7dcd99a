"""The Kafka bridge as a Ray Serve deployment: a thin shell; partitions are shared out by the brokers."""

import asyncio

from prometheus_client import CollectorRegistry
from ray import serve

from serve_app.bridges.bridge import Bridge
from serve_app.settings import Settings
from serve_app.telemetry import configure_logging
from serve_app.telemetry.board import BRIDGE, Source
from serve_app.telemetry.bridge_metrics import BridgeMetrics
from serve_app.telemetry.publisher import Publisher
from serve_app.telemetry.ray_board import RayBoard


class BridgeReplica:
    """One replica: one member of the consumer group."""

    async def __init__(self, settings: Settings, url: str, key: str | None) -> None:  # type: ignore[misc]  # Serve awaits it
        """`url` is where the service is, `key` what it asks for."""
        configure_logging(settings.log_level, settings.log_format)
        if settings.kafka is None:
            raise ValueError("expected settings with a group kafka, got none")
        metrics = BridgeMetrics(CollectorRegistry())
        self._bridge = Bridge(settings.kafka, url, key, metrics)
        source = Source(BRIDGE, serve.get_replica_context().replica_id.unique_id)
        self._publisher = Publisher(source, metrics.registry, RayBoard(settings.app_name))
        self._publisher.start()
        self._running = asyncio.create_task(self._bridge.run(), name="bridge")

    async def check_health(self) -> None:
        """Raise if the bridge has stopped: Serve then replaces this replica."""
        if self._running.done():
            raise RuntimeError("the bridge has stopped")

    async def __del__(self) -> None:
        """Serve awaits this when the replica is stopped gracefully: a last transaction, and the partitions go back."""
        if hasattr(self, "_running"):  # the constructor may have failed
            self._bridge.stop()
            await self._running
            await self._publisher.stop()
