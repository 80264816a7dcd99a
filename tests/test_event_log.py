import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.errors import EngineLost, SlowClient
from serve_app.session.event_log import EventLog


async def take(log: EventLog[str], count: int) -> list[tuple[int, str]]:
    taken = []
    async for entry in log.read():
        taken.append(entry)
        if len(taken) == count:
            return taken
    raise AssertionError("read() ended")


async def test_events_come_in_order_with_their_numbers_and_remarks_take_none():
    log: EventLog[str] = EventLog(8)
    log.append("a")
    log.append("moving", numbered=False)
    log.append("b")
    assert await take(log, 3) == [(1, "a"), (1, "moving"), (2, "b")]
    log.append("c")
    assert await take(log, 1) == [(3, "c")]


async def test_a_reader_waits_for_what_comes():
    log: EventLog[str] = EventLog(8)
    waiting = asyncio.create_task(take(log, 1))
    await asyncio.sleep(0)
    log.append("late")
    assert await waiting == [(1, "late")]


async def test_what_was_read_is_read_again_on_request():
    log: EventLog[str] = EventLog(8)
    for event in "abcde":
        log.append(event)
    await take(log, 5)
    log.seek(3)
    assert await take(log, 2) == [(4, "d"), (5, "e")]


async def test_nothing_unread_is_pushed_out():
    log: EventLog[str] = EventLog(4)
    for event in "abcd":
        log.append(event)
    with pytest.raises(SlowClient, match="4 are waiting"):
        log.append("e")
    await take(log, 1)
    log.append("e")
    assert [event for _, event in await take(log, 4)] == ["b", "c", "d", "e"]


async def test_readers_get_the_rest_and_then_the_error():
    log: EventLog[str] = EventLog(4)
    log.append("a")
    log.fail(EngineLost("gone"))
    log.fail(SlowClient("too late"))
    heard = []
    with pytest.raises(EngineLost):
        async for _, event in log.read():
            heard.append(event)
    assert heard == ["a"]
    await log.wait_until_half_read()


async def test_the_writer_is_held_back_while_more_than_half_is_unread():
    log: EventLog[str] = EventLog(4)
    for event in "abc":
        log.append(event)
    waiting = asyncio.create_task(log.wait_until_half_read())
    await asyncio.sleep(0)
    assert not waiting.done()
    await take(log, 1)
    await waiting


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 10), st.integers(0, 40), st.data())
async def test_whoever_saw_up_to_a_kept_number_misses_nothing(numbered, capacity, cut, data):
    """A client that resumes gets exactly the numbered events behind the last one it saw, or is told that it cannot.

    The log may be continued by another one, from what it was before the last `cut` events; those happen again.
    """
    logs: list[EventLog[int]] = [EventLog(capacity)]
    kept = 0
    for event, counts in enumerate(numbered):
        if event == len(numbered) - cut:
            logs.append(EventLog(capacity, logs[0].since(0)))
            kept = logs[0].last_number
            break
        logs[0].append(event, counts)
        await take(logs[0], 1)
    log = logs[-1]
    behind = [(number, event) for number, event in enumerate((e for e, c in enumerate(numbered) if c), 1)]
    last = data.draw(st.integers(0, len(behind) + 1))
    if not log.can_go_on_after(last):
        assert last > log.last_number + capacity or len(numbered) > capacity
        return
    expected = [entry for entry in behind if entry[0] > last]
    log.seek(last)
    heard = [entry async for entry in _unread(log)]
    for event in range(log.places, len(numbered)):
        log.append(event, numbered[event])
        heard += [entry async for entry in _unread(log)]
    assert [entry for entry in heard if numbered[entry[1]]] == expected
    assert kept <= len(behind)


async def _unread(log: EventLog[int]):
    reading = log.read()
    while log.unread:
        # The reader passes over events that were seen before: it may not come to one that is left.
        try:
            yield await asyncio.wait_for(anext(reading), 0.01)
        except TimeoutError:
            return
