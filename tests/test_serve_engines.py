"""How long a session looks for a slot. With real engines and a real Serve: tests/long/test_scaling.py."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Generator
from typing import ClassVar

import numpy as np
import pytest

from serve_app.errors import AtCapacity, ModelNotReady, SpeechError
from serve_app.ingress import serve_engines
from serve_app.ingress.placement import Placement
from serve_app.ingress.replicas import EngineReplicas
from serve_app.ingress.serve_engines import ServeEngines
from serve_app.link.client import LinkClient
from serve_app.link.messages import Grant, Refusal
from serve_app.link.server import LinkServer
from serve_app.settings import AutoscalingSettings, LinkSettings
from serve_app.speech import ModelInfo

MODEL = ModelInfo("demo", ("a",), 6, 0, 100, 10, 8, 4)
ADMISSION_S = 0.05
START_S = 0.4


class Handle:
    """Serve's handle of an engine deployment whose replicas, if there are any, have no slot free."""

    deployment_name = "engine"

    def __init__(self) -> None:
        self.refuses = True
        self.calls = 0
        self.open_session = self

    def remote(self, *_: object) -> "Handle":
        self.calls += 1
        return self

    def __aiter__(self) -> AsyncIterator[Refusal]:
        return self

    async def __anext__(self) -> Refusal:
        if not self.refuses:
            await asyncio.Event().wait()  # Serve holds the call
        return Refusal("a", "every slot is taken")

    def cancel(self) -> None:
        pass


class Offering(Handle):
    """Serve's handle of replicas that are offered oldest first; only the newest has room."""

    def __init__(self, names: list[str], replicas: EngineReplicas) -> None:
        super().__init__()
        self._names = names
        self._replicas = replicas
        self._placement = Placement()
        self._placement.update(names)
        self.asked: list[str] = []

    def remote(self, *_: object) -> "Offering":
        self.asked.append(self._placement.ranks(self._names, self._replicas.avoided_at)[0][0])
        return self

    async def __anext__(self) -> Refusal | Grant:
        if self.asked[-1] == self._names[-1]:
            return Grant(self.asked[-1], "127.0.0.1", 1, 1, b"")
        return Refusal(self.asked[-1], "every slot is taken")


class Starting(Handle):
    """Serve's handle of a deployment whose first engine is being started: calls wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.has_started = asyncio.Event()
        self.describe = self

    def options(self, **_: object) -> "Starting":
        return self

    def __await__(self) -> Generator[None, None, ModelInfo]:
        yield from self.has_started.wait().__await__()
        return MODEL


class Silent(Offering):
    """All grant slots, and nobody answers on the link."""

    port = 0

    def options(self, **_: object) -> Starting:
        return Starting()

    async def __anext__(self) -> Grant:
        return Grant(self.asked[-1], "127.0.0.1", self.port, 1, b"")


class FullHouse(Offering):
    """None has room."""

    async def __anext__(self) -> Refusal:
        return Refusal(self.asked[-1], "every slot is taken")


class Nobody:
    """Never gets a stream to listen to."""

    def on_lost(self, error: SpeechError) -> None:
        pass


@pytest.fixture
def replicas(monkeypatch) -> EngineReplicas:
    replicas = EngineReplicas()
    monkeypatch.setattr(serve_engines, "replicas_of", {"engine": replicas}.__getitem__)
    return replicas


async def search(handle: Handle, most: int | None, start_s: float = START_S, *, patient: bool = True) -> float:
    """Seconds until a session heard that there is no slot; `most` engines may there be, None: a fixed number."""
    autoscaling = AutoscalingSettings(max_replicas=most, start_timeout_seconds=start_s) if most else None
    engines = ServeEngines(handle, LinkSettings(), ADMISSION_S, autoscaling)
    started_at = time.monotonic()
    with pytest.raises(AtCapacity):
        await engines.open("id", Nobody(), patient=patient)
    return time.monotonic() - started_at


@pytest.mark.parametrize("refuses", [True, False])
async def test_while_engines_may_come_a_session_waits_for_one_to_start(replicas, refuses):
    handle = Handle()
    handle.refuses = refuses
    replicas.update({"a"} if refuses else set())
    assert await search(handle, most=2) >= START_S
    assert handle.calls > 1 or not refuses


class Cancelling(Handle):
    """Serve's handle as it is when a call that nobody answers is cancelled: Ray raises an error of its own."""

    async def __anext__(self) -> Refusal:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise RuntimeError("the request was cancelled") from None


