"""Logs and metrics: how every process of the service tells what it does.

Logs go to stderr, one event per line, with names and values instead of prose. Metrics are Prometheus', in a registry
the caller makes, so that several ingress processes or tests never share one.
"""

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

LOGGER = "serve_app"
"""The standard library's logger above all of ours."""

# ---------------------------------------------------------------------------------------------------------------- logs


class _StderrHandler(logging.Handler):
    """Writes to what `sys.stderr` is at the moment: Ray and pytest replace it."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


def configure_logging(level: str = "info", format: Literal["json", "console"] = "json") -> None:
    """Set up logs of `level` and above on stderr; call once per process, a second call replaces the first.

    Other libraries' handlers (Ray's, pytest's) stay. Other libraries' records get our format only where nobody else
    has set up the root logger. Raises ValueError for an unknown level.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if format == "json":
        rendering: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        # structlog's own tracebacks show local variables: what people said, resume tokens.
        plain = structlog.dev.plain_traceback
        rendering = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]
    handler = _StderrHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    ours, root = logging.getLogger(LOGGER), logging.getLogger()
    ours.setLevel(level.upper())
    ours.propagate = False  # Another handler on the root logger would write every line again, unformatted.
    for logger in (ours, root):
        for old in [old for old in logger.handlers if isinstance(old, _StderrHandler)]:
            logger.removeHandler(old)
        if logger is ours or not logger.handlers:
            logger.addHandler(handler)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Return the logger of a module (`__name__`); may be called before `configure_logging`."""
    inside = name == LOGGER or name.startswith(f"{LOGGER}.")
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name if inside else f"{LOGGER}.{name}")
    return logger


@contextlib.contextmanager
def session_context(session_id: str) -> Iterator[None]:
    """Put `session_id` on every log line of this task, and of tasks it starts, while the block runs."""
    with structlog.contextvars.bound_contextvars(session_id=session_id):
        yield


# ------------------------------------------------------------------------------------------------------------- metrics

TOKEN_BUCKETS = (0.08, 0.16, 0.24, 0.32, 0.4, 0.48, 0.56, 0.64, 0.72, 0.8, 0.96, 1.2, 1.6, 2.4, 3.2, 4.8, 8.0)
"""Seconds to a first token: frames of 80 ms around the models' delays of 0.5 and 2.5 s."""

ADMISSION_BUCKETS = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 2.5, 5.0)
"""Seconds to a slot: some milliseconds when one is free, some hundred when another session must end first."""

RESULT_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.4, 0.8, 1.6, 5.0)
"""Seconds from a frame to its result: beyond 0.08 s streams fall behind."""


