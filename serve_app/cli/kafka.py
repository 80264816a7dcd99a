"""Which brokers and topics `stt kafka-send` and `stt kafka-listen` talk to.

They read the environment as the bridge does (`LOOM_KAFKA_…`); options win.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from confluent_kafka import KafkaError, KafkaException

from serve_app.bridges.settings import KafkaSettings
from serve_app.cli.failure import BAD_INPUT, FAILED, NO_SERVER, fail, failures_reported
from serve_app.settings import SettingsError, from_args

LOCAL_SERVERS = "127.0.0.1:9092"
"""Where `make kafka` listens."""

ANSWER_SECONDS = 10.0
"""How long brokers may take to answer."""

PREFIX = "LOOM_KAFKA_"

Servers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        metavar="HOST:PORT,…",
        help=f"Brokers; else LOOM_KAFKA_BOOTSTRAP_SERVERS, else {LOCAL_SERVERS}.",
    ),
]

_NO_ANSWER = (KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._ALL_BROKERS_DOWN, KafkaError._RESOLVE)


def find_kafka(environ: Mapping[str, str], **options: str | None) -> KafkaSettings:
    """The bridge's settings of that environment, in which options take the place of the variables of those names.

    Raises `SettingsError`.
    """
    variables = {name: value for name, value in environ.items() if name.startswith(PREFIX)}
    variables |= {f"{PREFIX}{name.upper()}": value for name, value in options.items() if value is not None}
    settings = from_args({"kafka": {"bootstrap_servers": LOCAL_SERVERS}}, variables).kafka
    assert settings is not None  # there are bootstrap servers
    return settings


def client_properties(settings: KafkaSettings) -> dict[str, Any]:
    """What a client of these brokers is made with: silent, for the commands say themselves what is wrong."""
    return settings.client_properties | {"logger": logging.Logger("librdkafka", logging.CRITICAL)}


@contextmanager
def kafka_failures_reported(settings: KafkaSettings) -> Iterator[None]:
    """End as all commands do, on what brokers say or do not say, too."""
    with failures_reported():
        try:
            yield
        except KafkaException as error:
            reason: KafkaError = error.args[0]
            if reason.code() in _NO_ANSWER:
                fail(f"{settings.bootstrap_servers}: no answer from Kafka ({reason.str()})", NO_SERVER)
            fail(f"Kafka at {settings.bootstrap_servers}: {reason.str()}", FAILED)


def settings_or_fail(environ: Mapping[str, str], **options: str | None) -> KafkaSettings:
    """As `find_kafka`, but a wrong setting ends the command."""
    try:
        return find_kafka(environ, **options)
    except SettingsError as error:
        fail(error, BAD_INPUT)
