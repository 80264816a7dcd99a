"""`stt kafka-send FILE…`: be a device that sends what it records to Kafka, for the bridge to transcribe."""

import base64
import io
import os
import time
import uuid
import wave
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from confluent_kafka import KafkaError, KafkaException, Message, Producer
from numpy.typing import NDArray

from serve_app.audio.files import read_audio
from serve_app.bridges.messages import AudioChunk
from serve_app.bridges.settings import KafkaSettings
from serve_app.cli.kafka import ANSWER_SECONDS, Servers, client_properties, kafka_failures_reported, settings_or_fail
from serve_app.speech import SAMPLE_RATE_HZ

LONGEST_CHUNK_S = 10.0
"""In base64 such a chunk stays below the 1 MiB that brokers take unless told otherwise."""


def kafka_send(
    files: Annotated[
        list[Path], typer.Argument(help="WAV, FLAC, MP3, Ogg, WebM or M4A files: one after the other.", metavar="FILE…")
    ],
    *,
    device: Annotated[
        str | None, typer.Option(metavar="ID", help="Which device records it; without one, a new one.")
    ] = None,
    chunk: Annotated[float, typer.Option(min=0.1, max=LONGEST_CHUNK_S, help="Seconds of audio per message.")] = 1.5,
    rtf: Annotated[
        float, typer.Option(min=0, help="Speed: 1 is real time, 3 three times faster, 0 as fast as it goes.")
    ] = 1.0,
    topic: Annotated[
        str | None, typer.Option(help="Where chunks go; else LOOM_KAFKA_INPUT_TOPIC, else device.audio.raw.")
    ] = None,
    bootstrap_servers: Servers = None,
) -> None:
    """Send files to Kafka as a device would: cut into chunks, each when it has been spoken."""
    settings = settings_or_fail(os.environ, bootstrap_servers=bootstrap_servers, input_topic=topic)
    device = device or f"stt-{uuid.uuid4().hex[:8]}"
    with kafka_failures_reported(settings):
        samples = np.concatenate([read_audio(file) for file in files])
        sent = _send(settings, cut(samples, device, chunk, datetime.now(UTC)), rtf)
    seconds = len(samples) / SAMPLE_RATE_HZ
    typer.echo(f"stt: {sent} chunks, {seconds:.1f} s of audio, sent to {settings.input_topic} as {device}", err=True)


def cut(samples: NDArray[np.float32], device: str, chunk_s: float, beginning: datetime) -> Iterator[AudioChunk]:
    """Cut audio (float32 [n], 24 kHz) into the chunks that a device sends, the first one recorded at `beginning`."""
    step = round(chunk_s * SAMPLE_RATE_HZ)
    recording = uuid.uuid4().hex
    for number, start in enumerate(range(0, len(samples), step), 1):
        piece = samples[start : start + step]
        yield AudioChunk(
            device_id=device,
            recorded_at=beginning + timedelta(seconds=start / SAMPLE_RATE_HZ),
            audio_data=base64.b64encode(_wav(piece)),
            sample_rate=SAMPLE_RATE_HZ,
            format="wav",
            duration_seconds=len(piece) / SAMPLE_RATE_HZ,
            chunk_id=f"{recording}-{number}",
            sequence_number=number,
        )


def _send(settings: KafkaSettings, chunks: Iterator[AudioChunk], rtf: float) -> int:
    """Send each chunk when it has been spoken; how many. Raises KafkaException."""
    refused: list[KafkaError] = []

    def note(error: KafkaError | None, _: Message) -> None:
        if error:
            refused.append(error)

    # Idempotent: what is sent again after a failure must not come behind what followed it.
    properties = {"delivery.timeout.ms": round(ANSWER_SECONDS * 1_000), "enable.idempotence": True}
    producer = Producer(client_properties(settings) | properties)
    producer.list_topics(timeout=ANSWER_SECONDS)
    began, spoken, sent = time.monotonic(), 0.0, 0
    for chunk in chunks:
        spoken += chunk.duration_seconds or 0.0
        if rtf:
            time.sleep(max(0.0, began + spoken / rtf - time.monotonic()))
        producer.produce(settings.input_topic, chunk.model_dump_json(), chunk.device_id, on_delivery=note)
        producer.poll(0)
        sent += 1
    if producer.flush(2 * ANSWER_SECONDS):
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
    if refused:
        raise KafkaException(refused[0])
    return sent


def _wav(samples: NDArray[np.float32]) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(SAMPLE_RATE_HZ)
        output.writeframes(np.clip(np.round(samples * 32_768), -32_768, 32_767).astype("<i2").tobytes())
    return file.getvalue()
