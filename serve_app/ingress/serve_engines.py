"""Engines as Ray Serve runs them: leases through a deployment handle, audio through links.

A lease is one streaming call that stays open as long as its session: Serve counts sessions as ongoing requests with it.
Its first item says where the stream is and what opens it; everything else goes over the link.
"""

import asyncio
import random
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import numpy as np
from numpy.typing import NDArray
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from serve_app.errors import NO_ENGINE, AtCapacity, EngineLost, ModelNotReady
from serve_app.ingress.replicas import EngineReplicas, replicas_of
from serve_app.link.client import LinkClient, StreamListener
from serve_app.link.messages import Grant, Refusal
from serve_app.settings import AutoscalingSettings, LinkSettings
from serve_app.speech import History, ModelInfo
from serve_app.tasks import look_at
from serve_app.telemetry import get_logger

_log = get_logger(__name__)

RETRY_SECONDS = 0.1
"""Mean time between two rounds of asking engines for a lease; it grows while engines are being started."""

MOST_RETRY_SECONDS = 1.0
"""How far it grows."""

FULL_SECONDS = 0.1
"""How long to go on asking when every engine is full: a session that has just ended gives its slot back in less."""

KNOWN_FULL_SECONDS = 0.3
"""How long after every engine has refused nobody new has to ask, unless a session here gives its slot back."""

MOVE_SECONDS = 0.7
"""How long to go on asking for a session that moves: it tries again by itself, and is held up meanwhile."""

PROBE_SECONDS = 1.0
"""Time between two looks whether an engine is there."""

PROBE_TIMEOUT_SECONDS = 3.0
"""How long an engine may take to answer such a look."""


class _Search(NamedTuple):
    """A session's search for a slot."""

    started_at: float
    timeout_s: float
    patient: bool
    """Whether it waits for engines that are being started."""


