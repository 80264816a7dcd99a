"""The HTTP and WebSocket routes of an ingress replica."""

import asyncio
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

from serve_app.errors import NO_ENGINE, TooManyConnections
from serve_app.ingress.access import Access
from serve_app.ingress.broken_connections import BrokenConnections
from serve_app.ingress.connections import ConnectionLimit
from serve_app.ingress.tracing import TraceContext, flush_traces
from serve_app.ingress.watchdog import Watchdog
from serve_app.ingress.web import WebPage
from serve_app.protocols import moshi_http
from serve_app.protocols.conversation import Dialect, Host, converse, refuse
from serve_app.protocols.moshi import Moshi
from serve_app.protocols.openai.models import model_routes
from serve_app.protocols.openai.realtime import Realtime
from serve_app.protocols.openai.transcriptions import Transcriptions
from serve_app.protocols.stream_v1 import StreamV1
from serve_app.protocols.tagged_text import TaggedText
from serve_app.protocols.transcribe import Transcribe
from serve_app.session.checkpoint import Restored
from serve_app.session.engines import EnginePool
from serve_app.session.models import Models, ServedModel
from serve_app.session.registry import SessionRegistry
from serve_app.session.session import Session
from serve_app.session.vault import VaultClient
from serve_app.settings import Settings
from serve_app.telemetry import IngressMetrics
from serve_app.telemetry.bridge_metrics import CONNECTED as BRIDGE_CONNECTED
from serve_app.telemetry.exposition import render
from serve_app.telemetry.publisher import Publisher

UNLISTED = ("/", "/v1/models/{model:path}")
"""Paths that `GET /` leaves out: its own, and one that begins with another one."""


def endpoints(routes: Iterable[BaseRoute]) -> dict[str, str]:
    """The path of each route, by the last part of it."""
    paths = [route.path for route in routes if isinstance(route, Route | WebSocketRoute)]
    return {path.rpartition("/")[2]: path for path in paths if path not in UNLISTED}


