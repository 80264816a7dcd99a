"""What the HTTP server of an ingress replica accepts; Serve (2.60) starts it with uvicorn's defaults.

- Headers have a limit: uvicorn's usual parser takes any amount of them, h11 stops.
- No permessage-deflate: 16 KB would become a message of 16 MiB, and audio does not compress anyway.
- X-Forwarded-For is left alone: uvicorn believes it from any local peer, but HAProxy passes on what clients made up.
"""

from typing import Any

import uvicorn

MAX_HEADER_BYTES = 16 * 1024
"""Request line and headers that are not complete yet; a read (256 KB) more may be. HAProxy stops at 16 KB in all."""


class BoundedConfig(uvicorn.Config):
    """uvicorn's configuration with our limits, whatever the caller asks for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        limits = {
            "http": "h11",
            "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
            "ws_per_message_deflate": False,
            "proxy_headers": False,
        }
        super().__init__(*args, **{**kwargs, **limits})


def bound_http_server() -> None:
    """Use `BoundedConfig` for every server that this process starts from now on; Serve starts a replica's own later."""
    uvicorn.Config = BoundedConfig
