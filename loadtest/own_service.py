"""A service that a measuring program starts for itself."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from serve_app.cli.config import Overrides
from serve_app.cli.server import free_port, running
from serve_app.settings import PROJECT_ROOT

CONFIG = PROJECT_ROOT / "loadtest" / "service.yaml"
"""The service that commands are run against."""


@contextmanager
def own_service() -> Iterator[str]:
    """The WebSocket's address of a service that runs while the block does. Raises StartFailed."""
    overrides = Overrides(host="127.0.0.1", port=free_port(), auth="none")
    with tempfile.TemporaryFile(prefix="stt-measured-") as log, running(CONFIG, overrides, log) as server:
        server.wait_until_ready()
        yield server.url
