import asyncio
import math
import threading
import time

from serve_app.ingress import replicas as replicas_module
from serve_app.ingress.replicas import EngineReplicas


async def test_stopped_replicas_are_told_of_in_the_subscribers_loop():
    replicas, told = EngineReplicas(), asyncio.Queue()
    replicas.subscribe(lambda names: told.put_nowait((names, threading.get_ident())))
    replicas.update({"a", "b", "c"})
    await asyncio.to_thread(replicas.update, {"b"})
    async with asyncio.timeout(5):
        assert await told.get() == ({"a", "c"}, threading.get_ident())
    replicas.update({"b", "d"})
    await asyncio.sleep(0.01)
    assert told.empty()


def test_a_refusal_counts_for_a_moment(monkeypatch):
    replicas = EngineReplicas()
    replicas.update({"a", "b"})
    replicas.note_refusal("a")
    assert replicas.has_refused("a")
    assert not replicas.has_refused("b")
    assert not replicas.have_all_refused()
    replicas.note_refusal("b")
    assert replicas.have_all_refused()
    assert not replicas.have_all_refused(within_s=0.0)
    monkeypatch.setattr(replicas_module, "AVOID_SECONDS", 0.0)
    assert not replicas.has_refused("a")
    assert not EngineReplicas().have_all_refused()


def test_a_slot_given_back_makes_refusals_void():
    replicas = EngineReplicas()
    replicas.update({"a"})
    replicas.note_refusal("a")
    replicas.note_room()
    assert not replicas.has_refused("a")
    assert not replicas.have_all_refused()


def test_how_many_there_are_and_when_the_latest_came():
    replicas = EngineReplicas()
    assert (len(replicas), replicas.grown_at) == (0, -math.inf)
    before = time.monotonic()
    replicas.update({"a", "b"})
    grown_at = replicas.grown_at
    assert before <= grown_at <= time.monotonic()
    replicas.update({"b"})
    assert (len(replicas), replicas.grown_at) == (1, grown_at)
