"""Two models side by side, over a real ingress: who asks for which gets it, in every dialect, and nothing is shared."""

import asyncio
import json

import httpx
import msgpack
import pytest
import websockets

from serve_app import client
from tests.support import LocalVault, answers_until_close, running_engines, serving

FURTHER = [{"model": "demo", "name": "second", "engine": {"slots": 2}}]


@pytest.fixture
async def service(demo_model, other_model):
    async with (
        running_engines(demo_model) as first,
        running_engines(other_model) as second,
        serving(first, LocalVault(60), [second], models=FURTHER) as running,
    ):
        running.second = second
        yield running


def used(service) -> tuple[int, int]:
    return service.engines.slots_used(), service.second.slots_used()


PATHS = ("/v1/stream", "/v1/transcribe", "/ws", "/api/asr-streaming", "/v1/realtime")


@pytest.mark.parametrize("path", PATHS)
async def test_every_dialect_takes_the_model_that_is_asked_for(service, path):
    for query, slots in (("", (1, 0)), ("?model=demo", (1, 0)), ("?model=second", (0, 1))):
        async with websockets.connect(service.at(path + query)):
            async with asyncio.timeout(20):
                while used(service) != slots:
                    await asyncio.sleep(0.01)
        async with asyncio.timeout(20):
            while used(service) != (0, 0):
                await asyncio.sleep(0.01)


def told(path: str, message: str | bytes) -> tuple[str, str]:
    """Code and text of an error in the dialect's own form."""
    if path == "/api/asr-streaming":
        return "unknown_model", msgpack.unpackb(message)["message"]
    fields = json.loads(message)
    error = fields.get("error", fields)
    return error["code"], error["message"]


@pytest.mark.parametrize("path", PATHS)
async def test_an_unknown_model_is_told_with_those_that_there_are(service, path):
    async with websockets.connect(service.at(f"{path}?model=third")) as connection:
        messages = await answers_until_close(connection)
    assert (connection.close_code, connection.close_reason[:14]) == (1003, "unknown_model:")
    assert "'demo' or 'second', got 'third'" in connection.close_reason
    if path == "/ws":  # has no message for errors
        assert messages == []
    else:
        code, text = told(path, messages[-1])
        assert code == ("model_not_found" if path == "/v1/realtime" else "unknown_model")
        assert "'demo' or 'second', got 'third'" in text


async def test_files_choose_their_model_too(service, clip):
    sums = []
    async with httpx.AsyncClient(base_url=service.http, timeout=120) as http:
        for name in ("second", "whisper-1", "third"):
            form = {"file": clip.path.read_bytes()}
            answer = await http.post("/v1/audio/transcriptions", files=form, data={"model": name})
            sums.append(answer.status_code)
            if name == "third":
                error = answer.json()["error"]
                assert (error["code"], error["param"]) == ("model_not_found", "model")
        moshi = await http.post("/api/asr-streaming?model=third", content=clip.path.read_bytes())
        assert (moshi.status_code, moshi.json()["type"]) == (404, "Error")
    assert sums == [200, 200, 404]
    assert sessions(service) == {"second": 1, "demo": 1}


def sessions(service) -> dict[str, int]:
    samples = next(iter(service.metrics.sessions_total.collect())).samples
    return {s.labels["model"]: int(s.value) for s in samples if s.name.endswith("_total") and s.value}


