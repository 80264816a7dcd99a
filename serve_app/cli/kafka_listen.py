"""`stt kafka-listen`: print the transcripts that the bridge writes to Kafka, as they come."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Annotated

import typer
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaException, TopicPartition
from pydantic import ValidationError

from serve_app.bridges.messages import ChunkTranscript
from serve_app.bridges.settings import KafkaSettings
from serve_app.cli.kafka import ANSWER_SECONDS, Servers, client_properties, kafka_failures_reported, settings_or_fail

POLL_SECONDS = 0.5


def kafka_listen(
    *,
    device: Annotated[str | None, typer.Option(metavar="ID", help="Only what this device has said.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="What is there already, too, not only what comes.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Every transcript, also those without words, as JSON.")] = False,
    topic: Annotated[
        str | None,
        typer.Option(help="Where transcripts are; else LOOM_KAFKA_OUTPUT_TOPIC, else media.text.transcribed.words."),
    ] = None,
    bootstrap_servers: Servers = None,
) -> None:
    """Print what devices say until Ctrl-C: a word per line, with its time (UTC) and its device."""
    settings = settings_or_fail(os.environ, bootstrap_servers=bootstrap_servers, output_topic=topic)
    with kafka_failures_reported(settings):
        for transcript in _transcripts(settings, from_beginning):
            if device is not None and transcript.device_id != device:
                continue
            if json:
                print(transcript.model_dump_json(), flush=True)
                continue
            for word in transcript.words:
                print(f"{word.start_at:%H:%M:%S.%f}"[:-4], transcript.device_id, word.word, flush=True)


def _transcripts(settings: KafkaSettings, from_beginning: bool) -> Iterator[ChunkTranscript]:
    """What is committed on the output topic, of all partitions, without end. Raises KafkaException."""
    consumer = Consumer(
        client_properties(settings)
        | {
            "group.id": "stt-kafka-listen",  # is never joined, but the library wants a name
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    with closing(consumer):
        offset = OFFSET_BEGINNING if from_beginning else OFFSET_END
        partitions = _partitions(consumer, settings.output_topic)
        consumer.assign([TopicPartition(settings.output_topic, number, offset) for number in partitions])
        typer.echo(f"stt: listening to {settings.output_topic}; Ctrl-C ends it", err=True)
        while True:
            message = consumer.poll(POLL_SECONDS)
            if message is None:
                continue
            if error := message.error():
                raise KafkaException(error)
            try:
                yield ChunkTranscript.model_validate_json(message.value() or b"")
            except ValidationError as error:
                reason = f"expected a transcript, got something else: {error.errors()[0]['msg']}"
                typer.echo(f"stt: partition {message.partition()}, offset {message.offset()}: {reason}", err=True)


def _partitions(consumer: Consumer, topic: str) -> list[int]:
    """The topic's partitions; waits until somebody has made it. Raises KafkaException."""
    told = False
    while not (found := list(consumer.list_topics(topic, timeout=ANSWER_SECONDS).topics[topic].partitions)):
        if not told:
            print(f"stt: waiting for the topic {topic}", file=sys.stderr, flush=True)
            told = True
        time.sleep(POLL_SECONDS)
    return found