async def test_a_search_that_ends_in_vain_leaves_no_error_that_nobody_asks_for(replicas):
    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    replicas.update({"a"})
    await search(Cancelling(), most=None)
    await asyncio.sleep(0)
    gc.collect()
    assert not heard


async def test_really_full_is_said_at_once(replicas):
    replicas.update({"a"})
    await search(Handle(), most=1, start_s=3600)
    await search(Handle(), most=None)


@pytest.mark.parametrize("most", [None, 20])
@pytest.mark.parametrize("history", [None, np.zeros(0)])
async def test_all_full_engines_are_passed_to_reach_the_one_with_room(replicas, monkeypatch, most, history):
    names = [f"engine-{number}" for number in range(13)]
    replicas.update(set(names))
    handle = Offering(names, replicas)
    engines = ServeEngines(handle, LinkSettings(), 60.0, AutoscalingSettings(max_replicas=most) if most else None)

    async def attach(grant: Grant, *_: object) -> str:
        return grant.replica

    monkeypatch.setattr(engines, "_attach", attach)
    assert await engines.open("id", Nobody(), history) == names[-1]
    assert handle.asked == names


async def test_a_full_house_is_known_though_one_refused_too_long_ago_to_count(monkeypatch):
    shift = -1.5  # seconds: longer than a refusal counts, shorter than its engine is avoided
    replicas = EngineReplicas(lambda: time.monotonic() + shift)
    monkeypatch.setattr(serve_engines, "replicas_of", {"engine": replicas}.__getitem__)
    replicas.update({"a", "b", "c"})
    replicas.note_refusal("b")
    shift = 0.0
    handle = FullHouse(["a", "b", "c"], replicas)
    engines = ServeEngines(handle, LinkSettings(), 60.0)
    with pytest.raises(AtCapacity):
        await engines.open("id", Nobody())
    assert handle.asked[:4] == ["a", "c", "b", "a"]


@pytest.mark.parametrize("history", [None, np.zeros(0)])
async def test_an_engine_that_is_silent_on_its_link_is_passed_by_for_a_while(replicas, history):
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    replicas.update({"a", "b"})
    handle = Silent(["a", "b"], replicas)
    engines = ServeEngines(handle, LinkSettings(), ADMISSION_S)
    async with asyncio.timeout(60), await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        handle.port = server.sockets[0].getsockname()[1]
        for asked in ("a", "ab"):
            with pytest.raises(AtCapacity):
                await engines.open("id", Nobody(), history)
            assert "".join(handle.asked) == asked
        await engines.stop()


async def test_there_is_one_link_to_an_engine_though_its_old_one_is_lost_while_a_new_one_is_made(replicas, monkeypatch):
    may_connect, peers, connects = asyncio.Event(), [], 0
    connect = LinkClient.connect

    async def connect_slowly(*args, **options) -> LinkClient:
        nonlocal connects
        connects += 1
        if connects > 1:
            await may_connect.wait()
        return await connect(*args, **options)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer)
        await reader.read()
        writer.close()

    monkeypatch.setattr(LinkClient, "connect", connect_slowly)
    monkeypatch.setattr(serve_engines, "PROBE_SECONDS", 0.01)
    replicas.update({"a"})
    handle = Silent(["a"], replicas)
    engines = ServeEngines(handle, LinkSettings(), 60.0)
    async with asyncio.timeout(60), await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        handle.port = server.sockets[0].getsockname()[1]
        sessions = [asyncio.create_task(engines.open("id", Nobody()))]
        while not (peers and engines.loads()):
            await asyncio.sleep(0.01)
        peers[0].transport.abort()
        while connects < 2:  # the first session asks again, and holds the place of the link that is made
            await asyncio.sleep(0.01)
        engines.start()
        await asyncio.sleep(0.1)  # looks at its links, of which the old one is lost
        sessions.append(asyncio.create_task(engines.open("id", Nobody())))
        while len(handle.asked) < 3:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert connects == 2
        may_connect.set()
        while len(peers) < 2:
            await asyncio.sleep(0.01)
        for session in sessions:
            session.cancel()
        await asyncio.gather(*sessions, return_exceptions=True)
        await engines.stop()
        assert (connects, len(peers)) == (2, 2)


