"""docs/openapi.yaml and docs/asyncapi.yaml are valid, and say what the application does: no less, no more.

AsyncAPI's own schema is in no package for Python, so of that file its structure is checked here: schemas, references,
directions. (By hand: no error with the 3.0.0 schema of AsyncAPI's repository spec-json-schemas.)
"""

import asyncio
import base64
import contextlib
import json
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import msgpack
import numpy as np
import pytest
import soxr
import websockets
import yaml
from jsonschema import Draft7Validator, Draft202012Validator
from openapi_spec_validator import validate
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7, DRAFT202012
from starlette.routing import Route, WebSocketRoute

from serve_app import errors
from serve_app.audio.formats import FORMATS, SAMPLE_RATES_HZ
from serve_app.settings import key_digest
from tests.audio_signals import encoded
from tests.support import PROJECT, Clip, Service, answers_until_close, serving

OPENAPI = yaml.safe_load((PROJECT / "docs" / "openapi.yaml").read_text())
ASYNCAPI = yaml.safe_load((PROJECT / "docs" / "asyncapi.yaml").read_text())
REGISTRY = Registry().with_resources(
    [
        ("urn:openapi", Resource(OPENAPI, DRAFT202012)),
        ("urn:asyncapi", Resource(ASYNCAPI, DRAFT7)),
    ]
)
ERRORS = {kind.code: kind for kind in vars(errors).values()
          if isinstance(kind, type) and issubclass(kind, errors.SpeechError)}  # fmt: skip
HTTP_ONLY = {"audio_too_long", "invalid_key", "forbidden", "too_many_requests"}
"""Errors that no WebSocket tells."""

KEY = "a key as long as a key should be"
SILENCE = np.zeros(5 * 24_000, np.float32)


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines) as made:
        yield made


def messages_of(channel: str, action: str) -> dict[str, dict[str, Any]]:
    """What the service receives or sends there, by its name in the channel: name and schema."""
    (operation,) = (
        one
        for one in ASYNCAPI["operations"].values()
        if one["action"] == action and one["channel"]["$ref"] == f"#/channels/{channel}"
    )
    names = [reference["$ref"].rsplit("/", 1)[1] for reference in operation["messages"]]
    described = ASYNCAPI["channels"][channel]["messages"]
    return {name: {"$ref": f"urn:asyncapi{described[name]['$ref']}/payload"} for name in names}


def is_binary(schema: dict[str, str]) -> bool:
    return REGISTRY.resolver().lookup(schema["$ref"]).contents == {"type": "string", "format": "binary"}


class Heard:
    """Checks each message of a channel and remembers which one it was."""

    def __init__(self, channel: str, action: str = "send") -> None:
        self._schemas = messages_of(channel, action)
        self._names: set[str] = set()

    def take(self, message: Any) -> str:
        """The one name that the message has: bytes, or what JSON or msgpack stand for."""
        fitting = [name for name, schema in self._schemas.items() if self._fits(message, schema)]
        assert len(fitting) == 1, (fitting, message)
        self._names.update(fitting)
        return fitting[0]

    @staticmethod
    def _fits(message: Any, schema: dict[str, str]) -> bool:
        if is_binary(schema) or isinstance(message, bytes):
            return is_binary(schema) and isinstance(message, bytes)
        return Draft7Validator(schema, registry=REGISTRY).is_valid(message)

    def check_complete(self) -> None:
        """Every message that is described has come."""
        assert self._names == set(self._schemas)


def test_openapi_says_that_it_is_valid():
    validate(OPENAPI)


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    if isinstance(node, dict):
        yield node
    for child in children:
        yield from nodes(child)


def test_asyncapi_holds_together():
    assert ASYNCAPI["asyncapi"] == "3.0.0"
    resolver = REGISTRY.resolver("urn:asyncapi")
    references = {node["$ref"] for node in nodes(ASYNCAPI) if "$ref" in node}
    for reference in references:
        resolver.lookup(reference)
    for group in ("messages", "schemas", "securitySchemes"):
        assert {f"#/components/{group}/{name}" for name in ASYNCAPI["components"][group]} <= references
    for message in ASYNCAPI["components"]["messages"].values():
        Draft7Validator.check_schema(message["payload"])
    for schema in ASYNCAPI["components"]["schemas"].values():
        Draft7Validator.check_schema(schema)
    for name, channel in ASYNCAPI["channels"].items():
        assert set(channel["messages"]) == {*messages_of(name, "receive"), *messages_of(name, "send")}


async def test_every_route_is_described_and_every_description_has_a_route(engines):
    keys = [{"name": "ann", "sha256": key_digest(KEY.encode())}]
    async with serving(engines, auth={"keys": keys}) as service:  # with keys there is one route more
        routes = service.ingress.application().routes
    http = {
        (route.path.replace(":path}", "}"), method.lower())
        for route in routes
        if isinstance(route, Route)
        for method in (route.methods or ()) - {"HEAD"}
    }
    assert http == {(path, method) for path, item in OPENAPI["paths"].items() for method in item}
    sockets = {route.path for route in routes if isinstance(route, WebSocketRoute)}
    assert sockets == {channel["address"] for channel in ASYNCAPI["channels"].values()}