class IngressMetrics:
    """What one ingress process counts; every metric starts with `stt_`."""

    def __init__(
        self, registry: CollectorRegistry, loads: Callable[[], Mapping[str, Mapping[str, float]]] = dict
    ) -> None:
        """`loads` returns the latest load report of every connected engine replica, by replica name."""
        self.registry = registry
        """The registry these metrics are in."""
        self.sessions_open = Gauge("stt_sessions_open", "Sessions open now.", registry=registry)
        self.sessions_total = Counter(
            "stt_sessions_total",
            "Sessions that ended here, by how: done, left, an error's code (at_capacity: no slot), or, going on"
            " elsewhere: disconnected, taken_over, restarting.",
            ["outcome"],
            registry=registry,
        )
        self.moves_total = Counter(
            "stt_moves_total",
            "Sessions that took another slot, by why: engine_lost, draining, restart, unpark, resume.",
            ["reason"],
            registry=registry,
        )
        self.move_seconds = Histogram(
            "stt_move_seconds", "Time a session was without a slot.", buckets=ADMISSION_BUCKETS, registry=registry
        )
        self.restarts_total = Counter(
            "stt_decoder_restarts_total",
            "Decoders started again from a short history, by why: silent, repeating.",
            ["reason"],
            registry=registry,
        )
        self.resumes_total = Counter(
            "stt_resumes_total", "Sessions that a client went on with after its connection.", registry=registry
        )
        self.checkpoint_seconds = Histogram(
            "stt_checkpoint_seconds", "Time to save sessions once.", buckets=ADMISSION_BUCKETS, registry=registry
        )
        self.checkpoint_bytes_total = Counter(
            "stt_checkpoint_bytes_total", "Bytes of sessions saved.", registry=registry
        )
        self.checkpoint_failures_total = Counter(
            "stt_checkpoint_failures_total", "Times that sessions could not be saved.", registry=registry
        )
        self.vault_sessions = Gauge(
            "stt_vault_sessions", "Sessions in the vault, of all ingress replicas, open or not.", registry=registry
        )
        self.vault_bytes = Gauge("stt_vault_bytes", "Memory that the vault's sessions take.", registry=registry)
        self.frames_total = Counter("stt_frames_total", "Frames of 80 ms sent to engines.", registry=registry)
        self.tokens_total = Counter("stt_tokens_total", "Text tokens sent to clients.", registry=registry)
        self.words_total = Counter("stt_words_total", "Words sent to clients.", registry=registry)
        self.turns_total = Counter("stt_turns_total", "Turn ends sent to clients.", registry=registry)
        self.first_token_seconds = Histogram(
            "stt_first_token_seconds",
            "Time from a session's first audio to its first text token (includes the silence before speech).",
            buckets=TOKEN_BUCKETS,
            registry=registry,
        )
        self.admission_seconds = Histogram(
            "stt_admission_seconds", "Time a session waited for its slot.", buckets=ADMISSION_BUCKETS, registry=registry
        )
        self.result_seconds = Histogram(
            "stt_result_seconds",
            "Time from sending a frame to an engine to its result.",
            buckets=RESULT_BUCKETS,
            registry=registry,
        )
        registry.register(EngineMetrics(loads))


class EngineMetrics(Collector):
    """The latest load report of every engine replica, by label `replica`.

    The values are the engines' own (`serve_app.engine.batcher.Load`): every connected ingress exports the same ones, so
    take the maximum over ingress processes, not the sum.
    """

    GAUGES: Mapping[str, str] = {
        "slots": "Slots of the engine.",
        "slots_used": "Slots in use.",
        "headroom": "1 - p95 of the step time over 80 ms; below 0 streams fall behind.",
        "step_p50_seconds": "Median of the step time.",
        "step_p95_seconds": "95th percentile of the step time.",
        "batch_size_mean": "Mean number of streams per step.",
    }
    """Values that go up and down: field of the load report, description."""

    COUNTERS: Mapping[str, str] = {
        "steps_total": "Steps of the model.",
        "frames_total": "Frames of 80 ms the model has taken.",
        "failed_steps_total": "Steps that failed.",
    }
    """Values that only grow while a replica lives: field of the load report, description."""

    def __init__(self, loads: Callable[[], Mapping[str, Mapping[str, float]]]) -> None:
        self._loads = loads

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; called by the registry."""
        reports = self._loads()
        for field, text in self.GAUGES.items():
            gauge = GaugeMetricFamily(f"stt_engine_{field}", text, labels=["replica"])
            yield self._filled(gauge, field, reports)
        for field, text in self.COUNTERS.items():
            counter = CounterMetricFamily(f"stt_engine_{field}", text, labels=["replica"])
            yield self._filled(counter, field, reports)

    @staticmethod
    def _filled(
        family: GaugeMetricFamily | CounterMetricFamily, field: str, reports: Mapping[str, Mapping[str, float]]
    ) -> Metric:
        for replica, report in reports.items():
            if field in report:
                family.add_metric([replica], report[field])
        return family


def render(registry: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """Return a registry's metrics and their content type, in the format the `Accept` header asks for."""
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type
