"""Other services' names for some of our metrics, so that their dashboards show this one.

moshi-server (`moshi-server/src/metrics.rs`): `asr_connect`, `asr_open_channels`, `asr_model_step_duration`,
`asr_connection_num_steps`. The Kafka service of the seeds: `kyutai_stt_audio_chunks_processed_total`,
`kyutai_stt_transcripts_produced_total` and `kyutai_stt_processing_duration_seconds`, which are those of the Kafka
bridge; without one the transcripts are sessions that were transcribed to their end, and the duration is a frame's.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

from serve_app.speech import FRAMES_PER_SECOND

HANDLER = {"handler": "all"}
"""moshi-server's label."""


def aliases(families: Sequence[Metric]) -> Iterator[Metric]:
    """The families (of `exposition.merged`) that other services have, too, under their names."""
    named = {family.name: family for family in families}
    ended, are_open = (named.get(name, Metric(name, "", "unknown")).samples for name in _SESSIONS)
    # moshi-server's counter lacks the suffix that clients would add to one.
    yield _sums("asr_connect", "Number of connections to the asr.", "unknown", [*ended, *are_open], HANDLER)
    yield _sums("asr_open_channels", "Number of open channels (users currently connected).", "gauge", are_open, HANDLER)
    yield from _of_the_kafka_service(named, ended)
    if stage := named.get("stt_stage_seconds"):
        steps = [sample for sample in stage.samples if sample.labels["stage"] == "step"]
        yield _histogram("asr_model_step_duration", "ASR model step duration distribution.", steps)
    if audio := named.get("stt_session_audio_seconds"):
        yield _histogram(
            "asr_connection_num_steps",
            "ASR model, distribution of number of steps for a connection.",
            audio.samples,
            scale=FRAMES_PER_SECOND,
        )


def _of_the_kafka_service(named: Mapping[str, Metric], ended: Sequence[Sample]) -> Iterator[Metric]:
    has_bridge = "stt_bridge_chunks" in named
    if has_bridge:
        chunks = named["stt_bridge_chunks"].samples
        yield _sums("kyutai_stt_audio_chunks_processed_total", "Total chunks processed.", "counter", chunks, {})
        done: Sequence[Sample] = named["stt_bridge_transcripts"].samples
    else:
        done = [sample for sample in ended if sample.labels["outcome"] == "done"]
    yield _sums("kyutai_stt_transcripts_produced_total", "Total transcripts generated.", "counter", done, {})
    if seconds := named.get("stt_bridge_processing_seconds" if has_bridge else "stt_result_seconds"):
        yield _histogram("kyutai_stt_processing_duration_seconds", "Processing time histogram.", seconds.samples)


_SESSIONS = ("stt_sessions", "stt_sessions_open")
"""Those that ended (a counter's family has no suffix), those that are open."""


def _sums(name: str, text: str, kind: str, samples: Sequence[Sample], labels: Mapping[str, str]) -> Metric:
    """One sample for each replica: the sum of its samples."""
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for sample in samples:
        sums[sample.labels["deployment"], sample.labels["replica"]] += sample.value
    family = Metric(name.removesuffix("_total") if kind == "counter" else name, text, kind)
    for (deployment, replica), value in sums.items():
        family.add_sample(name, {**labels, "deployment": deployment, "replica": replica}, value)
    return family


def _histogram(name: str, text: str, samples: Sequence[Sample], scale: float = 1.0) -> Metric:
    """The samples of a histogram under another name, its numbers times `scale`."""
    family = Metric(name, text, "histogram")
    for sample in samples:
        suffix = sample.name[sample.name.rindex("_") :]
        labels = {label: value for label, value in sample.labels.items() if label != "stage"}
        if "le" in labels:
            labels["le"] = _bound(float(labels["le"]) * scale)
        family.add_sample(name + suffix, labels, sample.value * (scale if suffix == "_sum" else 1.0))
    return family


def _bound(value: float) -> str:
    return "+Inf" if math.isinf(value) else repr(round(value, 6))
