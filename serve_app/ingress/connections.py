"""How many WebSockets one client address may hold open.

Serve's HAProxy hides the address and adds no X-Forwarded-For. So it is only known where a proxy in front of Serve adds
that header (`ingress.trusted_proxies`), or where clients reach the ingress without HAProxy.
"""

import ipaddress
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.requests import HTTPConnection

from serve_app.errors import TooManyConnections
from serve_app.settings import IngressSettings
from serve_app.telemetry import get_logger

_log = get_logger(__name__)

IPV6_NETWORK_BITS = 64
"""What one customer gets at least: its single addresses say nothing."""


class ConnectionLimit:
    """Counts the open WebSockets of each address. All methods run in one event loop."""

    def __init__(self, settings: IngressSettings) -> None:
        self._limit = settings.max_connections_per_address
        self._trusted_proxies = settings.trusted_proxies
        self._open: Counter[str] = Counter()
        if self._limit and not self._trusted_proxies and _behind_haproxy():
            _log.info("connections are not limited per address: HAProxy hides it, see ingress.trusted_proxies")

    @contextmanager
    def count(self, connection: HTTPConnection) -> Iterator[None]:
        """Count the connection for the length of the block. Raises TooManyConnections if it is one too many."""
        address = self._address(connection)
        if address is None or self._limit is None:
            yield
            return
        if self._open[address] >= self._limit:
            _log.info("connection refused", address=address, limit=self._limit)
            raise TooManyConnections(f"expected at most {self._limit} connections from one address, got one more")
        self._open[address] += 1
        try:
            yield
        finally:
            self._open[address] -= 1
            if not self._open[address]:
                del self._open[address]

    def _address(self, connection: HTTPConnection) -> str | None:
        """Whose connection it is, None where nobody can know."""
        if self._trusted_proxies:
            header = ",".join(connection.headers.getlist("x-forwarded-for"))
            # Who came around the proxies brings no header: all of those together are one address, their peer's.
            return forwarded_address(header, self._trusted_proxies) or _peer(connection)
        return None if _behind_haproxy() else _peer(connection)


def forwarded_address(header: str, trusted_proxies: int) -> str | None:
    """The address in an X-Forwarded-For that the outermost trusted proxy saw; None if it is not there.

    Each proxy appends its peer's address on the right. What stands further left than the trusted proxies' entries was
    sent by the client, and may be anything.
    """
    entries = header.split(",")
    if len(entries) < trusted_proxies:
        return None
    return _normalized(entries[-trusted_proxies])


def _normalized(text: str) -> str | None:
    """One spelling for each client: an IPv4 address, or an IPv6 network; None for what is neither."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if not address.ipv4_mapped:
            return str(ipaddress.ip_network((int(address), IPV6_NETWORK_BITS), strict=False))
        address = address.ipv4_mapped
    return str(address)


def _peer(connection: HTTPConnection) -> str | None:
    return _normalized(connection.client.host) if connection.client else None


def _behind_haproxy() -> bool:
    return os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1"
