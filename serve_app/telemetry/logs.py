"""Logs: to stderr, one event per line, with names and values instead of prose."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Literal

import structlog

LOGGER = "serve_app"
"""The standard library's logger above all of ours."""


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
