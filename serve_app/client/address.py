"""How people write the address of a service, and what that means."""

import ipaddress
from collections.abc import Mapping
from types import MappingProxyType
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from serve_app.client.errors import InvalidAddress

DEFAULT_PATH = "/v1/stream"
_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}


def stream_url(address: str, wishes: Mapping[str, str] = MappingProxyType({}), default_path: str = DEFAULT_PATH) -> str:
    """Turn `ws://…`, `http://…` or `host:port`, with or without a path, into the WebSocket URL of a stream.

    A query in the address is kept, `wishes` come on top of it. Raises `InvalidAddress`.
    """
    text = address.strip()
    address = shown(text)
    try:
        parts = urlsplit(text if "://" in text else f"ws://{text}")
        _ = parts.port  # raises where it is no number
    except ValueError:  # whose text may be a part of a password
        raise InvalidAddress(f"{address!r} is not an address such as 127.0.0.1:8000") from None
    scheme = _SCHEMES.get(parts.scheme.lower())
    if scheme is None:
        raise InvalidAddress(f"{address!r}: expected ws, wss, http or https, got {parts.scheme!r}")
    if not parts.hostname or any(character.isspace() for character in parts.netloc):
        raise InvalidAddress(f"{address!r}: expected a host, as in 127.0.0.1:8000")
    try:
        parts.hostname.encode("idna")
    except UnicodeError as error:
        raise InvalidAddress(f"{address!r}: expected the name of a host, got {parts.hostname!r} ({error})") from None
    query = {**dict(parse_qsl(parts.query, keep_blank_values=True)), **wishes}
    path = parts.path if parts.path not in ("", "/") else default_path
    return urlunsplit((scheme, parts.netloc, path, urlencode(query), ""))


def shown(address: str) -> str:
    """An address as messages show it: without what may be secret, its query and the user's name and password."""
    scheme, separator, rest = address.partition("?")[0].rpartition("://")
    if "@" in address:  # in a query it may be the end of a password with an unquoted "?"
        rest = rest.rpartition("@")[2] if "@" in rest else "…"
    return f"{scheme}{separator}{rest}"


def http_url(address: str, path: str) -> str:
    """Another page of the server at an address. Raises InvalidAddress."""
    parts = urlsplit(stream_url(address))
    return f"{parts.scheme.replace('ws', 'http', 1)}://{parts.netloc}{path}"


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine, which no proxy can reach on our behalf."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
