"""What a bridge that runs as a process of its own answers over HTTP."""

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from serve_app.bridges.bridge import Bridge
from serve_app.telemetry.board import Report, Source
from serve_app.telemetry.exposition import merged, render


def application(bridge: Bridge, registry: CollectorRegistry, source: Source) -> Starlette:
    """`/`, `/healthz`, `/readyz` and `/metrics`; `source` says whose metrics they are."""

    async def information(request: Request) -> Response:
        paths = ["/healthz", "/readyz", "/metrics"]
        return JSONResponse({"service": "stt-kafka-bridge", "ready": bridge.is_ready, "endpoints": paths})

    async def health(request: Request) -> Response:
        return PlainTextResponse("ok")

    async def readiness(request: Request) -> Response:
        if bridge.is_ready:
            return PlainTextResponse("ready")
        return PlainTextResponse("brokers or service do not answer", 503, headers={"Retry-After": "1"})

    async def metrics(request: Request) -> Response:
        families = merged([Report(source, tuple(registry.collect()))])
        body, content_type = render(families, request.headers.get("accept", ""))
        return Response(body, media_type=content_type)

    return Starlette(
        routes=[
            Route("/", information),
            Route("/healthz", health),
            Route("/readyz", readiness),
            Route("/metrics", metrics),
        ]
    )
