"""What an ingress replica does when Serve stops it: its sessions go on elsewhere, and nobody waits for a timeout.

Serve (2.60) lets a replica that it stops wait for its requests, and kills it after the graceful shutdown timeout; it
tells the application nothing of either. Here the call that begins this is passed on.
"""

import asyncio
import time
from collections.abc import Callable

from ray import serve
from ray.serve._private import replica
from ray.serve._private.common import ReplicaState
from ray.serve.schema import ApplicationStatus

from serve_app.session.registry import SessionRegistry
from serve_app.telemetry import get_logger

_log = get_logger(__name__)

LOOK_SECONDS = 0.5
"""Time between two looks whether another ingress replica is there."""

LAST_SECONDS = 5.0
"""Time before the end of the graceful shutdown at which everybody is sent away, resumable or not."""


def on_graceful_shutdown(begin: Callable[[], None]) -> None:
    """Have `begin()` called in the running event loop when Serve begins to stop this process's replica."""
    loop = asyncio.get_running_loop()
    stop = replica.Replica.perform_graceful_shutdown

    async def tell_and_stop(self: replica.Replica) -> None:
        loop.call_soon_threadsafe(begin)
        await stop(self)

    replica.Replica.perform_graceful_shutdown = tell_and_stop


class Shutdown:
    """Empties an ingress replica that is being stopped."""

    def __init__(self, sessions: SessionRegistry, app_name: str, deployment: str, timeout_seconds: float) -> None:
        """`timeout_seconds` is when Serve kills the replica."""
        self._sessions = sessions
        self._app_name = app_name
        self._deployment = deployment
        self._timeout_seconds = timeout_seconds
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start; a second call changes nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._empty(), name="shutdown")

    async def _empty(self) -> None:
        """Move clients out that resume by themselves as soon as another replica takes them, the others at the end."""
        deadline = time.monotonic() + max(0.0, self._timeout_seconds - LAST_SECONDS)
        _log.info("shutdown begins", sessions=len(self._sessions))
        self._sessions.close()
        while len(self._sessions) and time.monotonic() < deadline:
            another, ends = await asyncio.to_thread(self._look)
            if ends:
                break
            if another:
                self._sessions.move_out(everyone=False)
            await asyncio.sleep(LOOK_SECONDS)
        self._sessions.move_out(everyone=True)
        _log.info("shutdown: the last sessions were sent away", sessions=len(self._sessions))

    def _look(self) -> tuple[bool, bool]:
        """Whether another replica of this deployment runs, and whether the whole application is going."""
        try:
            application = serve.status().applications.get(self._app_name)
        except Exception as error:  # the controller may be going too
            _log.warning("Serve does not tell its status", error=repr(error))
            return False, False
        if application is None or application.status is ApplicationStatus.DELETING:
            return False, True
        deployment = application.deployments.get(self._deployment)
        running = deployment.replica_states.get(ReplicaState.RUNNING, 0) if deployment else 0
        return running > 0, False
