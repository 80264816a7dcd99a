"""The bridge between Kafka and the service, as a process of its own beside a running service.

LOOM_KAFKA_BOOTSTRAP_SERVERS=kafka:9092 python -m serve_app.bridges.kafka [--url ws://127.0.0.1:8000]

Settings come from the environment (`LOOM_KAFKA_…` and `SESSION_GAP_SECONDS`, see `serve_app.settings.ENVIRONMENT`)
and from `--config FILE`, a Serve config file with a group `kafka`. `--url` wins over both (`kafka.service_url`).
`GET /healthz`, `/readyz` (503 while the brokers do not answer, and while sessions do not reach the service) and
`/metrics` are answered at `--host` and `--port`, else LOOM_HOST and LOOM_PORT, else 127.0.0.1:8002; `--port 0` takes
any free one.

The log (stderr, a JSON object per line) says `bridge is listening` with the `port`, `partition assigned` and
`partitions revoked`; librdkafka's own lines have its `client` and its `facility`. SIGTERM and SIGINT let the
transaction in flight end, give the partitions back and exit with 0; SIGKILL at any moment costs nothing but time:
whoever takes the partitions over goes on where the last transaction was.
Exit status 2: the settings are wrong, or the port cannot be listened on.
"""

import asyncio
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from prometheus_client import CollectorRegistry, ProcessCollector

from serve_app import settings as settings_module
from serve_app.bridges.bridge import Bridge
from serve_app.bridges.health import application
from serve_app.bridges.settings import KafkaSettings
from serve_app.settings import SettingsError, bridge_key
from serve_app.telemetry import configure_logging, get_logger
from serve_app.telemetry.board import BRIDGE, Source
from serve_app.telemetry.bridge_metrics import BridgeMetrics

_log = get_logger(__name__)

DEFAULT_URL = "ws://127.0.0.1:8000"


def main(
    url: Annotated[str | None, typer.Option(help="Where the service is.")] = None,
    config: Annotated[Path | None, typer.Option(help="A Serve config file with a group `kafka`.")] = None,
    host: Annotated[str, typer.Option(envvar="LOOM_HOST", help="Address for health and metrics.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(envvar="LOOM_PORT", min=0, max=65_535, help="Its port; 0: any.")] = 8002,
) -> None:
    """Bridge Kafka topics to a running service: chunks of audio in, timed words out."""
    try:
        settings = settings_module.load(config) if config else settings_module.from_args({}, origin="environment")
        if settings.kafka is None:
            raise SettingsError(["LOOM_KAFKA_BOOTSTRAP_SERVERS: expected brokers (host:port), got nothing"])
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None
    try:
        listener = socket.create_server((host, port))
    except (OSError, UnicodeError) as error:  # the latter for what can be no host's name
        reason = getattr(error, "strerror", None) or error
        print(f"cannot listen on {host}:{port} ({reason}): --host and --port choose another address", file=sys.stderr)
        raise typer.Exit(2) from None
    configure_logging(settings.log_level, settings.log_format)
    url = url or settings.kafka.service_url or DEFAULT_URL
    asyncio.run(_run(settings.kafka, url, bridge_key(settings.kafka), listener))


async def _run(settings: KafkaSettings, url: str, key: str | None, listener: socket.socket) -> None:
    metrics = BridgeMetrics(CollectorRegistry())
    ProcessCollector(registry=metrics.registry)
    bridge = Bridge(settings, url, key, metrics)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, bridge.stop)
    source = Source(BRIDGE, f"{socket.gethostname()}-{secrets.token_hex(4)}")
    app = application(bridge, metrics.registry, source)
    server = _Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    serving = asyncio.create_task(server.serve([listener]))
    _log.info("bridge is listening", port=listener.getsockname()[1], replica=source.replica)
    try:
        await bridge.run()
    finally:
        server.should_exit = True
        await serving


class _Server(uvicorn.Server):
    """Leaves signals to the bridge, which ends the server."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


if __name__ == "__main__":
    typer.run(main)
