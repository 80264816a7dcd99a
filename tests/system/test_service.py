"""What users rely on, through everything: HAProxy, ingress replica, link, engine replica, model."""

import asyncio
import contextlib
import json
import subprocess
import sys

import httpx
import jiwer
import numpy as np
import pytest
import websockets

from serve_app import client
from tests.support import Clip, manifest

from .conftest import ENGINES, SLOTS, STT, RunningService

pytestmark = pytest.mark.timeout(400)


async def transcribe(service: RunningService, clip: Clip, rtf: float = 0.0, wait_s: float = 0.0) -> list[client.Event]:
    arrivals = client.transcribe(service.url, clip.samples, rtf=rtf, words=True, wait_s=wait_s)
    return [arrival.event async for arrival in arrivals]


def words(events: list[client.Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, client.Word)]


def test_it_runs_behind_haproxy_and_is_ready(service):
    assert httpx.get(f"{service.base}/readyz").text == "ready"
    assert httpx.get(f"{service.base}/health").text == "ok"
    assert httpx.get(f"{service.base}/").json()["model"] == "demo"
    assert service.processes("haproxy")
    assert "PYTHON PROXY" not in service.log.read_text()


async def test_every_sample_becomes_its_words(service):
    """More at once than there are slots, as fast as the engine goes, the long one among them."""
    clips = [Clip(entry) for entry in manifest()]
    assert len(clips) > SLOTS
    heard = await asyncio.gather(*(transcribe(service, clip, wait_s=60.0) for clip in clips))
    for clip, events in zip(clips, heard, strict=True):
        assert jiwer.wer(" ".join(clip.words), " ".join(words(events))) <= 0.03, clip.path.name
        assert isinstance(events[-1], client.Done)
        assert events[-1].audio_seconds == pytest.approx(len(clip.samples) / 24_000, abs=0.001)


async def test_words_come_while_they_are_spoken(service, clip):
    arrivals = [arrival async for arrival in client.transcribe(service.url, clip.samples, rtf=1.0, words=True)]
    assert words([arrival.event for arrival in arrivals]) == clip.words
    first_token = next(arrival for arrival in arrivals if isinstance(arrival.event, client.Token))
    assert first_token.at_s < len(clip.samples) / 24_000, "the first token came before the clip was over"


def test_the_way_of_frames_is_measured_beside_other_sessions(service):
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.frames", "--url", service.url, "--sessions", "2", "--seconds", "5", "--json"],
        capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["frames"] >= 60
    assert 0 < figures["step_p50_ms"] < 1000
    assert figures["way_p50_ms"] <= figures["way_p99_ms"]


def test_the_command_line_prints_the_text(service, clip):
    done = subprocess.run(
        [STT, "transcribe", str(clip.path), "--url", service.url, "--rtf", "0"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == clip.words


async def test_full_is_said_to_the_next_one_and_disturbs_nobody(service, clip):
    await service.wait_until_empty()
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(client.connect(service.url, words=True)) for _ in range(SLOTS)]
        for stream in streams:
            assert isinstance(await anext(stream), client.Ready)
        async with websockets.connect(service.url) as refused:
            with pytest.raises(websockets.ConnectionClosed):
                while True:
                    error = json.loads(await asyncio.wait_for(refused.recv(), 10))
        assert error["code"] == "at_capacity"
        assert error["retry_after_s"] > 0
        assert refused.close_code == 1013
        await streams[0].send(clip.samples)
        await streams[0].end()
        assert words([event async for event in streams[0]]) == clip.words
    await service.wait_until_empty()


@pytest.mark.parametrize(
    ("message", "close_code", "code"),
    [
        (np.array([np.nan], "<f4").tobytes(), 1007, "invalid_audio"),
        ("good morning", 1003, "invalid_message"),
        (bytes(20_000_000), 1009, "message_too_large"),
    ],
    ids=["nan", "text", "20 MB"],
)
async def test_bad_input_ends_its_own_session_and_no_other(service, clip, message, close_code, code):
    neighbour = asyncio.create_task(transcribe(service, clip, rtf=4.0))
    async with websockets.connect(service.url, max_size=None) as connection:
        events = [json.loads(await connection.recv())]
        with contextlib.suppress(websockets.ConnectionClosed):
            await connection.send(message)
            while True:
                events.append(json.loads(await asyncio.wait_for(connection.recv(), 30)))
    assert connection.close_code == close_code
    assert [event.get("code") for event in events if event["type"] == "error"] == [code]
    assert words(await neighbour) == clip.words
    await service.wait_until_empty()


async def test_a_flood_is_slowed_down_by_the_socket_and_not_kept_in_memory(service, clip):
    (ingress,) = service.processes("ServeReplica:stt:ingress")
    before = ingress.memory_info().rss
    neighbour = asyncio.create_task(transcribe(service, clip, rtf=1.0))
    accepted = 0
    async with websockets.connect(service.url, compression=None, max_queue=None) as connection:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(8):
                while accepted < 1_000_000_000:
                    await connection.send(bytes(1_000_000))
                    accepted += 1_000_000
        grown = ingress.memory_info().rss - before
        connection.transport.abort()
    assert accepted < 200_000_000
    assert grown < 200_000_000
    assert words(await neighbour) == clip.words
    await service.wait_until_empty()


async def test_one_that_vanishes_and_one_that_says_nothing_free_their_slots(service, clip):
    vanishing = await websockets.connect(service.url)
    silent = await websockets.connect(service.url)
    await vanishing.recv()
    await silent.recv()
    await vanishing.send(clip.samples[:24_000].tobytes())
    vanishing.transport.abort()
    error = json.loads(await asyncio.wait_for(silent.recv(), 30))
    assert error["code"] == "idle_timeout"
    await silent.wait_closed()
    assert silent.close_code == 1008
    await service.wait_until_empty()


async def test_metrics_tell_of_sessions_and_engines(service, clip):
    await transcribe(service, clip)
    metrics = (await asyncio.to_thread(httpx.get, f"{service.base}/metrics")).text
    assert 'dialect="stream",model="demo",outcome="done"' in metrics
    assert metrics.count("\nstt_engine_slots{") == ENGINES, "also of an engine that nobody is connected to"
    assert "stt_first_token_seconds_bucket" in metrics


async def test_sessions_survive_the_kill_of_their_engine(service, clip):
    """kill -9 under load: every session goes on, on the other engine or on the replacement, and hears a word once."""
    sessions = [asyncio.create_task(transcribe(service, clip, rtf=1.0)) for _ in range(SLOTS)]
    await asyncio.sleep(3)
    engines = service.processes("ServeReplica:stt:engine")
    assert len(engines) == ENGINES
    engines[0].kill()
    heard = await asyncio.gather(*sessions)
    assert [words(events) for events in heard] == [clip.words] * SLOTS
    moved = [[e.state for e in events if isinstance(e, client.Status)] for events in heard]
    assert sum(states == ["migrating", "live"] for states in moved) >= 1
    async with asyncio.timeout(120):  # the next test finds both engines again
        while service.engines_up() < ENGINES:
            await asyncio.sleep(0.5)
