"""librdkafka's own log lines, in our log: without this it writes them to stderr as plain text."""

from serve_app.telemetry import get_logger

_log = get_logger(__name__)


class LibrdkafkaLog:
    """What confluent-kafka's clients take as `logger`. They hand lines over while they are polled."""

    def log(self, level: int, template: str, facility: str, client: str, text: str) -> None:
        """`level` is the standard library's; `template` puts the rest together, which is told apart here instead."""
        _log.log(level, text, facility=facility, client=client)
