"""The bridge as a part of the application, between mock brokers and its engines."""

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.kafka_support import Reader, cut, mock_brokers, new_settings, send

from .conftest import running_service

pytestmark = pytest.mark.timeout(400)

PATIENCE_SECONDS = 120


async def test_chunks_become_transcripts_and_the_service_tells_so(tmp_path: Path, clip):
    with mock_brokers() as brokers:
        settings = new_settings(brokers, session_gap_seconds=2.0)
        chunks = cut(clip.samples, "phone")
        send(settings, *chunks)
        kafka = settings.model_dump(exclude_defaults=True)
        with running_service(tmp_path, engines=1, engine={"slots": 4}, kafka=kafka) as service:
            reader = Reader(settings, settings.output_topic)
            await asyncio.to_thread(reader.wait_for, len(chunks), PATIENCE_SECONDS)
            transcripts = reader.values()
            reader.close()
            async with httpx.AsyncClient(base_url=service.base, timeout=30) as http:
                metrics = (await http.get("/metrics")).text
                ready = (await http.get("/readyz")).text
    assert [transcript["chunk_id"] for transcript in transcripts] == [chunk.chunk_id for chunk in chunks]
    assert [word["word"] for transcript in transcripts for word in transcript["words"]] == clip.words
    assert ready == "ready; Kafka bridge: 1 of 1 replicas connected"
    assert 'kyutai_stt_transcripts_produced_total{deployment="bridge"' in metrics