def test_errors_have_their_codes_in_the_readme_and_in_both_descriptions():
    readme = (PROJECT / "README.md").read_text()
    table = re.search(r"\| error \| close code \| \|\n\|[-|]+\n((?:\|.*\n)+)", readme)
    assert table
    in_readme = {
        code: int(row.split("|")[2])
        for row in table[1].splitlines()
        for code in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    assert in_readme == {code: kind.close_code for code, kind in ERRORS.items() if code not in HTTP_ONLY}
    assert ASYNCAPI["channels"]["stream"]["x-close-codes"] == in_readme
    error = ASYNCAPI["components"]["messages"]["Error"]["payload"]["properties"]["code"]["enum"]
    assert sorted(error) == sorted(in_readme)
    statuses = OPENAPI["components"]["schemas"]["Error"]["x-statuses"]
    assert statuses == {code: kind.http_status for code, kind in ERRORS.items()}


def test_the_formats_are_those_that_are_taken():
    for channel in ("stream", "transcribe"):
        query = ASYNCAPI["channels"][channel]["bindings"]["ws"]["query"]["properties"]
        assert query["format"]["enum"] == list(FORMATS)
        assert query["sample_rate"]["enum"] == [str(rate) for rate in SAMPLE_RATES_HZ]


async def test_v1_stream(engines, clip):
    heard, said = Heard("stream"), Heard("stream", "receive")

    async def speak(connection: Any, *messages: dict[str, Any]) -> None:
        await connection.send(audio := clip.samples.tobytes())
        said.take(audio)
        for message in messages:
            said.take(message)
            await connection.send(json.dumps(message))

    async def hear(connection: Any, until: str) -> dict[str, Any]:
        async with asyncio.timeout(30):
            while heard.take(message := json.loads(await connection.recv())) != until:
                pass
        return message

    async with serving(engines) as service:
        async with contextlib.AsyncExitStack() as taken:
            holders = [await taken.enter_async_context(websockets.connect(service.url)) for _ in range(8)]
            for holder in holders:
                await hear(holder, "ready")
            async with websockets.connect(service.url) as refused:
                assert (await hear(refused, "error"))["retry_after_s"] > 0
            async with websockets.connect(f"{service.url}?wait_s=30") as waiting:
                assert await hear(waiting, "status") == {"type": "status", "state": "waiting", "place": 1}
                await holders[0].close()
                await hear(waiting, "ready")
        async with websockets.connect(
            f"{service.url}?words=true&confidence=true&pauses=true&settled=true"
        ) as connection:
            await speak(connection, {"type": "flush"}, {"type": "end"})
            for message in await answers_until_close(connection):
                heard.take(json.loads(message))
        cut = await websockets.connect(service.url)
        token = (await hear(cut, "ready"))["resume_token"]
        cut.transport.abort()
        async with websockets.connect(f"{service.url}?resume={token}&last_seq=0") as connection:
            assert "received" in await hear(connection, "ready")
            await connection.send("nonsense")
            assert (await hear(connection, "error"))["code"] == "invalid_message"
    said.take("EOS")
    async with (
        serving(engines, session={"park_after_seconds": 0.2}, ingress={"ping_seconds": 0.3}) as service,
        websockets.connect(service.url) as connection,
    ):
        await hear(connection, "ready")
        assert (await hear(connection, "status"))["state"] == "parked"
        await hear(connection, "ping")
        await connection.send(clip.samples.tobytes())
        assert (await hear(connection, "status"))["state"] == "migrating"
    heard.check_complete()
    said.check_complete()


async def test_v1_transcribe(service, clip):
    heard = Heard("transcribe")
    for end in ("EOS", "nonsense"):
        async with websockets.connect(service.at("/v1/transcribe")) as connection:
            await connection.send((clip.samples * 32_767).astype("<i2").tobytes())
            await connection.send(end)
            for message in await answers_until_close(connection):
                heard.take(json.loads(message))
    heard.check_complete()


async def test_moshi(service, clip):
    heard, said = Heard("moshi"), Heard("moshi", "receive")
    said.take({"type": "OggOpus", "data": [1, 2]})
    async with websockets.connect(service.at("/api/asr-streaming")) as connection:
        for message in (
            {"type": "Init"},
            {"type": "Audio", "pcm": clip.samples.tolist()},
            {"type": "Marker", "id": 7},
            {"type": "Audio", "pcm": SILENCE.tolist()},
            {"type": "Init"},  # too late
        ):
            # Of thousands of numbers a few: the validator holds up the engine, which runs in this process, too.
            said.take(message | {"pcm": message["pcm"][:9]} if "pcm" in message else message)
            await connection.send(msgpack.packb(message))
        for message in await answers_until_close(connection):
            heard.take(msgpack.unpackb(message))
    heard.check_complete()
    said.check_complete()


async def test_tagged_text(service, clip):
    heard = Heard("taggedText")
    audio = encoded(soxr.resample(clip.samples, 24_000, 48_000), 48_000, "ogg", "libopus")
    async with websockets.connect(service.at("/ws")) as connection:
        await connection.send(audio)
        await connection.send("EOS")
        for message in await answers_until_close(connection):
            heard.take(message)
    heard.check_complete()


async def test_realtime(service, clip):
    heard, said = Heard("realtime"), Heard("realtime", "receive")
    pcm = (np.concatenate((clip.samples, SILENCE)) * 32_767).astype("<i2").tobytes()
    append = {"type": "input_audio_buffer.append", "audio": base64.b64encode(pcm).decode()}
    clear, commit = {"type": "input_audio_buffer.clear"}, {"type": "input_audio_buffer.commit", "event_id": "mine"}
    no_turns = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}

    async def converse(until: str, *events: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        async with websockets.connect(service.at("/v1/realtime"), additional_headers=headers) as connection:
            for event in events:
                said.take(event)
                await connection.send(json.dumps(event))
            async with asyncio.timeout(30):
                while heard.take(message := json.loads(await connection.recv())) != until:
                    assert message["event_id"]

    await converse("completed", append)
    await converse("completed", {"type": "session.update", "session": no_turns}, append, commit)
    await converse("cleared", append, clear)
    await converse("error", commit)
    old = {"type": "transcription_session.update", "session": {"input_audio_format": "pcm16"}}
    await converse("completed", old, append, headers={"OpenAI-Beta": "realtime=v1"})
    heard.check_complete()
    said.check_complete()


def schema_of(path: str, method: str, status: int, media_type: str) -> dict[str, str]:
    answers = OPENAPI["paths"][path][method]["responses"]
    answer = answers.get(str(status), answers.get("default"))
    pointer = f"/paths/{path.replace('/', '~1')}/{method}/responses/{status if str(status) in answers else 'default'}"
    pointer = answer["$ref"].removeprefix("#") if "$ref" in answer else pointer
    return {"$ref": f"urn:openapi#{pointer}/content/{media_type.replace('/', '~1')}/schema"}


def check(answer: httpx.Response, path: str) -> None:
    """The answer has a status, a media type and a content that are described."""
    media_type = answer.headers["content-type"].partition(";")[0]
    schema = schema_of(path, answer.request.method.lower(), answer.status_code, media_type)
    content = answer.json() if media_type == "application/json" else answer.text
    Draft202012Validator(schema, registry=REGISTRY).validate(content)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        *((path, path) for path, item in OPENAPI["paths"].items() if "get" in item and "{" not in path),
        ("/v1/models/{model}", "/v1/models/demo"),
        ("/v1/models/{model}", "/v1/models/none"),
    ],
)
async def test_answers_to_questions(service, path, asked):
    async with httpx.AsyncClient(base_url=service.http, trust_env=False) as web:
        check(await web.get(asked), path)


