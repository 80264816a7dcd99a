"""Logs: what is written, and what is not."""

import asyncio
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
import structlog

from serve_app.telemetry import configure_logging, get_logger, session_context


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
