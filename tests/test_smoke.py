"""`stt smoke` against the real ingress, each time a process of its own."""

import asyncio
import contextlib
import json
import wave
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import websockets
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from serve_app.settings import key_digest
from serve_app.smoke.endpoints import ENDPOINTS
from serve_app.smoke.run import FIRST_DIALECT, LIVE
from serve_app.smoke.target import Target
from serve_app.smoke.uploads import UPLOADS
from tests.support import Clip, DirectEngines, Service, serving
from tests.test_cli_transcribe import stt, web_server

pytestmark = pytest.mark.timeout(180)

KEY = "a key as long as a key should be"
WORDS = "hello two"
DIALECTS = (FIRST_DIALECT, *LIVE, *UPLOADS)


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines) as made:
        yield made


@pytest.fixture
def beginning(clip: Clip, tmp_path: Path) -> str:
    """The first two words of the demo's clip: everything here takes as long as the audio."""
    file = tmp_path / "beginning.wav"
    with wave.open(str(file), "wb") as writer:
        writer.setparams((1, 2, 24_000, 0, "NONE", ""))
        writer.writeframes((clip.samples[: int(1.85 * 24_000)] * 32_767).astype("<i2").tobytes())
    return str(file)


async def test_every_dialect_hears_the_same_words_and_the_key_opens_all(engines, beginning):
    keys = [{"name": "ann", "sha256": key_digest(KEY.encode()), "max_sessions": 2}]
    async with serving(engines, auth={"keys": keys}) as service:
        status, output, errors = await stt(
            "smoke", "--url", service.http, "--clip", beginning, "--reference", WORDS, "--json", STT_API_KEY=KEY
        )
        await service.wait_until_empty()
    report = json.loads(output)
    assert (status, report["ok"], report["model"], errors) == (0, True, "demo", ""), report
    checks = {check["name"]: check for check in report["checks"]}
    assert set(checks) == {*ENDPOINTS, *DIALECTS}
    assert {checks[name]["text"] for name in DIALECTS} == {WORDS}
    assert checks["access"]["note"] == "key needed; tokens work"
    assert all(checks[name]["first_word_s"] > 0 for name in DIALECTS if name.startswith("WS"))


async def test_wrong_words_fail_line_by_line(service, beginning):
    status, output, _ = await stt("smoke", "--url", service.url, "--clip", beginning, "--reference", "good morning")
    lines = output.splitlines()
    assert status == 1
    assert [line[:6].strip() for line in lines[:-2]] == ["ok"] * len(ENDPOINTS) + ["FAIL"] * len(DIALECTS)
    assert f"FAIL  {FIRST_DIALECT}" in output
    assert "expected 'good morning', heard 'hello two'" in output
    assert lines[-1].startswith(f"smoke: FAILED {len(ENDPOINTS)} of {len(lines) - 2} checks in ")


@contextlib.asynccontextmanager
async def crowded(engines: DirectEngines, sessions: int) -> AsyncIterator[Service]:
    """A service of eight slots with so many sessions that say nothing."""
    patient = {"park_after_seconds": 600, "idle_audio_timeout_seconds": 600}
    async with serving(engines, session=patient) as service, contextlib.AsyncExitStack() as taken:
        for _ in range(sessions):
            await (await taken.enter_async_context(websockets.connect(service.url))).recv()
        yield service


async def test_without_a_reference_the_dialects_are_compared_and_one_slot_is_enough(engines, beginning):
    """It also waits for a service that is starting, as systemd and the deploy docs use it."""
    async with crowded(engines, 7) as service:
        engines.is_ready = False
        smoking = asyncio.create_task(stt("smoke", "--url", service.http, "--clip", beginning, "--wait", "60"))
        await asyncio.sleep(2)
        assert not smoking.done()
        engines.is_ready = True
        status, output, errors = await smoking
    *_, words, end = output.splitlines()
    assert (status, words, errors) == (0, f"words:  {WORDS} ({FIRST_DIALECT})", ""), output
    assert end.startswith("smoke: ok ")


async def test_a_full_service_is_said_to_be_full_once_and_soon(engines, beginning):
    async with crowded(engines, 8) as service:
        status, output, _ = await stt("smoke", "--url", service.http, "--clip", beginning)
    assert status == 1
    assert output.count("at_capacity") == 1
    assert output.count("not tried: another one has found no free slot") == len(DIALECTS) - 1
    assert "words:  none" in output


async def test_there_must_be_a_service_that_is_ready(engines, service, unused_tcp_port):
    status, output, errors = await stt("smoke", "--url", f"ws://ann:SECRET@127.0.0.1:{unused_tcp_port}", "--json")
    assert (status, json.loads(output)["ok"], json.loads(output)["checks"]) == (3, False, [])
    assert errors.startswith(f"stt: http://127.0.0.1:{unused_tcp_port}/health: no connection (")
    engines.is_ready = False
    status, _, errors = await stt("smoke", "--url", service.http)
    assert (status, errors) == (1, f"stt: {service.http} is not ready: no engine has loaded its model yet: demo\n")
    status, _, errors = await stt("smoke", "--url", service.http, "--reference", " ")
    assert (status, errors) == (2, "stt: --reference: expected some words, got none\n")


async def test_a_key_that_is_wanted_is_asked_for(engines):
    keys = [{"name": "ann", "sha256": key_digest(KEY.encode())}]
    async with serving(engines, auth={"keys": keys}) as service:
        for arguments, asked in (((), "an API key"), (("--api-key", "wrong"), "another API key")):
            status, _, errors = await stt("smoke", "--url", service.http, *arguments)
            assert (status, errors) == (3, f"stt: {service.http}: the server asks for {asked} (HTTP 401)\n")


async def test_what_is_another_service(unused_tcp_port):
    routes = [Route("/health", lambda _: PlainTextResponse("hello"))]
    async with web_server(Starlette(routes=routes), unused_tcp_port) as site:
        status, _, errors = await stt("smoke", "--url", site)
    assert (status, errors) == (1, f"stt: {site}/health: expected ok, got 'hello': this is another service\n")


@pytest.mark.parametrize(
    ("address", "stream", "web"),
    [
        ("127.0.0.1:8000", "ws://127.0.0.1:8000/v1/stream", "http://127.0.0.1:8000"),
        ("https://there/stt/v1/stream?auth_id=k", "wss://there/stt/v1/stream?auth_id=k", "https://there/stt"),
    ],
)
async def test_addresses(address, stream, web):
    async with Target(address) as target:
        assert (target.socket_address("/v1/stream"), target.web_url) == (stream, web)
        assert target.has_key == ("auth_id" in address)
