"""A client that breaks WebSocket's rules is one that has left, not a failure of ours.

uvicorn (0.54) closes such a connection by itself and then answers every send of the application with RuntimeError, as
if that had closed it. Starlette knows a client that has left by OSError.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BrokenConnections:
    """ASGI middleware: a send that fails before the application has closed the connection raises OSError."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] != "websocket":
            await self._app(scope, receive, send)
            return
        closed = False

        async def checked_send(message: Message) -> None:
            nonlocal closed
            try:
                await send(message)
            except RuntimeError as error:
                if closed:
                    raise
                raise ConnectionAbortedError("the connection was closed because the client broke a rule") from error
            closed = closed or message["type"] == "websocket.close"

        await self._app(scope, receive, checked_send)
