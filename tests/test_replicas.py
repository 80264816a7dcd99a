import asyncio
import math
import threading
import time

from serve_app.ingress.replicas import AVOID_SECONDS, FRESH_SECONDS, EngineReplicas


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


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_refusal_counts_for_a_moment():
    clock = Clock()
    replicas = EngineReplicas(clock)
    replicas.update({"a", "b"})
    replicas.note_refusal("a")
    assert replicas.avoided_at("a") is not None
    assert replicas.avoided_at("b") is None
    assert not replicas.have_all_refused()
    replicas.note_refusal("b")
    assert replicas.have_all_refused()
    assert replicas.are_full(0.3)
    clock.now += 0.4
    assert not replicas.are_full(0.3)
    assert replicas.have_all_refused()
    clock.now += FRESH_SECONDS
    assert not replicas.have_all_refused()
    assert replicas.avoided_at("a") is not None
    clock.now += AVOID_SECONDS
    assert replicas.avoided_at("a") is None
    assert not EngineReplicas().have_all_refused()


def test_after_a_slot_was_given_back_they_are_full_only_when_all_have_refused_again():
    clock = Clock()
    replicas = EngineReplicas(clock)
    replicas.update({"a", "b"})
    for name in ("a", "b"):
        replicas.note_refusal(name)
    clock.now += 0.1
    replicas.note_room("a")
    assert replicas.avoided_at("a") is None
    assert replicas.avoided_at("b") is not None
    clock.now += 0.1
    replicas.note_refusal("a")  # somebody else was there first
    assert replicas.have_all_refused()
    assert not replicas.are_full(1.0)
    replicas.note_refusal("b")
    assert replicas.are_full(1.0)


def test_a_lost_replica_is_avoided_but_not_full():
    replicas = EngineReplicas()
    replicas.update({"a"})
    replicas.note_lost("a")
    assert replicas.avoided_at("a") is not None
    assert not replicas.have_all_refused()
    assert not replicas.are_full(60.0)


def test_a_slot_given_back_does_not_bring_a_lost_replica_back():
    clock = Clock()
    replicas = EngineReplicas(clock)
    replicas.update({"a"})
    replicas.note_refusal("a")
    clock.now += 1.0
    replicas.note_lost("a")
    replicas.note_room("a")
    assert replicas.avoided_at("a") == clock.now
    clock.now += AVOID_SECONDS
    assert replicas.avoided_at("a") is None


def test_nothing_is_kept_of_replicas_that_are_gone_nor_of_what_is_said_of_them_later():
    clock = Clock()
    replicas = EngineReplicas(clock)
    replicas.update({"a", "b"})
    replicas.note_refusal("a")
    replicas.update({"b"})
    replicas.note_refusal("b")
    clock.now += 0.1
    for note in (replicas.note_refusal, replicas.note_lost, replicas.note_room):
        note("a")
    assert replicas.avoided_at("a") is None
    assert replicas.are_full(1.0)  # the room was on one that takes nobody
    replicas.update({"a", "b"})
    assert replicas.avoided_at("a") is None


def test_how_many_there_are_and_when_the_latest_came():
    replicas = EngineReplicas()
    assert (len(replicas), replicas.grown_at) == (0, -math.inf)
    before = time.monotonic()
    replicas.update({"a", "b"})
    grown_at = replicas.grown_at
    assert before <= grown_at <= time.monotonic()
    replicas.update({"b"})
    assert (len(replicas), replicas.grown_at) == (1, grown_at)
