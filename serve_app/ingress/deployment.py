"""The ingress as a Ray Serve deployment."""

import os

from prometheus_client import CollectorRegistry
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from serve_app.ingress.backpressure import bound_receive_queues
from serve_app.ingress.http_server import bound_http_server
from serve_app.ingress.memory import return_freed_memory
from serve_app.ingress.ray_vault import RayVault
from serve_app.ingress.routes import Ingress
from serve_app.ingress.serve_engines import ServeEngines
from serve_app.ingress.shutdown import Shutdown, on_graceful_shutdown
from serve_app.settings import MEBIBYTE, Settings
from serve_app.telemetry import IngressMetrics, configure_logging, get_logger

_log = get_logger(__name__)


@serve.ingress()
class IngressReplica:
    """One replica: the routes, and the links to the engines behind them."""

    async def __init__(  # type: ignore[misc]
        self, settings: Settings, engine: DeploymentHandle, token_secret: bytes
    ) -> None:
        """`engine` is the handle of the engine deployment; `token_secret` signs browsers' tokens."""
        configure_logging(settings.log_level, settings.log_format)
        warn_of_python_proxy()
        return_freed_memory()
        bound_receive_queues()
        bound_http_server()
        engines = ServeEngines(engine.options(stream=True), settings.link, settings.ingress.admission_timeout_seconds)
        vault = RayVault(
            settings.app_name, settings.session.resume_window_seconds, settings.session.vault_megabytes * MEBIBYTE
        )
        metrics = IngressMetrics(CollectorRegistry(), engines.loads)
        self._routes = Ingress(settings, engines, vault, metrics, token_secret)
        context = serve.get_replica_context()
        self._shutdown = Shutdown(
            self._routes.sessions,
            context.app_name,
            context.deployment,
            settings.ingress.graceful_shutdown_timeout_seconds,
        )
        on_graceful_shutdown(self._shutdown.begin)

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
