"""`/metrics`: everything, of everybody, in Prometheus' format."""

import asyncio

import httpx
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.parser import text_string_to_metric_families

from serve_app import client
from serve_app.telemetry.board import ENGINE, INGRESS, Report, Source
from serve_app.telemetry.exposition import merged, render
from tests.support import LocalBoard, serving


def registry(value: float) -> CollectorRegistry:
    made = CollectorRegistry()
    Gauge("stt_something_open", "Open.", registry=made).set(value)
    Counter("stt_something_total", "So far.", ["kind"], registry=made).labels("a").inc(value)
    return made


def test_replicas_are_told_apart_by_labels():
    reports = [
        Report(Source(INGRESS, "one"), tuple(registry(1.0).collect())),
        Report(Source(ENGINE, "two"), tuple(registry(2.0).collect())),
        Report(None, tuple(registry(3.0).collect())),
    ]
    body, content_type = render(merged(reports))
    assert content_type.startswith("text/plain")
    lines = body.decode().splitlines()
    assert [line for line in lines if line.startswith("stt_something")] == [
        'stt_something_open{deployment="ingress",replica="one"} 1.0',
        'stt_something_open{deployment="engine",replica="two"} 2.0',
        "stt_something_open 3.0",
        'stt_something_total{deployment="ingress",kind="a",replica="one"} 1.0',
        'stt_something_total{deployment="engine",kind="a",replica="two"} 2.0',
        'stt_something_total{kind="a"} 3.0',
    ]
    assert lines.count("# TYPE stt_something_total counter") == 1


def test_rendering_follows_the_accept_header():
    body, content_type = render([], "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


async def test_what_a_service_says_follows_prometheus_conventions(engines, clip):
    async with serving(engines) as service:
        async for _ in client.transcribe(service.url, clip.samples, rtf=0.0):
            pass
        await service.wait_until_empty()
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"{service.http}/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name, family in families.items():
        assert name.startswith(("stt_", "process_", "asr_", "kyutai_stt_")), name
        assert family.documentation.endswith((".", ")")), name
        series = {(sample.name, *sorted(sample.labels.items())) for sample in family.samples}
        assert len(series) == len(family.samples), f"{name}: a series appears twice"
        if name.startswith("stt_"):
            assert family.type in ("counter", "gauge", "histogram"), name
            if family.type == "counter":
                assert all(sample.name.endswith("_total") for sample in family.samples), name
            else:
                assert not name.endswith("_total"), name
    assert {sample.labels["stage"] for sample in families["stt_stage_seconds"].samples} == {
        "audio", "queue", "step", "link", "socket",
    }  # fmt: skip
    counts = {
        sample.labels["stage"]: sample.value
        for sample in families["stt_stage_seconds"].samples
        if sample.name.endswith("_count")
    }
    assert all(counts.values()), counts
    assert families["stt_metrics_complete"].samples[0].value == 1
    assert families["stt_engine_link_bytes"].samples[0].value > len(clip.samples)


async def test_a_scrape_works_while_the_board_is_away(engines):
    async with serving(engines) as service:
        board = service.board
        assert isinstance(board, LocalBoard)
        async with httpx.AsyncClient() as http:
            board.available = False
            text = (await http.get(f"{service.http}/metrics")).text
            assert "stt_metrics_complete 0.0" in text
            assert 'stt_sessions_open{deployment="ingress",model="demo",replica="ingress-1",state="live"} 0.0' in text
            assert "stt_engine_slots" not in text
            board.available = True
            await asyncio.sleep(0)
            text = (await http.get(f"{service.http}/metrics")).text
        assert "stt_metrics_complete 1.0" in text
        assert "stt_engine_slots{" in text
