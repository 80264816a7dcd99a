"""How fast the bridge works a backlog off, and what people who speak meanwhile notice of it.

`python -m loadtest.kafka --devices 16 --seconds 60 --sessions 4` fills the input topic of a broker of its own (Java and
Maven, see `tools.kafka.broker`) before it starts a service of its own with the bridge. The rate counts from the first
transcript to the last. Then the same sessions speak once more, with nothing else to do for the service.
"""

import asyncio
import json
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from rich.console import Console

from loadtest.chaos.service import ServiceMisbehaves, started
from loadtest.script import write_script
from serve_app.bridges.messages import AudioChunk
from serve_app.bridges.settings import KafkaSettings
from serve_app.cli.failure import FAILED, fail
from serve_app.cli.kafka_send import cut
from serve_app.cli.server import StartFailed
from serve_app.measuring.speaking import Manner, Outcome, speak
from serve_app.samples import Clip, choose_clips
from serve_app.speech import SAMPLE_RATE_HZ
from tools.kafka.broker import Broker, BrokerFailed

PARTITIONS = 8
BROKER_SECONDS = 60.0
"""For the broker to take what is sent."""

SILENT_S = 120.0
"""Without a transcript for so long, nothing comes any more."""

MOST_WER = 0.2
"""Sessions that heard less count as failed; clips follow each other without a pause here."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Live:
    """What sessions noticed that spoke in real time."""

    words: int
    word_delay_p50_s: float
    word_delay_p99_s: float
    failures: int


@dataclass(frozen=True)
class Result:
    """How a backlog was worked off."""

    devices: int
    chunks: int
    audio_s: float
    drained_s: float
    """From the first transcript to the last."""
    chunks_per_s: float
    audio_s_per_s: float
    missing: int
    """Chunks that have no transcript."""
    doubled: int
    """Chunks that have more than one."""
    live_meanwhile: Live | None
    live_afterwards: Live | None


def backlog(devices: int, seconds: float, chunk_s: float) -> list[list[AudioChunk]]:
    """What each device has recorded, in chunks; the last one, of silence an hour later, ends what came before."""
    clips, draw = choose_clips(), random.Random(devices)
    beginning = datetime.now(UTC)
    silence = np.zeros(SAMPLE_RATE_HZ // 10, np.float32)
    found = []
    for number in range(devices):
        name = f"device-{number}"
        spoken = list(cut(write_script(clips, (seconds, seconds), draw).samples, name, chunk_s, beginning))
        [last] = cut(silence, name, chunk_s, beginning + timedelta(hours=1))
        found.append([*spoken, last.model_copy(update={"sequence_number": len(spoken) + 1})])
    return found


def fill(settings: KafkaSettings, recorded: Sequence[Sequence[AudioChunk]]) -> None:
    """Make the topics, and send everything, the devices in turns. Raises ServiceMisbehaves."""
    admin = AdminClient(settings.client_properties)
    topics = (settings.input_topic, settings.output_topic, settings.dead_letter_topic)
    for made in admin.create_topics([NewTopic(topic, PARTITIONS, 1) for topic in topics]).values():
        made.result(BROKER_SECONDS)
    producer = Producer(settings.client_properties | {"enable.idempotence": True})
    for turn in range(max(map(len, recorded))):
        for chunks in recorded:
            if turn < len(chunks):
                chunk = chunks[turn]
                producer.produce(settings.input_topic, chunk.model_dump_json(), chunk.device_id)
                producer.poll(0)
    if left := producer.flush(BROKER_SECONDS):
        raise ServiceMisbehaves(f"expected the broker to take every chunk, {left} are left")


class Drain:
    """Reads transcripts until each chunk has one."""

    def __init__(self, settings: KafkaSettings, chunk_ids: set[str]) -> None:
        self.seen: list[str] = []
        self.began = asyncio.Event()
        self.first_at = self.last_at = 0.0
        self._missing = chunk_ids
        properties = {"group.id": "loadtest", "enable.auto.commit": False, "isolation.level": "read_committed"}
        self._consumer = Consumer(settings.client_properties | properties)
        self._consumer.assign([TopicPartition(settings.output_topic, n, OFFSET_BEGINNING) for n in range(PARTITIONS)])

    async def run(self) -> None:
        """Read them all. Raises ServiceMisbehaves when none comes for long."""
        heard_at = time.monotonic()
        missing = set(self._missing)
        try:
            while missing:
                messages = await asyncio.to_thread(self._consumer.consume, 200, 0.2)
                now = time.monotonic()
                if now - heard_at > SILENT_S:
                    raise ServiceMisbehaves(f"no transcript for {SILENT_S:g} s; {len(missing)} are missing")
                for message in messages:
                    if message.error() is None and (chunk := json.loads(message.value())["chunk_id"]) in self._missing:
                        heard_at = now
                        self.seen.append(chunk)
                        missing.discard(chunk)
                if self.seen:
                    self.first_at, self.last_at = self.first_at or now, heard_at
                    self.began.set()
        finally:
            self._consumer.close()


async def measure(url: str, settings: KafkaSettings, recorded: Sequence[Sequence[AudioChunk]], sessions: int) -> Result:
    """Wait until everything is transcribed. Raises ServiceMisbehaves."""
    chunks = [chunk for one in recorded for chunk in one[:-1]]
    drain = Drain(settings, {chunk.chunk_id for chunk in chunks})
    draining = asyncio.create_task(drain.run())
    began = asyncio.create_task(drain.began.wait())
    await asyncio.wait([draining, began], return_when=asyncio.FIRST_COMPLETED)
    began.cancel()
    meanwhile = await live(url, sessions, draining)
    await draining
    afterwards = await live(url, sessions)
    first_ids = len(set(drain.seen))
    drained_s, audio_s = drain.last_at - drain.first_at, sum(chunk.duration_seconds or 0.0 for chunk in chunks)
    return Result(
        devices=len(recorded),
        chunks=len(chunks),
        audio_s=round(audio_s, 1),
        drained_s=round(drained_s, 2),
        chunks_per_s=round(len(chunks) / drained_s, 2),
        audio_s_per_s=round(audio_s / drained_s, 2),
        missing=len(chunks) - first_ids,
        doubled=len(drain.seen) - first_ids,
        live_meanwhile=meanwhile,
        live_afterwards=afterwards,
    )


async def live(url: str, sessions: int, until: asyncio.Task[None] | None = None) -> Live | None:
    """Hold so many sessions in real time, one after the other until the task is done, else one; None without any."""
    clips = choose_clips()

    async def people(number: int) -> list[Outcome]:
        outcomes = [await say(clips[number % len(clips)])]
        while until and not until.done():
            outcomes.append(await say(clips[(number + len(outcomes)) % len(clips)]))
        return outcomes

    async def say(clip: Clip) -> Outcome:
        return await speak(clip, Manner(url, most_wer=MOST_WER))

    outcomes = [outcome for one in await asyncio.gather(*map(people, range(sessions))) for outcome in one]
    delays = [delay for outcome in outcomes for _, delay in outcome.word_delays]
    if not delays:
        return None
    middle, high = (round(float(value), 3) for value in np.percentile(delays, (50, 99)))
    return Live(len(delays), middle, high, sum(outcome.failure is not None for outcome in outcomes))


@app.command()
def main(
    devices: Annotated[int, typer.Option(min=1, help="Devices with a backlog.")] = 16,
    seconds: Annotated[float, typer.Option(min=5, help="Seconds of audio of each.")] = 60.0,
    chunk: Annotated[float, typer.Option(min=0.1, max=10, help="Seconds of audio per message.")] = 1.5,
    sessions: Annotated[int, typer.Option(min=0, help="WebSocket sessions that speak meanwhile.")] = 4,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Let the bridge work a backlog off while people speak."""
    console = Console(stderr=True)
    folder = Path(tempfile.mkdtemp(prefix="stt-kafka-"))
    broker = Broker(folder / "broker")
    settings = KafkaSettings(bootstrap_servers=broker.address, max_sessions=devices)
    try:
        with console.status("starting Kafka"):
            broker.start()
        recorded = backlog(devices, seconds, chunk)
        fill(settings, recorded)
        console.print("starting the service")
        args = {"engine": {"replicas": 1}, "kafka": settings.model_dump(exclude_unset=True)}
        with started(devices + sessions, args, folder / "log.txt") as service:
            result = asyncio.run(measure(service.url, settings, recorded, sessions))
    except (BrokerFailed, StartFailed, ServiceMisbehaves) as error:
        fail(error, FAILED)
    finally:
        broker.stop()
        shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        print(json.dumps(asdict(result)))
    else:
        _print(result)
    raise typer.Exit(FAILED if result.missing or result.doubled else 0)


def _print(result: Result) -> None:
    print(
        f"{result.chunks} chunks of {result.devices} devices, {result.audio_s:g} s of audio, in {result.drained_s:g} s:"
        f" {result.chunks_per_s:g} chunks/s, {result.audio_s_per_s:g} s of audio per second; "
        f"{result.missing} without a transcript, {result.doubled} with more than one"
    )
    for when, heard in (("meanwhile", result.live_meanwhile), ("afterwards", result.live_afterwards)):
        if heard:
            print(
                f"live sessions {when}: word delay p50 {heard.word_delay_p50_s:g} s, p99 {heard.word_delay_p99_s:g} s "
                f"({heard.words} words), {heard.failures} sessions failed"
            )


if __name__ == "__main__":
    app()
