"""Backpressure from a session to its client's socket, which Serve's direct ingress takes away.

Ray (2.60, `ASGIDIReceiveProxy`) reads every client's messages as fast as they come into a queue without a bound, to
hear of a disconnect early: a client that sends faster than real time would fill the memory instead of being slowed down
by TCP. Here the queue holds one message, and the socket is read again when the session has taken it.
"""

import asyncio

from ray.serve._private import replica
from ray.serve._private.direct_ingress_http_util import ASGIDIReceiveProxy


class BoundedReceive(ASGIDIReceiveProxy):
    """Ray's proxy with a queue of one message."""

    _queue: asyncio.Queue | None

    @property
    def queue(self) -> asyncio.Queue:
        """The queue, made in the loop that takes from it."""
        if self._queue is None:
            self._queue = asyncio.Queue(maxsize=1)
        return self._queue

    async def _fetch_until_disconnect(self) -> int | None:
        while True:
            message = await self._receive()
            if message["type"] in ("http.disconnect", "websocket.disconnect"):
                self._disconnect_message = message
            # The taker may live in another thread's loop; either way this waits until there is room.
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._put(message), self._user_event_loop))
            if message["type"] == "http.disconnect":
                return None
            if message["type"] == "websocket.disconnect":
                return int(message.get("code", 1005))

    async def _put(self, message: object) -> None:
        await self.queue.put(message)


def bound_receive_queues() -> None:
    """Use `BoundedReceive` for every request of this replica's process from now on."""
    replica.ASGIDIReceiveProxy = BoundedReceive
