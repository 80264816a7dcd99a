"""`stt kafka-send` and `stt kafka-listen` with librdkafka's mock cluster: the real protocol over TCP."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, Producer, TopicPartition

from serve_app.audio.upload import decode_upload
from serve_app.bridges.messages import AudioChunk, ChunkTranscript, read_chunk
from serve_app.cli import kafka_listen, kafka_send
from serve_app.cli.kafka_send import cut
from serve_app.speech import SAMPLE_RATE_HZ
from tests.support import SAMPLES
from tests.test_cli import assert_fails, stt

pytestmark = pytest.mark.timeout(300)

CLIP = str(SAMPLES / "hello-en.wav")
PARTITIONS = 4
"""Of every topic of the mock cluster."""


@pytest.fixture
def servers() -> Iterator[str]:
    """A mock cluster's address; it lives in this producer."""
    cluster = Producer({"bootstrap.servers": "mock:1", "test.mock.num.brokers": 1, "log_level": 0})
    broker = next(iter(cluster.list_topics(timeout=30).brokers.values()))
    yield f"{broker.host}:{broker.port}"
    cluster.close()


def taken(servers: str, topic: str, count: int) -> list[tuple[str, AudioChunk]]:
    """Keys and chunks of a topic."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "none", "log_level": 0})
    consumer.assign([TopicPartition(topic, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
    messages = [consumer.poll(60) for _ in range(count)]
    assert consumer.poll(0.5) is None
    consumer.close()
    return [(message.key().decode(), read_chunk(message.value())) for message in messages]


def test_a_file_becomes_chunks_of_one_device(servers, clip):
    result = stt("kafka-send", CLIP, "--device", "kitchen", "--rtf", "0", "--bootstrap-servers", servers)
    seconds = len(clip.samples) / SAMPLE_RATE_HZ
    said = f"stt: 5 chunks, {seconds:.1f} s of audio, sent to device.audio.raw as kitchen\n"
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", said)
    messages = taken(servers, "device.audio.raw", 5)
    assert {key for key, _ in messages} == {chunk.device_id for _, chunk in messages} == {"kitchen"}
    chunks = [chunk for _, chunk in messages]
    assert [chunk.sequence_number for chunk in chunks] == [1, 2, 3, 4, 5]
    assert len({chunk.chunk_id for chunk in chunks}) == 5
    assert [chunk.recorded_at - chunks[0].recorded_at for chunk in chunks] == [
        timedelta(seconds=1.5 * number) for number in range(5)
    ]
    audio = np.concatenate([block for chunk in chunks for block in decode_upload(chunk.audio_data, 60)])
    assert np.abs(audio - clip.samples).max() <= 1 / 32_768


def test_topic_and_brokers_from_the_environment_and_a_name_for_every_run(servers, clip):
    environment = {"LOOM_KAFKA_BOOTSTRAP_SERVERS": servers, "LOOM_KAFKA_INPUT_TOPIC": "audio"}
    results = [stt("kafka-send", CLIP, CLIP, "--chunk", "10", "--rtf", "0", **environment) for _ in range(2)]
    assert [result.exit_code for result in results] == [0, 0]
    devices = [result.stderr.split(" sent to audio as ")[1].strip() for result in results]
    messages = taken(servers, "audio", 4)
    assert len(set(devices)) == 2
    assert sorted(key for key, _ in messages) == sorted(devices * 2)
    assert sum(chunk.duration_seconds for _, chunk in messages) == pytest.approx(4 * len(clip.samples) / SAMPLE_RATE_HZ)


def test_chunks_follow_one_another_whatever_their_length():
    beginning = datetime(2026, 1, 1, tzinfo=UTC)
    chunks = list(cut(np.zeros(SAMPLE_RATE_HZ + 1, np.float32), "d", 0.4, beginning))
    assert [chunk.duration_seconds for chunk in chunks] == pytest.approx([0.4, 0.4, 0.2], abs=1e-3)
    assert [chunk.recorded_at - beginning for chunk in chunks] == [timedelta(seconds=s) for s in (0.0, 0.4, 0.8)]
    assert list(cut(np.zeros(0, np.float32), "d", 0.4, beginning)) == []


def transcript(device: str, number: int, *words: str) -> bytes:
    at = datetime(2026, 1, 1, 12, 30, number, tzinfo=UTC)
    times = {"start_time": 0.25, "end_time": 0.5, "start_at": at + timedelta(seconds=0.25), "end_at": at}
    message = ChunkTranscript(
        device_id=device,
        recorded_at=at,
        chunk_id=f"{device}-{number}",
        words=[{"word": word, "confidence": 0.9, **times} for word in words],
        full_text=" ".join(words),
        language="en",
        processing_time_ms=1.0,
        model_version="demo",
    )
    return message.model_dump_json().encode()


@pytest.fixture
def words(servers) -> Producer:
    """A producer for a topic that has some transcripts already."""
    producer = Producer({"bootstrap.servers": servers, "log_level": 0})
    for value in (transcript("a", 1, "one", "two"), b"{}", transcript("b", 2), transcript("b", 3, "three")):
        producer.produce("words", value, partition=0)
    assert producer.flush(30) == 0
    return producer


async def listen(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "serve_app.cli.main", "kafka-listen", *arguments,
        env=dict(os.environ), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


async def lines(stream: asyncio.StreamReader, count: int) -> list[str]:
    async with asyncio.timeout(120):
        return [(await stream.readline()).decode() for _ in range(count)]


async def ended(process: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Exit status after Ctrl-C, and what was printed since."""
    process.send_signal(signal.SIGINT)
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_words_with_their_times_as_they_come(servers, words):
    process = await listen("--from-beginning", "--topic", "words", "--bootstrap-servers", servers)
    before = await lines(process.stdout, 3)
    assert before == ["12:30:01.25 a one\n", "12:30:01.25 a two\n", "12:30:03.25 b three\n"]
    assert await lines(process.stderr, 2) == [
        "stt: listening to words; Ctrl-C ends it\n",
        "stt: partition 0, offset 1: expected a transcript, got something else: Field required\n",
    ]
    words.produce("words", transcript("c", 4, "four"), partition=3)
    assert await lines(process.stdout, 1) == ["12:30:04.25 c four\n"]
    assert await ended(process) == (130, "")


