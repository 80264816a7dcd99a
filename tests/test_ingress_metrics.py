"""What an ingress counts of the sessions that come, wait, are refused, and go."""

import asyncio
import json

import httpx
import pytest
import websockets

from serve_app import client
from serve_app.cli.figures import Scrape
from serve_app.settings import key_digest
from serve_app.telemetry.ingress_metrics import MOVES, REFUSALS
from tests.conftest import CLIP_SLOTS
from tests.support import Service, answers_until_close, serving

KEY, OTHER = "a key that nobody guesses", "another one that nobody does"
KEYS = [
    {"name": "ann", "sha256": key_digest(KEY.encode()), "max_sessions": 1},
    {"name": "bob", "sha256": key_digest(OTHER.encode())},
]


async def scrape(service: Service, **headers: str) -> Scrape:
    async with httpx.AsyncClient() as http:
        return Scrape((await http.get(f"{service.http}/metrics", headers=headers)).text, 0.0)


async def states(service: Service) -> dict[str, float]:
    counts = (await scrape(service)).by("state", "stt_sessions_open")
    return {state: count for state, count in counts.items() if count}


async def test_sessions_are_told_apart_by_state(engines):
    async with serving(engines, session={"park_after_seconds": 0.2}) as service:
        connections = [await websockets.connect(service.url) for _ in range(CLIP_SLOTS)]
        for connection in connections:
            await connection.recv()
        speaking = [asyncio.create_task(chatter(connection)) for connection in connections[1:]]
        async with asyncio.timeout(10):
            while await states(service) != {"live": CLIP_SLOTS - 1, "parked": 1}:
                await asyncio.sleep(0.02)
        connections.append(await websockets.connect(service.url))  # takes the slot of the one that is parked
        await connections[-1].recv()
        speaking.append(asyncio.create_task(chatter(connections[-1])))
        connections.append(await websockets.connect(f"{service.url}?wait_s=30"))
        assert json.loads(await connections[-1].recv())["state"] == "waiting"
        assert await states(service) == {"live": CLIP_SLOTS, "parked": 1, "waiting": 1}
        for task in speaking:
            task.cancel()
        await asyncio.gather(*speaking, return_exceptions=True)
        for connection in connections:
            await connection.close()
        await service.wait_until_empty()
        assert await states(service) == {}


async def chatter(connection: websockets.ClientConnection) -> None:
    while True:
        await connection.send(bytes(7_680))
        await asyncio.sleep(0.08)


async def test_refusals_are_told_apart_by_reason(engines):
    auth = {"keys": KEYS, "metrics": "open"}
    async with serving(engines, auth=auth, ingress={"max_connections_per_address": 2}) as service:
        before = await scrape(service)
        headers, others = ({"Authorization": f"Bearer {key}"} for key in (KEY, OTHER))
        async with websockets.connect(service.url, additional_headers=headers) as first:
            await first.recv()
            async with websockets.connect(service.url, additional_headers=headers) as refused:
                assert "too_many_sessions" in str(await answers_until_close(refused))
            async with websockets.connect(service.url, additional_headers=others) as second:
                await second.recv()
                async with websockets.connect(service.url, additional_headers=others) as third:
                    assert "too_many_connections" in str(await third.recv())
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(service.url)
        await service.wait_until_empty()
        async with websockets.connect(f"{service.url}?resume=nonsense", additional_headers=headers) as wrong:
            await answers_until_close(wrong)
        after = await scrape(service)
    assert set(before.by("reason", "stt_refusals_total")) == set(REFUSALS)
    assert set(before.by("reason", "stt_moves_total")) == set(MOVES)
    assert before.sum("stt_refusals_total") == 0
    refused = after.by("reason", "stt_refusals_total")
    assert {reason: count for reason, count in refused.items() if count} == {
        "too_many_sessions": 1, "too_many_connections": 1, "invalid_key": 1, "unknown_session": 1,
    }  # fmt: skip