class Ingress:
    """One ingress replica's routes and what they share."""

    def __init__(
        self,
        settings: Settings,
        engines: Mapping[str, EnginePool],
        vault: VaultClient,
        metrics: IngressMetrics,
        publisher: Publisher,
        token_secret: bytes | None = None,
    ) -> None:
        """`engines` are those of each model, by its name; `publisher` tells others the `metrics`, and theirs here.

        `token_secret` signs browsers' tokens, for all replicas that have the same one.
        """
        self._models = Models(settings, engines)
        self._access = Access(settings, token_secret or secrets.token_bytes(32), metrics, self._models.loads)
        self._settings = settings
        self._metrics = metrics
        self._publisher = publisher
        self.sessions = SessionRegistry(
            self._new_session,
            self._models,
            vault,
            settings.session,
            metrics,
            most_per_key=self._access.most_sessions,
            share_of=self._access.share_of,
            key_name=self._access.key_name,
        )
        """The sessions of this replica."""
        self._connections = ConnectionLimit(settings.ingress, metrics)
        self._watchdog = Watchdog(self.sessions, self._models)
        metrics.registry.register(self._watchdog)
        self.host = Host(self.sessions, self._models, settings.ingress, metrics)
        """What all its conversations share."""
        self.stream = self._speaking(self._dialects()["/v1/stream"])
        """The endpoint of `WS /v1/stream`, for clients that come another way."""
        self._started_at = time.time()

    def application(self) -> Starlette:
        """The ASGI application; its lifespan starts and stops the links to the engines."""
        return Starlette(
            routes=[
                Route("/", self.information),
                Route("/health", self.health),
                Route("/healthz", self.health),
                Route("/readyz", self.readiness),
                Route("/status", self.status),
                Route("/metrics", self.metrics),
                Route("/api/build_info", self.moshi_build_info),
                Route("/api/modules_info", self.moshi_modules_info),
                Route(moshi_http.PATH, moshi_http.Upload(self.host), methods=["POST"]),
                *(WebSocketRoute(path, self._speaking(dialect)) for path, dialect in self._dialects().items()),
                *model_routes(self._models, self._settings.app_name, int(self._started_at)),
                Route("/v1/audio/transcriptions", Transcriptions(self.host), methods=["POST"]),
                *self._access.routes(),
            ],
            middleware=[
                Middleware(TraceContext),
                Middleware(BrokenConnections),
                Middleware(WebPage),
                *self._access.middleware(),
            ],
            lifespan=self._lifespan,
        )

    def _dialects(self) -> dict[str, Callable[[WebSocket], Dialect]]:
        """What is spoken where."""
        longest_wait_s = self._settings.ingress.max_wait_seconds
        return {
            "/v1/stream": lambda websocket: StreamV1(websocket.query_params, longest_wait_s),
            "/v1/transcribe": lambda websocket: Transcribe(websocket.query_params),
            "/ws": lambda websocket: TaggedText(websocket.query_params),
            moshi_http.PATH: lambda websocket: Moshi(websocket.query_params),
            "/v1/realtime": lambda websocket: Realtime(websocket, self._models),
        }

    def _speaking(self, dialect: Callable[[WebSocket], Dialect]) -> Callable[[WebSocket], Awaitable[None]]:
        async def endpoint(websocket: WebSocket) -> None:
            spoken = dialect(websocket)
            try:
                with self._connections.count(websocket):
                    await converse(websocket, spoken, self.host)
            except TooManyConnections as error:
                await refuse(websocket, spoken, self.host, error)

        return endpoint

    def _new_session(self, session_id: str, model: ServedModel, restored: Restored | None) -> Session:
        return Session(session_id, model, self._settings.session, self._metrics, restored)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        for model in self._models:
            model.engines.start()
        self.sessions.start()
        self._watchdog.start()
        self._publisher.start()
        yield
        await self._publisher.stop()
        await self._watchdog.stop()
        await self.sessions.stop()
        await asyncio.gather(*(model.engines.stop() for model in self._models))
        await flush_traces()

    async def information(self, request: Request) -> Response:
        """`GET /`: what this service is; browsers get `WebPage`."""
        return JSONResponse(
            {
                "service": self._settings.app_name,
                "description": "Streaming speech-to-text",
                "model": self._settings.model,
                "models": self._models.names,
                "ready": self._models.any_ready,
                "longest_wait_seconds": self._settings.ingress.max_wait_seconds,
                "endpoints": endpoints(request.app.routes),
            },
            headers={"Vary": "Accept"},
        )

    async def health(self, request: Request) -> Response:
        """`GET /health`, `/healthz`: the process answers."""
        return PlainTextResponse("ok")

    async def readiness(self, request: Request) -> Response:
        """`GET /readyz`: 200 once any model has an engine that has loaded it, else 503.

        It names those that have none, and says how the bridge is: neither is a reason to send nobody here.
        """
        missing = self._models.without_engine
        lacking = [f"{NO_ENGINE}: {', '.join(missing)}"] if missing else []
        if not self._models.any_ready:
            return PlainTextResponse(lacking[0], 503, headers={"Retry-After": "1"})
        if self._settings.kafka is None:
            return PlainTextResponse("; ".join(["ready", *lacking]))
        families = await self._publisher.everybody()
        bridges = [sample for family in families if family.name == BRIDGE_CONNECTED for sample in family.samples]
        well = sum(bool(sample.value) for sample in bridges)
        bridge = f"Kafka bridge: {well} of {self._settings.kafka.replicas} replicas connected"
        return PlainTextResponse("; ".join(["ready", *lacking, bridge]))

    async def status(self, request: Request) -> Response:
        """`GET /status`: this replica's sessions, and the engines that it is connected to."""
        return JSONResponse(
            {
                "service": self._settings.app_name,
                "model": self._settings.model,
                "ready": self._models.any_ready,
                "replica": os.getpid(),
                "uptime_seconds": round(time.time() - self._started_at, 1),
                "sessions_open": len(self.sessions),
                "held": self._watchdog.counts(),
                "engines": {name: load for model in self._models for name, load in model.engines.loads().items()},
                "models": {
                    model.name: {
                        "ready": model.engines.is_ready,
                        "clients_waiting": len(model.admission),
                        "engines": list(model.engines.loads()),
                    }
                    for model in self._models
                },
            }
        )

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`: Prometheus metrics of all replicas."""
        body, content_type = render(await self._publisher.everybody(), request.headers.get("accept", ""))
        return Response(body, media_type=content_type)

    async def moshi_build_info(self, request: Request) -> Response:
        """`GET /api/build_info`, as moshi-server has it."""
        return JSONResponse(moshi_http.build_info())

    async def moshi_modules_info(self, request: Request) -> Response:
        """`GET /api/modules_info`, as moshi-server has it."""
        return JSONResponse(moshi_http.modules_info(self._models))
