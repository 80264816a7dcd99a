"""OpenTelemetry traces, where the environment asks for them: one span per session, sent over OTLP.

Set up by OpenTelemetry's own variables (`OTEL_EXPORTER_OTLP_ENDPOINT`, `…_HEADERS`, `OTEL_SERVICE_NAME`,
`OTEL_TRACES_SAMPLER`, …). A client that sends a `traceparent` header (W3C Trace Context) finds the session in its own
trace. Without the variables a span costs next to nothing, and goes where else a tracer provider was set up.
"""

import asyncio
import os
from contextlib import suppress

from opentelemetry import context, propagate, trace
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Variables of which one must be set."""

FLUSH_SECONDS = 3.0
"""How long the spans of the last sessions may take to leave, when a replica is stopped."""


def configure_tracing(service_name: str) -> None:
    """Send this process's spans as the environment says; call once per process.

    Spans that cannot be sent are dropped (OpenTelemetry's queue holds 2,048).
    """
    if not any(os.environ.get(name) for name in ENDPOINTS):
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # 0.2 s that most never need

    provider = TracerProvider(resource=Resource.create({} if _is_named() else {SERVICE_NAME: service_name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)


async def flush_traces() -> None:
    """Send the spans that are left, or give up after a moment."""
    provider = trace.get_tracer_provider()
    if isinstance(provider, TracerProvider):
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_SECONDS):  # OpenTelemetry's own limit is not kept (its issue 4568)
                await asyncio.to_thread(provider.force_flush)


def _is_named() -> bool:
    return "OTEL_SERVICE_NAME" in os.environ or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")


class TraceContext:
    """ASGI middleware: spans of a connection are children of the span that its `traceparent` header names."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        token = context.attach(propagate.extract(Headers(scope=scope)))
        try:
            await self._app(scope, receive, send)
        finally:
            context.detach(token)
