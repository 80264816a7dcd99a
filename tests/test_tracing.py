import asyncio
import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import websockets
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from serve_app import settings as settings_module
from serve_app.engine.loading import load_model
from serve_app.ingress import tracing
from serve_app.ingress.tracing import ENDPOINTS, configure_tracing, flush_traces
from tests.support import running_engines, serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET = "s3cret-of-a-client"


class Collector(ThreadingHTTPServer):
    """What OTLP's HTTP exporter sends to."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Receiver)
        self.received: list[ExportTraceServiceRequest] = []

    @property
    def spans(self) -> list[Span]:
        scopes = [scope for request in self.received for each in request.resource_spans for scope in each.scope_spans]
        return [span for scope in scopes for span in scope.spans]


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Collector)
        self.server.received.append(ExportTraceServiceRequest.FromString(body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


async def two_sessions() -> None:
    """An ingress that one client uses within a trace of its own, and another one without; runs in its own process."""
    configure_tracing("stt")
    model = load_model(settings_module.from_args({"engine": {"slots": 2}}, environ={}))
    header = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Api-Key": SECRET}
    async with running_engines(model) as engines, serving(engines) as service:
        for headers in (header, {}):
            async with websockets.connect(service.url, additional_headers=headers) as connection:
                await connection.recv()
                await connection.send(b"EOS")
                async for _ in connection:
                    pass


async def run(environment: dict[str, str]) -> None:
    """`two_sessions` in a process of its own: a tracer provider cannot be taken back."""
    code = "import asyncio; from tests import test_tracing; asyncio.run(test_tracing.two_sessions())"
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, env=inherited | environment)
    try:
        async with asyncio.timeout(170):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.timeout(180)
async def test_every_session_is_a_span_in_its_clients_trace(collector):
    await run({ENDPOINTS[0]: f"http://127.0.0.1:{collector.server_port}"})
    first, second = collector.spans
    assert (first.trace_id.hex(), first.parent_span_id.hex()) == (TRACE, PARENT)
    assert second.trace_id.hex() != TRACE
    assert not second.parent_span_id
    for span in (first, second):
        facts = {fact.key: fact.value for fact in span.attributes}
        assert span.name == "session"
        assert facts["stt.outcome"].string_value == "done"
        assert facts["stt.dialect"].string_value == "stream"
        assert facts["stt.model"].string_value == "demo"
        assert len(facts["stt.session_id"].string_value) == 32
        assert [event.name for event in span.events] == ["open"]
        assert span.start_time_unix_nano < span.events[0].time_unix_nano < span.end_time_unix_nano
    resource = collector.received[0].resource_spans[0].resource
    assert ("service.name", "stt") in {(fact.key, fact.value.string_value) for fact in resource.attributes}
    assert not any(SECRET.encode() in request.SerializeToString() for request in collector.received)


@pytest.mark.timeout(180)
async def test_a_collector_that_is_away_costs_no_session():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    await run({ENDPOINTS[0]: f"http://127.0.0.1:{port}"})


class Stuck(SpanExporter):
    """Sends to a collector that takes connections and does not answer."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.began.set()
        self.may_end.wait()
        return SpanExportResult.FAILURE


async def test_a_collector_that_does_not_answer_is_not_waited_for(monkeypatch):
    exporter, provider = Stuck(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.05)
    provider.get_tracer("test").start_span("session").end()
    try:
        await flush_traces()  # the only one who could let it end is below
        assert await asyncio.to_thread(exporter.began.wait, 60)
    finally:
        exporter.may_end.set()
        provider.shutdown()


def test_nothing_is_traced_unasked(monkeypatch):
    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    configure_tracing("stt")
    assert not isinstance(trace.get_tracer_provider(), TracerProvider)
