"""Blocking iterators, read from an event loop."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


async def in_thread(items: Iterator[Item]) -> AsyncGenerator[Item]:
    """The items, each waited for in one thread of this iterator's own: those that all share would soon be all taken.

    The thread ends when the item that it works on is there, also where nobody wants it any more.
    """
    loop = asyncio.get_running_loop()
    executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="items")
    over = object()
    try:
        while (item := await loop.run_in_executor(executor, next, items, over)) is not over:
            yield item  # type: ignore[misc]  # `over` is not one of them
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
