"""What becomes of tasks that nobody waits for any more."""

import asyncio
from typing import Any


def look_at(task: "asyncio.Future[Any]") -> None:
    """As a done callback: asyncio logs no exception that nobody was left to ask for."""
    if not task.cancelled():
        task.exception()