class ServeEngines:
    """Opens streams on the replicas of an engine deployment (implements `serve_app.session.engines.Engines`)."""

    def __init__(
        self,
        handle: Any,
        link: LinkSettings,
        admission_timeout_seconds: float,
        autoscaling: AutoscalingSettings | None = None,
    ) -> None:
        """`handle` is the engine deployment's handle; its calls stream. `autoscaling` if engines come and go."""
        self._handle = handle
        self._replicas = replicas_of(handle.deployment_name)
        self._link_settings = link
        self._admission_timeout_seconds = admission_timeout_seconds
        self._autoscaling = autoscaling
        self._links: dict[tuple[str, int], LinkClient] = {}
        # Held while a link is made: there for as long as somebody holds or awaits it, and no longer.
        self._connecting: WeakValueDictionary[tuple[str, int], asyncio.Lock] = WeakValueDictionary()
        self._info: ModelInfo | None = None
        self._is_known = asyncio.Event()
        self._ready = False
        self._leases: set[LeasedStream] = set()
        self._probe: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start looking for an engine, and listening for engines that are stopped."""
        self._replicas.subscribe(self._on_stopped)
        self._probe = asyncio.create_task(self._watch_readiness(), name="engine-probe")

    async def stop(self) -> None:
        """Close every link; streams that are still open are lost."""
        if self._probe:
            self._probe.cancel()
        await asyncio.gather(*(link.close() for link in self._links.values()))

    @property
    def is_ready(self) -> bool:
        """Whether an engine with a loaded model has been reached, and not been lost since."""
        return self._ready

    @property
    def info(self) -> ModelInfo:
        """Facts about the model. Raises ModelNotReady before the first engine was reached."""
        if self._info is None:
            raise ModelNotReady(NO_ENGINE)
        return self._info

    async def wait_until_known(self) -> None:
        """Where engines come and go, wait until one has told `info`, or could not be started in time.

        None may be there before the first session comes; looking for one has woken it.
        """
        if self._autoscaling:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._autoscaling.start_timeout_seconds):
                    await self._is_known.wait()

    @property
    def leases(self) -> int:
        """Slots that are held now."""
        return len(self._leases)

    @property
    def can_grow(self) -> bool:
        """Whether more engines may come: a session that finds no slot should wait for those."""
        return self._autoscaling is not None and len(self._replicas) < self._autoscaling.max_replicas

    @property
    def is_full(self) -> bool:
        """Whether every engine has refused a moment ago, and no session here has given its slot back since."""
        return not self.can_grow and self._replicas.are_full(KNOWN_FULL_SECONDS)

    def loads(self) -> Mapping[str, dict[str, float]]:
        """The latest load report of each connected engine replica, by replica name."""
        return {link.name: link.load for link in self._links.values() if link.is_open}

    async def open(
        self, session_id: str, listener: StreamListener, history: History | None = None, *, patient: bool = True
    ) -> "LeasedStream":
        """Lease a slot and attach to it.

        Raises AtCapacity, as soon as every engine has said that it is full, or if nobody answers in time. Who is
        `patient` waits for `start_timeout_seconds` while more engines may come.
        """
        timeout_s = MOVE_SECONDS if history is not None else self._admission_timeout_seconds
        search = _Search(asyncio.get_running_loop().time(), timeout_s, patient)
        reason: object = "no engine answered"
        rounds = 0
        asked: set[str] = set()  # in this round
        while True:
            lease = self._handle.open_session.remote(session_id, history)
            try:
                grant = await self._first_item(lease, search)
                if isinstance(grant, Grant):
                    stream = await self._attach(grant, listener, lease, timeout_s)
                    lease = None  # it is the stream's from here on
                    return stream
                self._replicas.note_refusal(grant.replica)
                reason = grant.reason
                now = asyncio.get_running_loop().time()
                is_full = now > self._hopes_until(search) and self._replicas.have_all_refused()
                if is_full and not self._waits_for_engines(search):
                    raise AtCapacity(f"{reason}; waited {now - search.started_at:.1f} s")
                # Oldest first, the one with room may be the last: all are asked before the first is asked again.
                if grant.replica in asked or self._replicas.have_all_refused():
                    rounds += 1
                    asked.clear()
                    await self._pause(rounds, search)
                else:
                    asked.add(grant.replica)
            except TimeoutError:
                waited_s = asyncio.get_running_loop().time() - search.started_at
                raise AtCapacity(f"{reason}; waited {waited_s:.1f} s") from None
            except (RayError, RayServeException, EngineLost, StopAsyncIteration) as error:
                # The replica died under the call, or between its grant and the attach: another one may do.
                _log.warning("lease failed", session_id=session_id, error=repr(error))
                reason = "no engine answers"
                await asyncio.sleep(RETRY_SECONDS)
            finally:
                if lease is not None:
                    _cancel(lease)

    def _waits_for_engines(self, search: _Search) -> bool:
        return search.patient and self.can_grow

    def _hopes_until(self, search: _Search) -> float:
        """Until when refusals do not count yet."""
        if self._replicas.grown_at < search.started_at:
            return search.started_at + FULL_SECONDS
        # All who have waited rush to the new engine: for a moment, calls that were given up may hold its slots.
        return self._replicas.grown_at + search.timeout_s

    def _deadline(self, search: _Search) -> float:
        """Until when it goes on, as things are now."""
        deadline = search.started_at + search.timeout_s
        if not self._autoscaling or not search.patient:
            return deadline
        if self.can_grow:
            return search.started_at + self._autoscaling.start_timeout_seconds
        # Those who have waited for the last engine must have the time to reach it.
        return max(deadline, self._replicas.grown_at + search.timeout_s)

    async def _first_item(self, lease: Any, search: _Search) -> Grant | Refusal:
        """What an engine answers; Serve holds the call while every engine is full. Raises TimeoutError."""
        loop = asyncio.get_running_loop()
        item = asyncio.ensure_future(anext(lease))
        try:
            while not item.done():
                remaining_s = self._deadline(search) - loop.time()
                if remaining_s <= 0:
                    raise TimeoutError
                await asyncio.wait([item], timeout=min(remaining_s, PROBE_SECONDS))
            return item.result()
        finally:
            item.add_done_callback(look_at)  # Ray turns the cancellation into an error of its own
            item.cancel()

    async def _pause(self, rounds: int, search: _Search) -> None:
        """Wait before all are asked again. Raises TimeoutError.

        The refused call stays open meanwhile: so Serve counts who waits, and the autoscaler makes room for them.
        """
        longest_s = MOST_RETRY_SECONDS if self._waits_for_engines(search) else RETRY_SECONDS
        async with asyncio.timeout_at(self._deadline(search)):
            await asyncio.sleep(min(RETRY_SECONDS * rounds, longest_s) * random.uniform(0.5, 1.5))

    def _on_stopped(self, names: set[str]) -> None:
        """Serve stops these replicas: their sessions must leave, for then they end in seconds."""
        for link in self._links.values():
            if link.name in names:
                _log.info("engine is being stopped", engine=link.name)
                link.announce_draining()

    async def _attach(self, grant: Grant, listener: StreamListener, lease: Any, timeout_s: float) -> "LeasedStream":
        """Raises EngineLost, and TimeoutError."""
        try:
            async with asyncio.timeout(timeout_s):
                link = await self._link(grant)
                await link.attach(grant, listener)
        except (EngineLost, TimeoutError):
            self._replicas.note_lost(grant.replica)  # or Serve's router offers it again at once
            raise
        if grant.replica not in self._replicas:  # its streams have been told to leave while this one was on its way
            link.detach(grant.stream)
            raise EngineLost(f"engine {grant.replica} is being stopped")
        stream = LeasedStream(link, grant.stream, lease, self._leases, self._replicas)
        self._leases.add(stream)
        return stream

    async def _link(self, grant: Grant) -> LinkClient:
        """The open connection to the grant's engine, made if there is none."""
        endpoint = (grant.host, grant.port)
        async with self._connecting.setdefault(endpoint, asyncio.Lock()):
            link = self._links.get(endpoint)
            if link is None or not link.is_open:
                link = await LinkClient.connect(*endpoint, self._link_settings, name=grant.replica)
                self._links[endpoint] = link
            return link

    async def _watch_readiness(self) -> None:
        """An open link shows that an engine is there; without one, ask now and then."""
        while True:
            for endpoint in [endpoint for endpoint, link in self._links.items() if not link.is_open]:
                self._replicas.note_lost(self._links.pop(endpoint).name)
            self._ready = bool(self._links) or await self._is_engine_there()
            await asyncio.sleep(PROBE_SECONDS)

    async def _is_engine_there(self) -> bool:
        if self._info and self._autoscaling:
            # A look is a call: it would wake an engine, or keep one awake. Without any, the next session wakes one.
            return len(self._replicas) > 0 or self._autoscaling.min_replicas == 0
        return await self._find_engine()

    async def _find_engine(self) -> bool:
        """Whether any engine tells the facts of its model in time."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_SECONDS):
                info = await self._handle.options(stream=False).describe.remote()
        except TimeoutError:
            return False
        except Exception as error:  # Serve raises many kinds; none of them may end the watch
            _log.warning("no engine answers", error=repr(error))
            return False
        if self._info is None:
            _log.info("engine found", model=info.name)
        self._info = info
        self._is_known.set()
        return True


class LeasedStream:
    """A slot held through a lease (implements `serve_app.session.engines.EngineStream`)."""

    def __init__(
        self, link: LinkClient, stream: int, lease: Any, held: set["LeasedStream"], replicas: EngineReplicas
    ) -> None:
        """`held` are the leases that this one leaves when it is closed, `replicas` are told of the room."""
        self._replicas = replicas
        self._link = link
        self._stream = stream
        self._lease = lease
        self._held = held

    def send(self, frames: NDArray[np.float32]) -> None:
        """Send frames, float32 [n, FRAME_SAMPLES]."""
        self._link.send(self._stream, frames)

    def close(self) -> None:
        """Give the slot back. The link tells the engine at once; the lease is a call whose answer must not be left."""
        self._held.discard(self)
        self._link.detach(self._stream)
        _cancel(self._lease)
        if self._link.is_open:
            self._replicas.note_room(self._link.name)


def _cancel(lease: Any) -> None:
    try:
        lease.cancel()
    except Exception as error:  # it re-raises whatever went wrong when the call was assigned to a replica
        _log.debug("lease was never assigned", error=repr(error))
