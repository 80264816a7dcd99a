"""Tests of `serve_app.tasks`."""

import asyncio
import gc

import pytest

from serve_app.tasks import look_at


@pytest.mark.parametrize("looked_at", [True, False])
async def test_an_exception_that_was_looked_at_is_not_logged(looked_at: bool):
    heard: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))

    async def fail() -> None:
        raise ZeroDivisionError

    task = asyncio.create_task(fail())
    if looked_at:
        task.add_done_callback(look_at)
    await asyncio.wait([task])
    del task
    gc.collect()
    assert bool(heard) is not looked_at


async def test_a_cancelled_one_is_left_alone():
    task = asyncio.create_task(asyncio.sleep(60))
    task.add_done_callback(look_at)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
