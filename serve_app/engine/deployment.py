"""The engine as a Ray Serve deployment: a thin shell that turns leases into streaming calls."""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import ray
from ray import serve

from serve_app.errors import AtCapacity
from serve_app.link.messages import Grant, Refusal
from serve_app.settings import Settings
from serve_app.speech import History, ModelInfo
from serve_app.telemetry import configure_logging, get_logger

if TYPE_CHECKING:
    from serve_app.engine.service import EngineService

_log = get_logger(__name__)

CONTROL_CALLS = 32
"""Calls beside the sessions that a replica must be able to answer, with a refusal, when every slot is taken."""


class Engine:
    """One replica: one model, its slots, its link server."""

    async def __init__(self, settings: Settings) -> None:  # type: ignore[misc]  # Serve awaits it
        """Load the model; Serve counts the replica as started when this is through. Raises CheckpointError."""
        configure_logging(settings.log_level, settings.log_format)
        name = serve.get_replica_context().replica_id.unique_id
        self._service = await asyncio.to_thread(_load, settings, name)
        host = ray.util.get_node_ip_address() if settings.link.host == "auto" else settings.link.host
        await self._service.start(host, settings.link.port)

    async def describe(self) -> ModelInfo:
        """Facts about the loaded model."""
        return self._service.info

    async def open_session(self, session_id: str, history: History | None = None) -> AsyncIterator[Grant | Refusal]:
        """Lease a slot for as long as the call stays open; with a history, for a stream that continues after it.

        The first item is the grant, or the refusal. The call ends by itself when the stream does.
        """
        try:
            with self._service.lease(history) as lease:
                _log.info("lease opened", session_id=session_id, stream=lease.grant.stream)
                yield lease.grant
                await lease.wait_ended()
        except AtCapacity as refusal:
            yield Refusal(self._service.name, refusal.message)

    async def check_health(self) -> None:
        """Raise if the step loop is broken: Serve then replaces this replica."""
        self._service.check_health()

    async def __del__(self) -> None:
        """Serve awaits this when the replica is stopped gracefully."""
        if hasattr(self, "_service"):  # the constructor may have failed
            await self._service.stop()


def _load(settings: Settings, name: str) -> "EngineService":
    # Here, not at the top of the file: whoever builds the application needs no torch for it.
    from serve_app.engine.loading import load_model
    from serve_app.engine.service import EngineService

    return EngineService(load_model(settings), name=name, engine=settings.engine, link=settings.link)
