"""One conversation over a WebSocket, of any dialect."""

import asyncio
import json

import httpx
import pytest
import websockets

from serve_app import client
from tests.support import LocalVault, running_engines, serving

SCOPE = {
    "type": "websocket", "path": "/v1/stream", "query_string": b"", "headers": [], "subprotocols": [],
    "client": ("127.0.0.1", 1), "root_path": "",
}  # fmt: skip


async def drop(message: dict) -> None:
    """An ASGI client that does not look."""


@pytest.mark.parametrize("turns", range(8))
async def test_one_that_leaves_in_the_moment_it_gets_its_slot_is_no_failure_of_ours(engines, monkeypatch, turns):
    has_left = asyncio.Event()
    take_slot = engines.open

    async def take_slot_and_leave(*args, **options):
        stream = await take_slot(*args, **options)
        has_left.set()
        try:
            for _ in range(turns):
                await asyncio.sleep(0)
        except asyncio.CancelledError:
            await stream.close()
            raise
        return stream

    monkeypatch.setattr(engines, "open", take_slot_and_leave)
    messages = iter([{"type": "websocket.connect"}])

    async def receive() -> dict:
        if message := next(messages, None):
            return message
        await has_left.wait()
        return {"type": "websocket.disconnect", "code": 1006}

    async with serving(engines) as service, asyncio.timeout(20):
        await service.ingress.application()(SCOPE, receive, drop)
        await service.wait_until_empty()
        assert not service.outcomes("internal_error")
        assert service.outcomes("disconnected") == 1


@pytest.fixture
async def sleeper(demo_model, other_model):
    """A service with a second model that no engine has been seen of yet."""
    async with (
        running_engines(demo_model) as first,
        running_engines(other_model) as second,
        serving(first, LocalVault(60), [second], models=[{"model": "demo", "name": "second"}]) as service,
    ):
        second.sleep()
        service.second = second
        yield service


async def test_who_comes_before_any_engine_waits_for_it_and_loses_no_word(sleeper, clip):
    words = []
    url = sleeper.at("/v1/stream?model=second&words=true")
    async with websockets.connect(url) as connection, asyncio.timeout(100):
        await connection.send(clip.samples.tobytes())
        await connection.send('{"type": "end"}')
        async with client.connect(sleeper.url) as other:  # of the model that is there
            assert isinstance(await anext(other), client.Ready)
        assert not sleeper.second.slots_used()
        sleeper.second.wake()
        async for message in connection:
            event = json.loads(message)
            words += [event["text"]] if event["type"] == "word" else []
    assert words == clip.words


async def test_an_upload_waits_for_the_first_engine_too(sleeper, clip):
    async with httpx.AsyncClient(base_url=sleeper.http, timeout=100) as http, asyncio.timeout(100):
        form = {"file": clip.path.read_bytes()}
        asking = asyncio.create_task(http.post("/v1/audio/transcriptions", files=form, data={"model": "second"}))
        done, _ = await asyncio.wait([asking], timeout=0.5)
        assert not done
        sleeper.second.wake()
        assert (await asking).json()["text"].split() == clip.words


async def test_a_realtime_session_waits_for_the_first_engine_of_the_model_that_it_names(sleeper):
    named = {"type": "transcription", "audio": {"input": {"transcription": {"model": "second"}}}}
    async with websockets.connect(sleeper.at("/v1/realtime")) as connection, asyncio.timeout(60):
        assert json.loads(await connection.recv())["type"] == "session.created"
        await connection.send(json.dumps({"type": "session.update", "session": named}))
        while sleeper.engines.slots_used():
            await asyncio.sleep(0.01)
        sleeper.second.wake()
        assert json.loads(await connection.recv())["type"] == "session.updated"
        assert sleeper.second.slots_used() == 1


async def test_who_waits_for_the_first_engine_is_a_session_and_told_when_the_ingress_is_stopped(sleeper, clip):
    sessions, form = sleeper.ingress.sessions, {"file": clip.path.read_bytes()}
    async with (
        websockets.connect(sleeper.at("/v1/stream?model=second&resumable=true")) as movable,
        websockets.connect(sleeper.at("/v1/stream?model=second")) as plain,
        httpx.AsyncClient(base_url=sleeper.http, timeout=100) as http,
        asyncio.timeout(100),
    ):
        asking = asyncio.create_task(http.post("/v1/audio/transcriptions", files=form, data={"model": "second"}))
        while len(sessions) < 3:
            await asyncio.sleep(0.01)
        assert sessions.standings() == {("second", "opening"): 3}
        sessions.close()
        sessions.move_out(everyone=False)
        await movable.wait_closed()
        assert (movable.close_code, movable.close_reason[:10]) == (1012, "restarting")
        assert (len(sessions), plain.close_code) == (2, None)
        sessions.move_out(everyone=True)
        assert json.loads(await plain.recv())["code"] == "restarting"
        await plain.wait_closed()
        assert plain.close_code == 1012
        answer = await asking
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "restarting")
    await sleeper.wait_until_empty()
    assert sleeper.outcomes("restarting") == 2  # an upload does not go on anywhere


async def test_who_waits_for_the_first_engine_in_vain_is_told(sleeper, monkeypatch):
    async def wait_in_vain() -> None:
        pass

    monkeypatch.setattr(sleeper.second, "wait_until_known", wait_in_vain)
    async with websockets.connect(sleeper.at("/v1/stream?model=second")) as connection, asyncio.timeout(60):
        assert json.loads(await connection.recv())["code"] == "not_ready"
        await connection.wait_closed()
        assert connection.close_code == 1013
    await sleeper.wait_until_empty()
    refusals = next(iter(sleeper.metrics.refusals_total.collect())).samples
    assert [(s.labels["reason"], s.value) for s in refusals if s.name.endswith("_total") and s.value] == [
        ("not_ready", 1)
    ]


async def test_who_leaves_before_any_engine_is_there_is_noticed(sleeper):
    messages = iter([{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1001}])

    async def receive() -> dict:
        return next(messages)

    async with asyncio.timeout(60):
        await sleeper.ingress.application()(SCOPE | {"query_string": b"model=second"}, receive, drop)
    await sleeper.wait_until_empty()
