"""`stt transcribe` against the real ingress, each time a process of its own."""

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette
from starlette.responses import FileResponse, RedirectResponse, StreamingResponse
from starlette.routing import Route
from uvicorn import Config, Server
from websockets.asyncio.server import ServerConnection

from serve_app import client
from serve_app.audio.download import read_url
from serve_app.audio.files import MOST_STREAMED_BYTES, AudioFileError
from serve_app.settings import key_digest
from tests.support import SAMPLES, Service, serving
from tests.test_client import READY, peer, say


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines) as made:
        yield made


async def stt(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "serve_app.cli.main", *arguments,
        env={**os.environ, **environment}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


@pytest.mark.parametrize("format", ["f32", "s16", "opus"])
async def test_formats_and_the_service_from_the_environment(service, clip, tmp_path, format):
    status, output, errors = await stt(
        "transcribe", str(clip.path), "--rtf", "0", "--format", format, "--service", "local",
        LOCAL_WS_URL=service.url, XDG_CONFIG_HOME=str(tmp_path),
    )  # fmt: skip
    assert (status, output.split(), errors) == (0, clip.words, "")


async def test_every_way_to_bring_a_key(engines, clip, tmp_path):
    keys = [{"name": "pair", "sha256": key_digest(b"k:s")}, {"name": "club", "sha256": key_digest(b"open sesame")}]
    (tmp_path / "stt").mkdir()
    async with serving(engines, auth={"keys": keys}) as service:
        file = tmp_path / "stt" / "services.yaml"
        file.write_text(f"club: {{url: {service.url}, api_key_env: CLUB_KEY}}")
        run = ("transcribe", str(clip.path), "--rtf", "0")
        status, _, errors = await stt(*run, "--url", service.url)
        assert (status, "the server asks for an API key" in errors) == (3, True)
        results = await asyncio.gather(
            stt(*run, "--url", service.url, MODAL_KEY="k", MODAL_SECRET="s"),
            stt(*run, "--service", "club", CLUB_KEY="open sesame", STT_API_KEY="no", XDG_CONFIG_HOME=str(tmp_path)),
        )
    assert [(status, output.split()) for status, output, _ in results] == [(0, clip.words)] * 2


async def test_subtitles_next_to_the_text_and_instead_of_it(service, clip, tmp_path):
    run = ("transcribe", str(clip.path), "--url", service.url, "--rtf", "0")
    file = tmp_path / "clip.srt"
    status, output, _ = await stt(*run, "--srt", str(file), "--vtt", "-")
    assert status == 0
    assert output.startswith("WEBVTT\n\n00:00:0")
    cues = file.read_text().split("\n\n")
    assert cues[0].startswith("1\n00:00:0")
    assert [word for cue in cues for word in cue.split("\n", 2)[2:] for word in word.split()] == clip.words
    status, output, _ = await stt(*run, "--vtt", str(file))
    assert (status, output.split()) == (0, clip.words)
    assert file.read_text().startswith("WEBVTT")


async def test_what_cannot_be_printed_or_written():
    clip = str(SAMPLES / "hello-en.wav")
    status, _, errors = await stt("transcribe", clip, "--json", "--srt", "-")
    assert (status, errors) == (
        2,
        "stt: expected one of --json, --words, --srt - and --vtt -: all of them print\n",
    )
    status, _, errors = await stt("transcribe", clip, "--srt", "/no/such/folder/x.srt")
    assert (status, errors) == (2, "stt: /no/such/folder/x.srt: cannot be written (No such file or directory)\n")
    status, _, errors = await stt("transcribe", clip, "--service", "nowhere")
    assert status == 2
    assert errors.startswith("stt: service nowhere: expected one of local")


async def test_waiting_in_line(service, clip):
    async with contextlib.AsyncExitStack() as taken:
        holders = [await taken.enter_async_context(client.connect(service.url)) for _ in range(8)]
        for holder in holders:
            assert isinstance(await anext(holder), client.Ready)
        run = ("transcribe", str(clip.path), "--url", service.url, "--rtf", "0")
        status, _, errors = await stt(*run)
        assert (status, "at_capacity" in errors) == (1, True)
        waiting = asyncio.create_task(stt(*run, "--wait", "60"))
        while not len(service.ingress._models.default.admission):
            assert not waiting.done(), waiting.result()
            await asyncio.sleep(0.05)
        await holders[0].close()
        status, output, errors = await waiting
    assert (status, output.split(), errors) == (0, clip.words, "stt: waiting for a slot, place 1 in line\n")


@contextlib.asynccontextmanager
async def web_server(application: Starlette, port: int) -> AsyncIterator[str]:
    """Any application on the web; its address."""
    server = Server(Config(application, port=port, log_level="warning", timeout_graceful_shutdown=1))
    serving_it = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await serving_it


@contextlib.asynccontextmanager
async def web(unused_tcp_port: int) -> AsyncIterator[str]:
    async def dripping():
        while True:
            yield b"RIFF"
            await asyncio.sleep(0.05)

    async def endless():
        while True:
            yield b"RIFF" * 2**18
            await asyncio.sleep(0)  # or, once nobody reads, nothing else would ever run

    routes = [
        Route("/moved", lambda _: RedirectResponse("/clip.wav")),
        Route("/clip.wav", lambda _: FileResponse(SAMPLES / "hello-en.wav")),
        Route("/dripping", lambda _: StreamingResponse(dripping())),
        Route("/endless", lambda _: StreamingResponse(endless())),
    ]
    async with web_server(Starlette(routes=routes), unused_tcp_port) as site:
        yield site


async def test_a_file_on_the_web(service, clip, unused_tcp_port):
    async with web(unused_tcp_port) as site:
        status, output, _ = await stt("transcribe", f"{site}/moved?key=x", "--url", service.url, "--rtf", "0")
        assert (status, output.split()) == (0, clip.words)
        status, _, errors = await stt("transcribe", f"{site}/none?key=x")
        assert (status, errors) == (2, f"stt: {site}/none: expected a file, got HTTP 404\n")
    status, _, errors = await stt("transcribe", f"{site}/clip.wav")
    assert (status, errors.startswith(f"stt: {site}/clip.wav: cannot be read (")) == (2, True)


async def test_the_web_has_limits(unused_tcp_port, monkeypatch):
    monkeypatch.setattr("serve_app.audio.files.MOST_STREAMED_BYTES", 2**22)
    assert MOST_STREAMED_BYTES == 2**30
    async with web(unused_tcp_port) as site:
        before = time.monotonic()
        with pytest.raises(AudioFileError, match=r"dripping: expected it within 0\.5 s"):
            await asyncio.to_thread(read_url, f"{site}/dripping", 0.5)
        assert time.monotonic() - before < 5
        with pytest.raises(AudioFileError, match="endless: expected at most 4,194,304 bytes"):
            await asyncio.to_thread(read_url, f"{site}/endless")


async def test_a_file_longer_than_a_session_may_last_wants_another_speed(engines, clip):
    async with serving(engines, session={"max_session_seconds": 5.0}) as service:
        status, output, errors = await stt("transcribe", str(clip.path), "--url", service.url)
        heard = output.split()
        assert status != 0
        assert 0 < len(heard) < len(clip.words)
        assert heard == clip.words[: len(heard)]
        assert "expected a session of at most 5 s (session_too_long)" in errors
        assert "faster than real time: --rtf 0" in errors


async def test_what_was_heard_before_a_failure_is_in_the_subtitles(clip, tmp_path):
    async def fail_later(connection: ServerConnection) -> None:
        word = {"type": "word", "text": "one", "start": 0.5, "end": 2.0}
        await say(connection, READY, word, {"type": "error", "code": "engine_lost", "message": "gone"})
        await connection.wait_closed()

    file = tmp_path / "clip.srt"
    async with peer(fail_later) as address:
        status, _, errors = await stt("transcribe", str(clip.path), "--url", address, "--srt", str(file))
    assert (status, errors) == (1, "stt: the server reports: gone (engine_lost)\n")
    assert file.read_text() == "1\n00:00:00,500 --> 00:00:02,000\none\n\n"