async def test_a_realtime_session_may_name_its_model_later_but_before_audio(service):
    update = {"type": "session.update", "session": {"type": "transcription"}}

    def naming(model: str) -> str:
        update["session"]["audio"] = {"input": {"transcription": {"model": model}}}
        return json.dumps(update)

    async with websockets.connect(service.at("/v1/realtime")) as connection, asyncio.timeout(30):
        assert json.loads(await connection.recv())["type"] == "session.created"
        for model, slots in (("second", (0, 1)), ("gpt-4o-transcribe", (0, 1)), ("demo", (1, 0)), ("second", (0, 1))):
            await connection.send(naming(model))
            answer = json.loads(await connection.recv())
            assert answer["type"] == "session.updated"
            assert answer["session"]["audio"]["input"]["transcription"]["model"] == model
            assert used(service) == slots
        await connection.send(naming("third"))
        assert json.loads(await connection.recv())["error"]["code"] == "model_not_found"
        await connection.send(json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA" * 1_000}))
        await connection.send(naming("demo"))
        assert "before any audio" in json.loads(await connection.recv())["error"]["message"]
        assert used(service) == (0, 1)


async def test_words_come_and_a_resumed_session_stays_with_its_model(service, clip):
    words: list[str] = []
    async with client.connect(service.url, model="second", words=True) as stream:
        half = len(clip.samples) // 2
        await stream.send(clip.samples[:half])
        while not words:
            event = await anext(stream)
            words += [event.text] if isinstance(event, client.Word) else []
        stream._line._connection.transport.abort()
        await stream.send(clip.samples[half:])
        await stream.end()
        async for event in stream:
            words += [event.text] if isinstance(event, client.Word) else []
            assert used(service)[0] == 0
        assert stream.reconnects == 1
    assert words == clip.words
    assert set(sessions(service)) == {"second"}


async def test_a_full_model_refuses_and_the_other_does_not(service):
    async with client.connect(service.url, model="second", resume_s=0) as one, asyncio.timeout(60):
        await anext(one)
        await service.second.kill(0)
        async with client.connect(service.url, model="second", resume_s=0) as refused:
            with pytest.raises(client.ServerError):
                await anext(refused)
        async with client.connect(service.url) as other:
            assert isinstance(await anext(other), client.Ready)


async def test_the_service_lists_its_models(service):
    async with httpx.AsyncClient(base_url=service.http) as http:
        listed = (await http.get("/v1/models")).json()["data"]
        assert [model["id"] for model in listed] == ["demo", "second"]
        assert (await http.get("/v1/models/second")).json()["id"] == "second"
        assert (await http.get("/v1/models/whisper-1")).json()["id"] == "demo"
        assert (await http.get("/v1/models/third")).status_code == 404
        assert (await http.get("/")).json()["models"] == ["demo", "second"]
        assert [module["lm"] for module in (await http.get("/api/modules_info")).json()] == ["demo", "second"]
        status = (await http.get("/status")).json()
        assert {name: model["ready"] for name, model in status["models"].items()} == {"demo": True, "second": True}


async def test_it_is_ready_as_long_as_one_model_has_engines_and_names_those_that_have_none(service):
    async with httpx.AsyncClient(base_url=service.http) as http:
        for lost, ready, text in (
            ((), True, "ready"),
            (("second",), True, "ready; no engine has loaded its model yet: second"),
            (("demo",), True, "ready; no engine has loaded its model yet: demo"),
            (("demo", "second"), False, "no engine has loaded its model yet: demo, second"),
        ):
            service.engines.is_ready, service.second.is_ready = "demo" not in lost, "second" not in lost
            answer = await http.get("/readyz")
            assert (answer.status_code, answer.text) == (200 if ready else 503, text)
            assert ("Retry-After" in answer.headers) == (not ready)
            status = (await http.get("/status")).json()
            assert {name for name, model in status["models"].items() if not model["ready"]} == {*lost}
            assert status["ready"] == (await http.get("/")).json()["ready"] == ready


@pytest.fixture
async def halved(demo_model, other_model):
    """A service of which one key may hold half: four sessions of the first model, one of the second."""
    async with (
        running_engines(demo_model) as first,
        running_engines(other_model) as second,
        serving(
            first, LocalVault(60), [second], models=FURTHER, engine={"slots": 8}, ingress={"key_share": 0.5}
        ) as running,
    ):
        running.second = second
        yield running


GREEDY = {"Authorization": "Bearer greedy"}
TO_SECOND = {"type": "transcription", "audio": {"input": {"transcription": {"model": "second"}}}}


async def test_one_key_gets_no_more_than_its_share_by_asking_twice_at_once(halved):
    async with (
        websockets.connect(halved.at("/v1/realtime"), additional_headers=GREEDY) as one,
        websockets.connect(halved.at("/v1/realtime"), additional_headers=GREEDY) as two,
        asyncio.timeout(60),
    ):
        halved.second.sleep()
        answers = set()
        for connection in (one, two):
            assert json.loads(await connection.recv())["type"] == "session.created"
            await connection.send(json.dumps({"type": "session.update", "session": TO_SECOND}))
            answers.add(asyncio.create_task(connection.recv()))
        (refused,), (waiting,) = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        assert json.loads(refused.result())["error"]["code"] == "too_many_sessions"
        halved.second.wake()
        assert json.loads(await waiting)["type"] == "session.updated"


async def test_one_key_gets_no_more_than_its_share_of_a_model_that_has_no_engine_yet(halved):
    halved.second.sleep()
    async with (
        asyncio.timeout(60),
        websockets.connect(halved.at("/v1/stream?model=second"), additional_headers=GREEDY) as held,
    ):
        while not len(halved.ingress.sessions):
            await asyncio.sleep(0.01)
        async with websockets.connect(halved.at("/v1/stream?model=second"), additional_headers=GREEDY) as more:
            assert told("/v1/stream", (await answers_until_close(more))[-1])[0] == "too_many_sessions"
        halved.second.wake()
        assert json.loads(await held.recv())["type"] == "ready"


async def test_one_key_gets_its_share_of_each_model_whichever_way_it_asks(halved):
    async with (
        websockets.connect(halved.at("/v1/stream?model=second"), additional_headers=GREEDY) as held,
        asyncio.timeout(60),
    ):
        assert json.loads(await held.recv())["type"] == "ready"
        async with websockets.connect(halved.at("/v1/stream?model=second"), additional_headers=GREEDY) as more:
            assert told("/v1/stream", (await answers_until_close(more))[-1])[0] == "too_many_sessions"
        async with websockets.connect(halved.at("/v1/realtime"), additional_headers=GREEDY) as changes:
            assert json.loads(await changes.recv())["type"] == "session.created"
            await changes.send(json.dumps({"type": "session.update", "event_id": "mine", "session": TO_SECOND}))
            error = json.loads(await changes.recv())["error"]
            assert (error["type"], error["code"], error["event_id"]) == (
                "rate_limit_error",
                "too_many_sessions",
                "mine",
            )
            await changes.send(json.dumps({"type": "session.update", "session": {"type": "transcription"}}))
            updated = json.loads(await changes.recv())  # it goes on as it was
            assert updated["session"]["audio"]["input"]["transcription"]["model"] == "demo"
            assert used(halved) == (1, 1)
        assert halved.second.slots_used() == 1
        async with websockets.connect(halved.url, additional_headers=GREEDY) as other:
            assert json.loads(await other.recv())["type"] == "ready"
