"""How whoever reads a stream lets go of the task that sends to it."""

import asyncio

from serve_app.client.errors import ClientError
from serve_app.tasks import look_at


async def stop_sending(sending: asyncio.Task[None]) -> None:
    """Cancel the task that sends, and wait for it; who is cancelled meanwhile is cancelled.

    Raises what it failed of, unless that is a ClientError: why sending failed is what reading raises, for the server's
    last words come before its close.
    """
    sending.add_done_callback(look_at)
    sending.cancel()
    # Not awaited itself: whoever cancels the running task meanwhile would be taken for us, who have cancelled that one.
    await asyncio.wait([sending])
    if not sending.cancelled() and not isinstance(sending.exception(), ClientError):
        sending.result()