async def test_a_slot_of_an_engine_that_was_stopped_meanwhile_is_not_taken(replicas, monkeypatch):
    class Stopping(Handle):
        """Serve's handle of an old replica and a new one, which both have room."""

        async def __anext__(self) -> Grant:
            return Grant("old" if "old" in replicas else "new", "127.0.0.1", 1, self.calls, b"")

    class Link:
        """To an engine that Serve stops while a stream is handed over."""

        name = "any"
        is_open = True
        detached: ClassVar[list[int]] = []

        async def attach(self, grant: Grant, _: object) -> None:
            replicas.update({"new"})

        def detach(self, stream: int) -> None:
            self.detached.append(stream)

    async def link(_: Grant) -> Link:
        return Link()

    replicas.update({"old", "new"})
    handle = Stopping()
    engines = ServeEngines(handle, LinkSettings(), 60.0)
    monkeypatch.setattr(engines, "_link", link)
    stream = await engines.open("id", Nobody())
    assert (handle.calls, engines.leases, Link.detached) == (2, 1, [1])
    stream.close()
    assert (engines.leases, Link.detached) == (0, [1, 2])


async def test_it_is_full_when_all_have_refused_until_a_slot_is_given_back_or_more_may_come(replicas):
    replicas.update({"a", "b"})
    engines = ServeEngines(Handle(), LinkSettings(), ADMISSION_S)
    growing = ServeEngines(Handle(), LinkSettings(), ADMISSION_S, AutoscalingSettings(max_replicas=3))
    replicas.note_refusal("a")
    assert not engines.is_full
    replicas.note_refusal("b")
    assert engines.is_full
    assert not growing.is_full
    replicas.note_room("a")
    assert not engines.is_full


async def test_a_slot_that_is_left_is_room_as_long_as_its_engine_is_there(replicas, monkeypatch):
    class Granting(Handle):
        """Serve's handle of a replica with a link."""

        async def __anext__(self) -> Grant:
            return Grant("a", "127.0.0.1", port, self.calls, server.grant(self.calls))

    monkeypatch.setattr(serve_engines, "KNOWN_FULL_SECONDS", 600.0)
    server = LinkServer(LinkSettings(), on_frames=lambda *_: True, on_detached=lambda _: None, load=dict)
    port = await server.start("127.0.0.1", 0)
    replicas.update({"a", "b"})
    engines = ServeEngines(Granting(), LinkSettings(), 60.0)
    async with asyncio.timeout(60):
        left, lost = [await engines.open("id", Nobody()) for _ in range(2)]
        for room, stream in ((True, left), (False, lost)):
            replicas.note_refusal("a")
            replicas.note_refusal("b")
            assert engines.is_full
            if not room:
                await server.stop()
                while engines.loads():
                    await asyncio.sleep(0.01)
            stream.close()
            assert engines.is_full != room
        await engines.stop()


async def test_who_leaves_an_engine_that_is_stopped_does_not_hold_it_up(replicas):
    replicas.update({"a"})
    await search(Handle(), most=2, start_s=3600, patient=False)


async def test_when_the_last_engine_has_come_waiting_is_over(replicas):
    handle = Handle()
    handle.refuses = False
    waiting = asyncio.create_task(search(handle, most=1, start_s=3600))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    replicas.update({"a"})
    await waiting


async def test_the_first_session_waits_for_the_first_engine_which_the_look_for_one_has_woken(replicas):
    handle = Starting()
    engines = ServeEngines(handle, LinkSettings(), ADMISSION_S, AutoscalingSettings(start_timeout_seconds=3600))
    engines.start()
    try:
        waiting = asyncio.create_task(engines.wait_until_known())
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        assert handle.calls == 1
        assert not engines.is_ready
        with pytest.raises(ModelNotReady):
            assert engines.info
        handle.has_started.set()
        async with asyncio.timeout(60):
            await waiting
        assert engines.info is MODEL
    finally:
        await engines.stop()


async def test_an_engine_that_does_not_start_in_time_and_one_that_none_will_follow_are_waited_for_no_longer(replicas):
    growing = AutoscalingSettings(start_timeout_seconds=START_S)
    for autoscaling in (growing, None):
        engines = ServeEngines(Starting(), LinkSettings(), ADMISSION_S, autoscaling)
        async with asyncio.timeout(60):
            await engines.wait_until_known()
        with pytest.raises(ModelNotReady):
            assert engines.info