async def test_who_finds_every_slot_taken_is_refused_and_who_leaves_the_line_is_not(engines):
    async with serving(engines) as service:
        holders = [await websockets.connect(service.url) for _ in range(CLIP_SLOTS)]
        for holder in holders:
            await holder.recv()
        async with websockets.connect(service.url) as refused:
            assert "at_capacity" in str(await refused.recv())
        async with websockets.connect(f"{service.url}?wait_s=30") as leaving:
            await leaving.recv()
        for holder in holders:
            await holder.close()
        await service.wait_until_empty()
        seen = await scrape(service)
    assert seen.sum("stt_refusals_total", reason="at_capacity") == seen.sum("stt_refusals_total") == 1
    assert seen.by("outcome", "stt_sessions_total") == {"left": CLIP_SLOTS + 1, "at_capacity": 1}


async def test_what_cannot_be_used_is_counted_by_dialect(engines):
    async with serving(engines) as service, httpx.AsyncClient() as http:
        for path, message in (("/v1/stream", "good morning"), ("/v1/stream", b"\xff\xff\xff\x7f" * 9), ("/ws", "what")):
            async with websockets.connect(service.at(path)) as connection:
                await connection.send(message)
                await answers_until_close(connection)
        await http.post(f"{service.http}/api/asr-streaming", content=b"no audio at all")
        await http.post(f"{service.http}/v1/audio/transcriptions", files={"file": b"no audio at all"})
        await service.wait_until_empty()
        seen = await scrape(service)
    assert seen.by("dialect", "stt_decode_errors_total") == {
        "stream": 2, "tagged_text": 1, "moshi_http": 1, "openai_transcriptions": 1,
    }  # fmt: skip
    assert seen.by("code", "stt_decode_errors_total", dialect="stream") == {"invalid_message": 1, "invalid_audio": 1}


async def test_the_use_of_keys_is_counted_by_their_names(engines, clip):
    async with serving(engines, auth={"keys": KEYS, "metrics": "open"}) as service:
        for key in (KEY, OTHER, OTHER):
            async for _ in client.transcribe(service.url, clip.samples, rtf=0.0, api_key=key):
                pass
        await service.wait_until_empty()
        async with client.connect(service.url, api_key=KEY) as stream:
            await anext(stream)
            seen = await scrape(service)
    assert seen.by("key", "stt_key_sessions_total") == {"ann": 1, "bob": 2}
    assert seen.by("key", "stt_key_sessions_open") == {"ann": 1, "bob": 0}
    assert seen.by("key", "stt_key_requests_total") == {"ann": 2, "bob": 2}
    seconds = len(clip.samples) / 24_000
    assert seen.by("key", "stt_key_audio_seconds_total") == pytest.approx({"ann": seconds, "bob": 2 * seconds})


async def test_an_authorization_that_nobody_asked_for_is_no_label(engines, clip):
    async with serving(engines) as service:
        async for _ in client.transcribe(service.url, clip.samples, rtf=0.0, api_key=KEY):
            pass
        await service.wait_until_empty()
        async with httpx.AsyncClient() as http:
            text = (await http.get(f"{service.http}/metrics")).text
    assert "stt_key_sessions_total{" not in text
    assert KEY not in text


async def test_every_word_and_every_stage_is_timed(engines, clip):
    async with serving(engines) as service:
        async for _ in client.transcribe(service.url, clip.samples, rtf=0.0, words=True):
            pass
        await service.wait_until_empty()
        seen = await scrape(service)
    assert seen.sum("stt_word_delay_seconds_count") == len(clip.words)
    assert seen.sum("stt_session_audio_seconds_sum") == pytest.approx(len(clip.samples) / 24_000)
    frames = seen.sum("stt_frames_total")
    counts = seen.by("stage", "stt_stage_seconds_count")
    assert counts["queue"] == counts["link"] == frames
    assert counts["socket"] == seen.sum("stt_tokens_total")
    assert 0 < counts["audio"] <= frames
    assert 0 < counts["step"] <= frames
