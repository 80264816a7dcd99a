"""The ingress as a Ray Serve deployment."""

import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from prometheus_client import CollectorRegistry
from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.util.queue import Queue
from starlette.applications import Starlette

from serve_app.ingress import ray_programs
from serve_app.ingress.backpressure import bound_receive_queues
from serve_app.ingress.http_server import bound_http_server
from serve_app.ingress.memory import return_freed_memory
from serve_app.ingress.ray_vault import ray_vaults
from serve_app.ingress.routes import Ingress
from serve_app.ingress.serve_engines import ServeEngines
from serve_app.ingress.shutdown import Shutdown, on_graceful_shutdown
from serve_app.ingress.tracing import configure_tracing
from serve_app.settings import MEBIBYTE, Settings
from serve_app.telemetry import IngressMetrics, configure_logging, get_logger
from serve_app.telemetry.board import INGRESS, Source
from serve_app.telemetry.publisher import Publisher
from serve_app.telemetry.ray_board import RayBoard

_log = get_logger(__name__)


@serve.ingress()
class IngressReplica:
    """One replica: the routes, and the links to the engines behind them."""

    async def __init__(  # type: ignore[misc]
        self,
        settings: Settings,
        engines: Mapping[str, DeploymentHandle],
        token_secret: bytes,
        bridge: DeploymentHandle | None = None,
    ) -> None:
        """`engines` are handles of each model's deployment, by its name; `token_secret` signs browsers' tokens.

        `bridge` is not called: Serve runs the deployments that its ingress is given.
        """
        configure_logging(settings.log_level, settings.log_format)
        configure_tracing(settings.app_name)
        warn_of_python_proxy()
        return_freed_memory()
        bound_receive_queues()
        bound_http_server()
        pools = {
            model: ServeEngines(
                engine.options(stream=True),
                settings.link,
                settings.ingress.admission_timeout_seconds,
                settings.served[model].engine.autoscaling,
            )
            for model, engine in engines.items()
        }
        vault = ray_vaults(
            settings.app_name, settings.session.resume_window_seconds, settings.session.vault_megabytes * MEBIBYTE
        )
        context = serve.get_replica_context()
        metrics = IngressMetrics(CollectorRegistry())
        source = Source(INGRESS, context.replica_id.unique_id)
        publisher = Publisher(source, metrics.registry, RayBoard(settings.app_name))
        self._routes = Ingress(settings, pools, vault, metrics, publisher, token_secret)
        self._shutdown = Shutdown(
            self._routes.sessions,
            context.app_name,
            context.deployment,
            settings.ingress.graceful_shutdown_timeout_seconds,
        )
        on_graceful_shutdown(self._shutdown.begin)

    async def transcribe(self, audio: Queue, query: Mapping[str, str]) -> AsyncGenerator[str]:
        """For Ray programs: `WS /v1/stream` with the queue's items as the client's messages, None being the end.

        `query` is as in the address. Yields the messages as JSON text. `serve_app.client.on_ray` is the other side.
        """
        messages = ray_programs.converse_over_queue(self._routes.stream, audio, query)
        async with aclosing(messages):
            async for message in messages:
                yield message

    async def transcribe_queue(self, audio: Queue, transcription: Queue, wait_s: float = 0.0, model: str = "") -> None:
        """For Ray programs: take bytes of audio files from one queue, up to a None, and put their text into another.

        The files may be of any format, and cut anywhere; a chunk that begins as a file does begins the next one. The
        text comes as soon as the model has it (`model`, or the first one), a leading space starts a word. Its end is a
        None, also after an error, which is raised here, as a SpeechError.
        """
        await ray_programs.transcribe_queue(audio, transcription, wait_s, model, self._routes.host)

    def __serve_build_asgi_app__(self) -> Starlette:
        """What Serve mounts, once the constructor is through."""
        return self._routes.application()


def warn_of_python_proxy() -> None:
    """Say loudly that audio passes Serve's Python proxy, if it does.

    The proxy costs 1.26 ms of CPU per message: 200 sessions saturate it, while HAProxy carries them with a fifth of a
    core (measured on Ray 2.60; see docs/architecture.md).
    """
    modes = ("RAY_SERVE_ENABLE_HA_PROXY", "RAY_SERVE_ENABLE_DIRECT_INGRESS")
    if not any(os.environ.get(mode) == "1" for mode in modes):
        _log.warning(
            "AUDIO PASSES SERVE'S PYTHON PROXY, which saturates at about 200 sessions: start every node of the cluster"
            " with RAY_SERVE_ENABLE_HA_PROXY=1 (`make serve` and `stt serve` do)"
        )
