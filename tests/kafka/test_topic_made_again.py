"""An input topic that is deleted, and another one that is made under its name."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest
from confluent_kafka import Uuid
from confluent_kafka.admin import AdminClient, NewTopic
from prometheus_client import CollectorRegistry

from serve_app.bridges.bridge import Bridge
from serve_app.bridges.settings import KafkaSettings
from serve_app.bridges.topic_mark import mark
from serve_app.telemetry.bridge_metrics import BridgeMetrics
from tests.kafka_support import Reader, commit_position, cut, new_settings, send

PATIENCE_SECONDS = 120
NOWHERE = "ws://127.0.0.1:1/v1/stream"
"""Chunks without samples are answered without the service."""


@asynccontextmanager
async def bridged(settings: KafkaSettings) -> AsyncIterator[None]:
    bridge = Bridge(settings, NOWHERE, None, BridgeMetrics(CollectorRegistry()))
    running = asyncio.create_task(bridge.run())
    try:
        yield
    finally:
        bridge.stop()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await running


def make(settings: KafkaSettings) -> None:
    """Make the input topic, with one partition, in which offsets are used again."""
    admin = AdminClient(settings.client_properties)
    admin.create_topics([NewTopic(settings.input_topic, 1, 1)])[settings.input_topic].result(PATIENCE_SECONDS)


async def make_again(settings: KafkaSettings) -> None:
    """Delete the input topic, and make it again as soon as the brokers let us."""
    admin = AdminClient(settings.client_properties)
    admin.delete_topics([settings.input_topic])[settings.input_topic].result(PATIENCE_SECONDS)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while settings.input_topic in (await asyncio.to_thread(admin.list_topics, timeout=PATIENCE_SECONDS)).topics:
            await asyncio.sleep(0.01)
    make(settings)


def send_silence(settings: KafkaSettings, device: str, count: int) -> set[str]:
    """Send so many chunks without samples; their ids."""
    chunks = cut(np.zeros(count * 24_000), device, 1.0, audio_data=b"", duration_seconds=0.0)
    send(settings, *chunks)
    return {chunk.chunk_id for chunk in chunks}


@pytest.mark.parametrize("meanwhile", ["it runs", "it is away"])
async def test_nothing_of_the_new_topic_is_lost(broker, meanwhile):
    """Neither what is before the old position nor what is behind it."""
    settings = new_settings(broker.address)
    make(settings)
    reader = Reader(settings, settings.output_topic)
    try:
        async with bridged(settings):
            await asyncio.to_thread(reader.wait_for_chunks, send_silence(settings, "old", 5), PATIENCE_SECONDS)
            if meanwhile == "it runs":
                await make_again(settings)
                await asyncio.to_thread(reader.wait_for_chunks, send_silence(settings, "new", 12), PATIENCE_SECONDS)
        if meanwhile == "it is away":
            await make_again(settings)
            sent = send_silence(settings, "new", 12)
            async with bridged(settings):
                await asyncio.to_thread(reader.wait_for_chunks, sent, PATIENCE_SECONDS)
    finally:
        reader.close()


async def test_a_position_that_was_committed_for_another_topic_means_nothing(broker):
    settings = new_settings(broker.address)
    make(settings)
    sent = send_silence(settings, "new", 12)
    commit_position(settings, 5, mark(str(Uuid(1, 2)), ""))
    reader = Reader(settings, settings.output_topic)
    try:
        async with bridged(settings):
            await asyncio.to_thread(reader.wait_for_chunks, sent, PATIENCE_SECONDS)
    finally:
        reader.close()
