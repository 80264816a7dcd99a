"""`stt top`: against a real service, as lines, as JSON, and as a screen."""

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from serve_app import client
from serve_app.cli.figures import Scrape, figures
from serve_app.cli.top_view import screen
from serve_app.settings import key_digest
from tests.support import Service, serving

STT = str(Path(sys.executable).with_name("stt"))
KEY = "a key that nobody guesses"
KEYS = [{"name": "ann", "sha256": key_digest(KEY.encode())}]


@pytest.fixture
async def service(engines, clip) -> AsyncIterator[Service]:
    """One that has heard a clip."""
    async with serving(engines) as made:
        async for _ in client.transcribe(made.url, clip.samples, rtf=0.0, words=True):
            pass
        await made.wait_until_empty()
        yield made


async def run(*arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        STT, "top", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


async def test_one_look_as_json(service, clip):
    status, out, err = await run("--url", service.url, "--once", "--json")
    assert (status, err) == (0, "")
    seen = json.loads(out)
    assert seen["complete"] is True
    assert (seen["slots"], seen["slots_used"]) == (8, 0)
    assert list(seen["engines"]) == ["engine-1"]
    assert seen["ingresses"]["ingress-1"]["sessions"] == 0
    assert seen["word_delay_s"]["p95"] > 0
    assert seen["per_s"]["words"] is None


async def test_lines_go_on_while_somebody_speaks(service, clip):
    process = await asyncio.create_subprocess_exec(
        STT, "top", "--url", service.http, "--interval", "0.5",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout
    try:
        async with asyncio.timeout(60):
            assert (await process.stdout.readline()).decode() == f"stt: demo at {service.http}\n"
            assert b"sessions none  slots 0/8" in await process.stdout.readline()
            async with client.connect(service.url) as stream:
                await stream.send(clip.samples[:24_000])
                while b"sessions 1 live  slots 1/8" not in await process.stdout.readline():
                    pass
    finally:
        process.terminate()
        await process.wait()


async def test_a_service_with_keys_wants_one(engines):
    async with serving(engines, auth={"keys": KEYS}) as service:
        assert (await run("--url", service.url, "--once", "--api-key", KEY))[0] == 0
        status, out, err = await run("--url", service.url, "--once")
        assert (status, out) == (3, "")
        assert "key is refused" in err


async def test_nobody_there():
    status, _, err = await run("--url", "ws://ann:SECRET@127.0.0.1:1", "--once")
    assert status == 3
    assert err.startswith("stt: http://127.0.0.1:1/status: no answer")


async def test_the_screen_shows_every_replica(service):
    async with httpx.AsyncClient() as http:
        text = (await http.get(f"{service.http}/metrics")).text
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(screen("stt: demo", figures(Scrape(text, 0.0))))
    shown = console.export_text()
    for part in ("stt: demo", "0 of 8", "engine-1", "ingress-1", "word delay", "least headroom"):
        assert part in shown
