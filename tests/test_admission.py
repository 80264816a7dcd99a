import asyncio
from contextlib import aclosing

import pytest

from serve_app.errors import AtCapacity, EngineLost
from serve_app.session.admission import Admission, Returning


class Slots:
    """A number of slots to take."""

    def __init__(self, free: int) -> None:
        self.free = free

    async def take(self) -> None:
        await asyncio.sleep(0)
        if not self.free:
            raise AtCapacity("all slots are taken")
        self.free -= 1


async def enter(line: Admission, slots: Slots, wait_s: float, places: list[int] | None = None) -> None:
    async with aclosing(line.enter(slots.take, wait_s)) as moving:
        async for place in moving:
            if places is not None:
                places.append(place)


async def until(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.01)


async def test_whoever_does_not_wait_gets_a_slot_or_the_door():
    line, slots = Admission(4, Returning()), Slots(1)
    await enter(line, slots, 0)
    with pytest.raises(AtCapacity):
        await enter(line, slots, 0)
    assert len(line) == 0


async def test_slots_go_to_those_who_wait_in_their_order_and_nobody_overtakes():
    line, slots, served = Admission(8, Returning()), Slots(0), []

    async def wait(name: str, places: list[int]) -> None:
        await enter(line, slots, 30, places)
        served.append(name)

    places: list[list[int]] = [[], [], []]
    tasks = []
    for name, seen in zip("abc", places, strict=True):
        tasks.append(asyncio.create_task(wait(name, seen)))
        await until(lambda: len(line) == len(tasks))
    for count in (1, 2, 3):
        slots.free = 1
        with pytest.raises(AtCapacity, match="others wait for a slot already"):
            await enter(line, slots, 0)
        await until(lambda count=count: len(served) == count)
    await asyncio.gather(*tasks)
    assert served == ["a", "b", "c"]
    assert places == [[1], [2, 1], [3, 2, 1]]
    assert len(line) == 0


async def test_the_wait_and_the_line_have_their_limits():
    line, slots = Admission(2, Returning()), Slots(0)
    waiting = [asyncio.create_task(enter(line, slots, 0.3)) for _ in range(2)]
    await until(lambda: len(line) == 2)
    with pytest.raises(AtCapacity, match="at most 2 clients may wait"):
        await enter(line, slots, 30)
    for result in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(result, AtCapacity)
    assert len(line) == 0


async def test_one_that_gives_up_lets_the_next_one_through():
    line, slots = Admission(2, Returning()), Slots(0)
    first = asyncio.create_task(enter(line, slots, 30))
    await until(lambda: len(line) == 1)
    second = asyncio.create_task(enter(line, slots, 30))
    await until(lambda: len(line) == 2)
    first.cancel()
    await until(lambda: len(line) == 1)
    slots.free = 1
    await second


async def test_another_error_ends_the_wait():
    line, slots = Admission(2, Returning()), Slots(0)
    waiting = asyncio.create_task(enter(line, slots, 30))
    await until(lambda: len(line) == 1)

    async def fail() -> None:
        raise EngineLost("gone")

    slots.take = fail  # type: ignore[method-assign]
    line._line[0].set()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(EngineLost):
        await enter(line, slots, 30)
    assert len(line) == 0


async def test_sessions_that_have_lost_their_slot_come_before_everybody_new():
    returning = Returning()
    line, slots = Admission(2, returning), Slots(1)
    with returning:
        with pytest.raises(AtCapacity, match="1 others wait"):
            await enter(line, slots, 0)
        waiting = asyncio.create_task(enter(line, slots, 30))
        await asyncio.sleep(0.3)
        assert slots.free == 1
    await waiting
    assert slots.free == 0


async def test_a_crowd_that_finds_every_slot_taken_asks_only_a_few_times():
    line, slots, asked = Admission(4, Returning()), Slots(0), 0

    async def take() -> None:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0.05)
        await Slots.take(slots)

    slots.take = take  # type: ignore[method-assign]
    for answer in await asyncio.gather(*(enter(line, slots, 0) for _ in range(500)), return_exceptions=True):
        assert isinstance(answer, AtCapacity)
    assert asked < 50
    slots.free = 1
    await enter(line, slots, 0)


async def test_a_crowd_gets_every_slot_that_is_free():
    line, slots = Admission(4, Returning()), Slots(60)
    answers = await asyncio.gather(*(enter(line, slots, 0) for _ in range(100)), return_exceptions=True)
    assert sum(answer is None for answer in answers) == 60
    assert slots.free == 0


async def test_who_comes_after_a_refusal_is_not_refused_by_it():
    line, slots = Admission(4, Returning()), Slots(0)
    for _ in range(3):
        slots.free = 0
        with pytest.raises(AtCapacity):
            await enter(line, slots, 0)
        slots.free = 1
        await enter(line, slots, 0)