async def test_a_service_that_is_not_ready_and_one_that_wants_a_key(engines):
    engines.is_ready = False
    keys = [{"name": "ann", "sha256": key_digest(KEY.encode())}]
    async with (
        serving(engines, auth={"keys": keys}) as service,
        httpx.AsyncClient(base_url=service.http, trust_env=False) as web,
    ):
        check(await web.get("/readyz"), "/readyz")
        for path, item in OPENAPI["paths"].items():
            for method, operation in item.items():
                answer = await web.request(method, path.replace("{model}", "demo"))
                assert (answer.status_code == 401) == ("security" not in operation), path
                if answer.status_code == 401:
                    check(answer, path)
        check(await web.post("/v1/tokens", headers={"kyutai-api-key": KEY}), "/v1/tokens")


@pytest.mark.parametrize("wishes", [
    {}, {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]},
    {"response_format": "srt"}, {"response_format": "none"}, {"model": "none"},
])  # fmt: skip
async def test_transcriptions(service, clip: Clip, wishes):
    async with httpx.AsyncClient(base_url=service.http, trust_env=False, timeout=30) as web:
        files = {"file": clip.path.read_bytes()}
        check(await web.post("/v1/audio/transcriptions", files=files, data=wishes), "/v1/audio/transcriptions")


async def test_events_of_a_streamed_transcription(service, clip):
    event = Draft202012Validator({"$ref": "urn:openapi#/components/schemas/TranscriptionEvent"}, registry=REGISTRY)
    async with httpx.AsyncClient(base_url=service.http, trust_env=False, timeout=30) as web:
        answer = await web.post(
            "/v1/audio/transcriptions", files={"file": clip.path.read_bytes()}, data={"stream": "true"}
        )
    check(answer, "/v1/audio/transcriptions")
    told = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert len(told) > 2
    for one in told:
        event.validate(one)


@pytest.mark.parametrize("is_audio", [True, False])
async def test_moshi_over_http(service, clip, is_audio):
    async with httpx.AsyncClient(base_url=service.http, trust_env=False, timeout=30) as web:
        check(
            await web.post("/api/asr-streaming", content=clip.path.read_bytes() if is_audio else b"no"),
            "/api/asr-streaming",
        )
