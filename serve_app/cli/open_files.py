"""Open files: whether HAProxy, which Serve starts, may have as many as it wants. With fewer it ends at its start."""

import resource
from collections.abc import Mapping

CONNECTIONS = ("RAY_SERVE_HAPROXY_MAXCONN", 4096)
"""Ray's setting of how many connections HAProxy takes, and its default."""

THREADS = ("RAY_SERVE_HAPROXY_NBTHREAD", 4)
"""The same of its threads."""

FILES_PER_CONNECTION = 2.5
"""Both ends, and a pipe for every fourth one."""

FILES_PER_THREAD = 3

FEWEST_CONNECTIONS = 100
"""Nobody is told to do with fewer."""

OTHER_FILES = 124
"""24 of its own, and one for each replica that it looks after: a hundred."""


def problem(environment: Mapping[str, str]) -> str | None:
    """What is wrong with this process's limit for a service with this environment; None if HAProxy will start.

    Only the hard limit counts: Ray and HAProxy raise the soft one themselves.
    """
    if environment.get("RAY_SERVE_ENABLE_HA_PROXY") != "1":
        return None
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    connections = _number(environment, *CONNECTIONS)
    others = FILES_PER_THREAD * _number(environment, *THREADS) + OTHER_FILES
    needed = int(FILES_PER_CONNECTION * connections) + others
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return None
    fewer = int((hard - others) / FILES_PER_CONNECTION)
    return (
        f"open files (`ulimit -Hn`): expected a hard limit of at least {needed}, for HAProxy with {connections}"
        f" connections, got {hard}: raise it (`ulimit -Hn 65536` as root, LimitNOFILE=65536 in a systemd unit,"
        " docker run --ulimit nofile=65536)"
    ) + (f", or take {CONNECTIONS[0]}={fewer}" if fewer >= FEWEST_CONNECTIONS else "")


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    return int(text) if text.isdecimal() else default  # Ray refuses what is no number
