"""What the HTTP server of an ingress replica accepts; Serve (2.60) starts it with uvicorn's defaults.

- Headers have a limit: uvicorn's usual parser takes any amount of them, h11 stops.
- A WebSocket handshake that cannot be read is refused: uvicorn would leave the client waiting for ever.
- Messages may be larger than a dialect takes, up to a point: so the dialect can say that one is too large. Beyond it
  the connection is closed with code 1009.
- What follows a breach of the protocol is read and dropped for a while: a connection that is closed before its client
  has sent everything is reset, and the client would never see the close frame.
- No permessage-deflate: 16 KB would become a message of 16 MiB, and audio does not compress anyway.
- A pong that does not come ends nothing: it may wait behind audio that we do not read because its session has no slot
  just now. A client that is gone is one that sends no audio, and that has a limit of its own.
- X-Forwarded-For is left alone: uvicorn believes it from any local peer, but HAProxy passes on what clients made up.
"""

from typing import Any

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from serve_app.settings import MEBIBYTE

CEILING_BYTES = 32 * MEBIBYTE
"""Largest message that is read: twice what `ingress.max_message_bytes` may be."""

LINGER_SECONDS = 5.0
"""How long the rest of what breaks a rule is read and dropped."""

MAX_HEADER_BYTES = 16 * 1024
"""Request line and headers that are not complete yet; a read (256 KB) more may be. HAProxy stops at 16 KB in all."""


REFUSAL = b"expected a WebSocket handshake with lines of at most 8 KiB, at most 128 headers and no body"
REFUSAL_RESPONSE = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
    b"content-length: " + str(len(REFUSAL)).encode() + b"\r\n\r\n" + REFUSAL
)


class RefusingWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, which answers also where the `websockets` library gives up, and so that it is heard."""

    def data_received(self, data: bytes) -> None:
        """Take bytes from the client."""
        if self.conn.parser_exc is not None:
            return  # the rest of what broke a rule
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            self.transport.write(REFUSAL_RESPONSE)
            self.transport.close()

    def handle_parser_exception(self) -> None:
        """Tell the application and the client that the client broke a rule."""
        assert self.conn.close_sent is not None
        code, reason = self.conn.close_sent.code, self.conn.close_sent.reason
        self.queue.put_nowait({"type": "websocket.disconnect", "code": code, "reason": reason})
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.transport.write_eof()
        self.close_sent = True
        self.close_timer = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    async def send(self, message: Any) -> None:
        """Take a message from the application. One that refuses the handshake completes it; uvicorn logs an error."""
        await super().send(message)
        if self.close_sent:
            self.handshake_complete = True


class BoundedConfig(uvicorn.Config):
    """uvicorn's configuration with our limits, whatever the caller asks for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        limits = {
            "http": "h11",
            "ws": RefusingWebSocket,
            "ws_max_size": CEILING_BYTES,
            "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
            "ws_per_message_deflate": False,
            "ws_ping_timeout": None,
            "proxy_headers": False,
        }
        super().__init__(*args, **{**kwargs, **limits})


def bound_http_server() -> None:
    """Use `BoundedConfig` for every server that this process starts from now on; Serve starts a replica's own later."""
    uvicorn.Config = BoundedConfig