async def test_one_device_in_json(servers, words):
    process = await listen(
        "--from-beginning", "--topic", "words", "--bootstrap-servers", servers, "--device", "b", "--json"
    )
    found = [json.loads(line) for line in await lines(process.stdout, 2)]
    assert found == [json.loads(transcript("b", 2)), json.loads(transcript("b", 3, "three"))]
    assert await ended(process) == (130, "")


async def test_only_what_comes_and_a_topic_that_is_not_there_yet(servers, words):
    old = await listen("--topic", "words", "--bootstrap-servers", servers)
    new = await listen("--topic", "later", "--bootstrap-servers", servers, "--from-beginning")
    assert await lines(old.stderr, 1) == ["stt: listening to words; Ctrl-C ends it\n"]
    assert await lines(new.stderr, 1) == ["stt: waiting for the topic later\n"]
    words.produce("later", transcript("e", 5, "five"))
    assert await lines(new.stdout, 1) == ["12:30:05.25 e five\n"]
    assert [await ended(process) for process in (old, new)] == [(130, ""), (130, "")]


def test_what_ends_the_commands(unused_tcp_port, monkeypatch):
    for command in (kafka_send, kafka_listen):
        monkeypatch.setattr(command, "ANSWER_SECONDS", 1.0)
    nobody = ("--bootstrap-servers", f"127.0.0.1:{unused_tcp_port}")
    for command in (("kafka-send", CLIP), ("kafka-listen",)):
        assert_fails(stt(*command, *nobody), 3, f"{nobody[1]}: no answer from Kafka (")
    assert_fails(stt("kafka-send", "/no/such.wav", *nobody), 2, "stt: /no/such.wav: no such file\n")
    result = stt("kafka-listen", LOOM_KAFKA_SECURITY_PROTOCOL="nonsense")
    assert result.exit_code == 2
    assert "LOOM_KAFKA_SECURITY_PROTOCOL" in result.stderr
