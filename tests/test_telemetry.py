"""Logs and metrics."""

import asyncio
import dataclasses
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from serve_app.engine.batcher import Load
from serve_app.telemetry import EngineMetrics, IngressMetrics, configure_logging, get_logger, render, session_context


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    """Leave logging as it was."""
    loggers = [logging.getLogger(), logging.getLogger("serve_app")]
    before = [(logger, list(logger.handlers), logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)
    structlog.reset_defaults()


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[dict]:
    output = capsys.readouterr()
    assert output.out == ""
    return [json.loads(line) for line in output.err.splitlines()]


def test_a_json_line(capsys: pytest.CaptureFixture[str]) -> None:
    log = get_logger("serve_app.somewhere")  # As modules do: before anyone has configured anything.
    configure_logging("info", "json")
    before = datetime.now(UTC)
    log.info("slot taken", slot=3, odd=object)
    (line,) = lines_of(capsys)
    assert before <= datetime.fromisoformat(line.pop("timestamp")) <= datetime.now(UTC)
    assert line == {
        "event": "slot taken",
        "level": "info",
        "logger": "serve_app.somewhere",
        "slot": 3,
        "odd": "<class 'object'>",
    }


def test_a_console_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "console")
    get_logger("serve_app.somewhere").warning("slot taken", slot=3)
    text = capsys.readouterr().err
    for part in ("warning", "slot taken", "slot=3", "serve_app.somewhere"):
        assert part in text


@pytest.mark.parametrize("format", ["console", "json"])
def test_a_traceback_does_not_show_what_was_said(capsys: pytest.CaptureFixture[str], format: str) -> None:
    configure_logging("info", format)
    spoken = "".join(["some", "thing ", "private"])
    try:
        raise ValueError(len(spoken))
    except ValueError as error:
        get_logger("serve_app.somewhere").error("failed", exc_info=error)
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert "something private" not in text


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning")
    log = get_logger("serve_app.somewhere")
    log.info("no")
    log.error("yes")
    assert [line["event"] for line in lines_of(capsys)] == ["yes"]
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging("loud")


def test_a_second_call_replaces_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("error", "console")
    configure_logging("debug", "json")
    get_logger("serve_app.somewhere").debug("once")
    assert [line["event"] for line in lines_of(capsys)] == ["once"]


def test_other_handlers_stay_and_do_not_repeat_our_lines(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[logging.LogRecord] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            seen.append(record)

    handler = Keeping()
    logging.getLogger().addHandler(handler)
    configure_logging()
    get_logger("serve_app.somewhere").info("ours")
    logging.getLogger("other").warning("theirs")
    assert handler in logging.getLogger().handlers
    assert [record.getMessage() for record in seen] == ["theirs"]
    assert [line["event"] for line in lines_of(capsys)] == ["ours"]


def test_other_libraries_get_our_format_where_nobody_else_has_set_one(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().handlers[:] = []
    configure_logging()
    logging.getLogger("other").warning("theirs %d", 5, extra={"place": "here"})
    (line,) = lines_of(capsys)
    assert (line["event"], line["logger"], line["level"], line["place"]) == ("theirs 5", "other", "warning", "here")


def test_exceptions(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    log = get_logger("serve_app.somewhere")
    try:
        raise RuntimeError("out of memory")
    except RuntimeError as error:
        log.exception("step failed")
        log.error("step failed", exc_info=error)
    for line in lines_of(capsys):
        assert "RuntimeError: out of memory" in line["exception"]
        assert "Traceback" in line["exception"]


def test_programs_outside_the_package_log_like_it(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    get_logger("__main__").info("started")
    assert [line["logger"] for line in lines_of(capsys)] == ["serve_app.__main__"]


async def test_the_session_is_on_every_line_of_its_task_only(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    log = get_logger("serve_app.somewhere")

    async def session(name: str) -> None:
        with session_context(name):
            log.info("open")
            await asyncio.sleep(0)
            await asyncio.create_task(asyncio.to_thread(log.info, "work"))
        log.info("closed")

    await asyncio.gather(session("a"), session("b"))
    lines = lines_of(capsys)
    assert sorted((line["event"], line.get("session_id", "-")) for line in lines) == [
        ("closed", "-"),
        ("closed", "-"),
        ("open", "a"),
        ("open", "b"),
        ("work", "a"),
        ("work", "b"),
    ]


def test_ingress_metrics() -> None:
    metrics = IngressMetrics(CollectorRegistry())
    metrics.sessions_open.inc()
    metrics.sessions_total.labels("done").inc()
    metrics.sessions_total.labels("idle_timeout").inc(2)
    metrics.frames_total.inc(25)
    metrics.first_token_seconds.observe(0.5)
    read = metrics.registry.get_sample_value
    assert read("stt_sessions_open") == 1
    assert read("stt_sessions_total", {"outcome": "idle_timeout"}) == 2
    assert read("stt_frames_total") == 25
    assert read("stt_first_token_seconds_bucket", {"le": "0.48"}) == 0
    assert read("stt_first_token_seconds_bucket", {"le": "0.56"}) == 1


def test_metrics_in_two_registries_are_apart() -> None:
    first, second = IngressMetrics(CollectorRegistry()), IngressMetrics(CollectorRegistry())
    first.words_total.inc()
    assert second.registry.get_sample_value("stt_words_total") == 0


def test_every_field_of_a_load_report_has_a_metric() -> None:
    fields = {field.name for field in dataclasses.fields(Load)}
    assert fields == EngineMetrics.GAUGES.keys() | EngineMetrics.COUNTERS.keys()


def test_engine_metrics_follow_the_reports() -> None:
    loads: dict[str, dict[str, float]] = {}
    read = IngressMetrics(CollectorRegistry(), lambda: loads).registry.get_sample_value
    assert read("stt_engine_slots_used", {"replica": "one"}) is None
    loads["one"] = {"slots": 32, "slots_used": 5, "headroom": -0.2, "frames_total": 150, "unknown": 1}
    loads["two"] = {"slots": 32, "slots_used": 9}
    assert read("stt_engine_slots_used", {"replica": "one"}) == 5
    assert read("stt_engine_slots_used", {"replica": "two"}) == 9
    assert read("stt_engine_headroom", {"replica": "one"}) == -0.2
    assert read("stt_engine_headroom", {"replica": "two"}) is None
    assert read("stt_engine_frames_total", {"replica": "one"}) == 150
    del loads["one"]
    assert read("stt_engine_slots_used", {"replica": "one"}) is None


def test_rendered_metrics_are_read_back_and_follow_conventions() -> None:
    report = dict.fromkeys([*EngineMetrics.GAUGES, *EngineMetrics.COUNTERS], 1.0)
    metrics = IngressMetrics(CollectorRegistry(), lambda: {"one": report})
    body, content_type = render(metrics.registry)
    assert content_type.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert families["stt_engine_step_p95_seconds"].samples[0].labels == {"replica": "one"}
    for name, family in families.items():
        assert name.startswith("stt_")
        assert family.documentation.endswith(".")
        if family.type == "counter":
            assert all(sample.name.endswith(("_total", "_created")) for sample in family.samples)
        else:
            assert not name.endswith("_total")


def test_rendering_follows_the_accept_header() -> None:
    body, content_type = render(CollectorRegistry(), "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body == b"# EOF\n"
