"""What an engine counts."""

import dataclasses

import httpx
import numpy as np
from prometheus_client import CollectorRegistry

from serve_app import client
from serve_app.engine.batcher import Load
from serve_app.telemetry import EngineMetrics
from serve_app.telemetry.engine_metrics import LoadMetrics
from tests.support import serving


def test_every_field_of_a_load_report_has_a_metric():
    fields = {field.name for field in dataclasses.fields(Load)}
    assert fields == LoadMetrics.GAUGES.keys() | LoadMetrics.COUNTERS.keys()


def test_steps_and_their_frames_are_counted():
    metrics = EngineMetrics(CollectorRegistry())
    metrics.note_step(np.array([0.001, 0.003, 0.1]), 0.02)
    read = metrics.registry.get_sample_value
    assert read("stt_stage_seconds_count", {"stage": "queue"}) == 3
    assert read("stt_stage_seconds_bucket", {"stage": "queue", "le": "0.004"}) == 2
    assert read("stt_stage_seconds_sum", {"stage": "step"}) == 0.02
    assert read("stt_engine_batch_size_bucket", {"le": "2.0"}) == 0
    assert read("stt_engine_batch_size_bucket", {"le": "4.0"}) == 1


async def test_an_engine_counts_what_goes_through_it(engines, clip):
    async with serving(engines) as service, httpx.AsyncClient() as http:
        async for _ in client.transcribe(service.url, clip.samples, rtf=0.0):
            pass
        assert "stt_engine_slots{" in (await http.get(f"{service.http}/metrics")).text
    read = engines.service.metrics.registry.get_sample_value
    frames = read("stt_engine_frames_total")
    assert frames >= len(clip.samples) / 1_920
    assert read("stt_stage_seconds_count", {"stage": "queue"}) == frames
    assert read("stt_stage_seconds_count", {"stage": "step"}) == read("stt_engine_steps_total")
    assert read("stt_engine_links") == 1
    assert read("stt_engine_link_bytes_total", {"direction": "in"}) > frames * 1_920 * 4
    assert read("stt_engine_link_bytes_total", {"direction": "out"}) > frames * 16
