"""A thread for calls that block, from one event loop; a call that never returns can be left behind."""

import asyncio
import queue
import threading
from collections.abc import Callable
from typing import Any


class CallStuck(Exception):
    """A call has not returned within its time, and may never do."""


class Worker:
    """Calls made one after the other. The thread does not keep the process from ending."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[tuple[asyncio.Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def run(self, call: Callable[..., Any], *arguments: Any, timeout_s: float) -> Any:
        """What the call returns or raises. Raises CallStuck."""
        done: asyncio.Future[Any] = self._loop.create_future()
        self._calls.put((done, lambda: call(*arguments)))
        try:
            async with asyncio.timeout(timeout_s):
                return await done
        except TimeoutError:
            raise CallStuck(f"expected librdkafka to answer within {timeout_s:g} s") from None

    def close(self) -> None:
        """Let the thread end after the calls that were made."""
        self._calls.put(None)

    def _work(self) -> None:
        while made := self._calls.get():
            done, call = made
            try:
                self._tell(done, done.set_result, call())
            except BaseException as error:  # whatever it is belongs to whoever made the call
                self._tell(done, done.set_exception, error)

    def _tell(self, done: asyncio.Future[Any], tell: Callable[[Any], None], what: Any) -> None:
        def told() -> None:
            if not done.done():  # nobody waits for it any more
                tell(what)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(told)
