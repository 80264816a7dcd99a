"""Other services' names for what we count."""

import pytest
from prometheus_client import CollectorRegistry

from serve_app.telemetry import EngineMetrics, IngressMetrics
from serve_app.telemetry.aliases import aliases
from serve_app.telemetry.board import BRIDGE, ENGINE, INGRESS, Report, Source
from serve_app.telemetry.bridge_metrics import BridgeMetrics
from serve_app.telemetry.exposition import merged


@pytest.fixture
def values() -> dict[tuple[str, str], float]:
    """Samples by name and `le`, of one ingress and one engine."""
    ingress, engine = IngressMetrics(CollectorRegistry()), EngineMetrics(CollectorRegistry())
    ingress.sessions_total.labels("demo", "stream", "done").inc(3)
    ingress.sessions_total.labels("demo", "moshi", "done").inc(1)
    ingress.sessions_total.labels("demo", "moshi", "left").inc(5)
    ingress.session_audio_seconds.observe(9.5)
    ingress.result_seconds.observe(0.03)
    engine.stage_seconds.observe("step", [0.015, 0.05])
    engine.stage_seconds.observe("queue", [7.0])
    families = merged(
        [
            Report(Source(INGRESS, "one"), tuple(ingress.registry.collect())),
            Report(Source(ENGINE, "two"), tuple(engine.registry.collect())),
        ]
    )
    samples = [sample for family in aliases(families) for sample in family.samples]
    return {(sample.name, sample.labels.get("le", "")): sample.value for sample in samples}


def test_the_names_of_moshi_server(values):
    assert values["asr_connect", ""] == 9
    assert values["asr_model_step_duration_count", ""] == 2
    assert values["asr_model_step_duration_bucket", "0.02"] == 1
    assert values["asr_model_step_duration_bucket", "+Inf"] == 2
    assert values["asr_connection_num_steps_bucket", "25.0"] == 0
    assert values["asr_connection_num_steps_bucket", "125.0"] == 1
    assert values["asr_connection_num_steps_sum", ""] == pytest.approx(9.5 * 12.5)


def test_its_buckets_are_among_ours(values):
    """moshi-server's own dashboards may name them."""
    bounds = {name: {float(le) for n, le in values if n == name and le} for name, _ in values}
    assert {0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08} <= bounds["asr_model_step_duration_bucket"]
    steps = {2, 25, 125, 250, 500, 750, 1125, 1500, 2250, 3000, 4500}
    assert steps <= bounds["asr_connection_num_steps_bucket"]


def test_the_names_of_the_kafka_service(values):
    assert values["kyutai_stt_transcripts_produced_total", ""] == 4
    assert values["kyutai_stt_processing_duration_seconds_count", ""] == 1
    assert not [name for name, _ in values if "chunk" in name]


def test_where_there_is_a_bridge_the_kafka_services_names_are_its_own():
    ingress, bridge = IngressMetrics(CollectorRegistry()), BridgeMetrics(CollectorRegistry())
    ingress.sessions_total.labels("demo", "stream", "done").inc(3)
    ingress.result_seconds.observe(0.03)
    bridge.chunks_total.inc(5)
    bridge.transcripts_total.inc(4)
    bridge.processing_seconds.observe(1.0)
    sources = (Source(INGRESS, "one"), ingress), (Source(BRIDGE, "two"), bridge)
    families = merged([Report(source, tuple(metrics.registry.collect())) for source, metrics in sources])
    samples = {sample.name: sample for family in aliases(families) for sample in family.samples}
    assert samples["kyutai_stt_audio_chunks_processed_total"].value == 5
    assert samples["kyutai_stt_transcripts_produced_total"].value == 4
    assert samples["kyutai_stt_processing_duration_seconds_count"].value == 1
    assert samples["kyutai_stt_processing_duration_seconds_sum"].value == 1.0
