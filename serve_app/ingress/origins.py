"""Which pages may use the service from a browser: a browser says whose page it is, other clients say nothing."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from serve_app.errors import Forbidden


def check_origin(headers: Headers, allowed: Sequence[str]) -> None:
    """Let pages of the service's own host in, whatever its port, and those that are allowed. Raises Forbidden."""
    for origin in headers.getlist("origin"):
        if "*" not in allowed and origin not in allowed and not _same_host(origin, headers.get("host", "")):
            raise Forbidden("expected a page of this host, or of an origin in ingress.allowed_origins")


def _same_host(origin: str, host: str) -> bool:
    try:
        name = urlsplit(origin).hostname
        return name is not None and name == urlsplit(f"//{host}").hostname
    except ValueError:
        return False
