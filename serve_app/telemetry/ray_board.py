"""The board as a Ray actor of its own: every replica of a service posts to the same one."""

import asyncio
from typing import Any

from serve_app.shared_actor import ActorUnavailable, SharedActor, exit_when_idle
from serve_app.telemetry.board import Board, BoardUnavailable, Report, Source


class BoardActor:
    """A board in a process of its own."""

    def __init__(self) -> None:
        self._board = Board()
        self._idle = asyncio.get_event_loop().create_task(exit_when_idle(lambda: self._board.used_at))

    async def post(self, report: Report) -> None:
        """See `Board.post`."""
        self._board.post(report)

    async def leave(self, source: Source) -> None:
        """See `Board.leave`."""
        self._board.leave(source)

    async def exchange(self, report: Report) -> list[Report]:
        """See `Board.exchange`."""
        return self._board.exchange(report)


class RayBoard:
    """Reaches the service's board, from any process of the cluster (implements `BoardClient`)."""

    def __init__(self, service: str) -> None:
        """`service` names the board."""
        self._actor = SharedActor(BoardActor, f"{service}-board")

    async def post(self, report: Report) -> None:
        """See `Board.post`. Raises BoardUnavailable."""
        await self._call("post", report)

    async def leave(self, source: Source) -> None:
        """See `Board.leave`. Raises BoardUnavailable."""
        await self._call("leave", source)

    async def exchange(self, report: Report) -> list[Report]:
        """See `Board.exchange`. Raises BoardUnavailable."""
        reports: list[Report] = await self._call("exchange", report)
        return reports

    async def _call(self, method: str, *arguments: object) -> Any:
        try:
            return await self._actor.call(method, *arguments)
        except ActorUnavailable as error:
            raise BoardUnavailable(str(error)) from error
