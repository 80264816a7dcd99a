"""The thread for calls that block."""

import asyncio
import threading
import time

import pytest

from serve_app.bridges.worker import CallStuck, Worker


async def test_calls_are_made_in_order_and_tell_what_came_of_them():
    worker = Worker("calls")
    made: list[int] = []
    calls = [asyncio.create_task(worker.run(made.append, number, timeout_s=60)) for number in range(5)]
    await asyncio.gather(*calls)
    assert made == [0, 1, 2, 3, 4]
    assert await worker.run(divmod, 7, 2, timeout_s=60) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await worker.run(divmod, 7, 0, timeout_s=60)
    worker.close()


async def test_a_call_that_does_not_return_is_left_behind():
    worker, release, ended = Worker("calls"), threading.Event(), threading.Event()

    def stuck() -> None:
        release.wait(60)

    with pytest.raises(CallStuck, match=r"within 0\.05 s"):
        await worker.run(stuck, timeout_s=0.05)
    later = asyncio.create_task(worker.run(ended.set, timeout_s=60))
    release.set()
    await later
    assert ended.is_set()
    worker.close()


async def test_a_thread_whose_loop_has_gone_ends_in_peace():
    told = threading.Event()

    def slow() -> None:
        time.sleep(0.2)
        told.set()

    def elsewhere() -> None:
        async def leave() -> None:
            with pytest.raises(CallStuck):
                await Worker("left").run(slow, timeout_s=0.01)

        asyncio.run(leave())

    await asyncio.to_thread(elsewhere)
    assert await asyncio.to_thread(told.wait, 60)
