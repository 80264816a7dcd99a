"""The `stt` command: what it prints and how it ends."""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from pathlib import Path

import numpy as np
import pytest
import sphn
import yaml
from typer.testing import CliRunner, Result
from websockets.asyncio.server import ServerConnection, serve

from serve_app.cli.config import DEFAULT_CONFIG, Overrides, UnusableConfig, effective_config
from serve_app.cli.main import app

Script = Callable[[ServerConnection], Awaitable[None]]

READY = {"type": "ready", "session_id": "s1", "model": "demo"}
DONE = {"type": "done", "audio_seconds": 1.0}


def stt(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(app, arguments, env=environment)


def exit_status(result: Result | subprocess.CompletedProcess[str]) -> int:
    return result.returncode if isinstance(result, subprocess.CompletedProcess) else result.exit_code


def assert_fails(result: Result | subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    """One message, the right exit status, no traceback."""
    assert exit_status(result) == status
    assert len(result.stderr.splitlines()) == 1, result.stderr
    assert result.stderr.startswith("stt: ")
    for word in words:
        assert word in result.stderr


@contextlib.contextmanager
def peer(script: Script, **options: object) -> Iterator[str]:
    """A server in another thread, so that the test can wait for a process; the value is its host:port."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    addresses, over = [], asyncio.Event()

    async def run() -> None:
        async with serve(script, "127.0.0.1", 0, **options) as server:
            addresses.append(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
            started.set()
            await over.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),))
    thread.start()
    try:
        assert started.wait(10)
        yield addresses[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()
        loop.close()


async def transcript(connection: ServerConnection) -> None:
    """Say the same whatever comes, once it has all come."""
    await connection.send(json.dumps(READY))
    async for message in connection:
        if isinstance(message, str):
            break
    with_words = "words=true" in connection.request.path
    for text, start in (("one", 0.5), ("deux", 1.0)):
        await connection.send(json.dumps({"type": "token", "text": f" {text}"}))
        if with_words:
            await connection.send(json.dumps({"type": "word", "text": text, "start": start, "end": start + 0.25}))
    await connection.send(json.dumps({"type": "vad_end"}))
    await connection.send(json.dumps({"type": "token", "text": " two"}))
    await connection.send(json.dumps(DONE))


@pytest.fixture
def clip(tmp_path: Path) -> str:
    file = tmp_path / "clip.wav"
    sphn.write_wav(str(file), np.zeros(12_000, np.float32), 24_000)
    return str(file)


def test_text_comes_turn_by_turn(clip: str):
    with peer(transcript) as address:
        result = stt("transcribe", clip, "--url", address, "--rtf", "0")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "one deux\ntwo\n", "")


def test_words_come_with_their_times(clip: str):
    with peer(transcript) as address:
        result = stt("transcribe", clip, "--url", f"http://{address}", "--rtf", "0", "--words")
    assert (result.exit_code, result.stdout) == (0, "0.50-0.75 one\n1.00-1.25 deux\n")


def test_json_is_one_event_per_line(clip: str):
    with peer(transcript) as address:
        result = stt("transcribe", clip, "--url", address, "--rtf", "0", "--json")
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0
    assert events[0] == READY
    assert events[-1] == DONE
    assert [event["type"] for event in events] == ["ready", "token", "token", "vad_end", "token", "done"]


def test_the_key_comes_from_the_environment(clip: str):
    def check(connection: ServerConnection, request):
        if request.headers.get("Authorization") != "Bearer open sesame":
            return connection.respond(HTTPStatus.UNAUTHORIZED, "no")
        return None

    with peer(transcript, process_request=check) as address:
        assert_fails(stt("transcribe", clip, "--url", address), 3, "API key")
        assert stt("transcribe", clip, "--url", address, STT_API_KEY="open sesame").exit_code == 0


def test_a_process_of_its_own(clip: str):
    command = [sys.executable, "-m", "serve_app.cli.main", "transcribe"]
    with peer(transcript) as address:
        result = subprocess.run([*command, clip, "--url", address], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("one deux\ntwo\n", "")
    assert_fails(subprocess.run([*command, "absent.wav"], capture_output=True, text=True, check=False), 2, "absent.wav")


def test_a_missing_file():
    assert_fails(stt("transcribe", "absent.wav"), 2, "absent.wav", "no such file")


def test_a_file_that_is_no_audio():
    assert_fails(stt("transcribe", __file__), 2, "test_cli.py", "got one that begins with")


def test_an_address_that_is_none(clip: str):
    assert_fails(stt("transcribe", clip, "--url", "ftp://somewhere"), 2, "ftp")


def test_no_server(clip: str, unused_tcp_port: int):
    assert_fails(stt("transcribe", clip, "--url", f"127.0.0.1:{unused_tcp_port}"), 3, "no connection")


def test_an_error_of_the_server(clip: str):
    async def full(connection: ServerConnection) -> None:
        error = {"type": "error", "code": "at_capacity", "message": "every slot is taken", "retry_after_s": 5}
        await connection.send(json.dumps(error))
        await connection.close(1013)

    with peer(full) as address:
        result = stt("transcribe", clip, "--url", address)
    assert_fails(result, 1, "every slot is taken", "at_capacity", "try again in 5 s")


def test_serve_names_what_is_wrong_with_the_settings(tmp_path: Path):
    config = yaml.safe_load(DEFAULT_CONFIG.read_text())
    config["applications"][0]["args"]["engine"]["slots"] = "many"
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    for command in (["serve", "--config", str(file)], ["demo", "--config", str(file)]):
        assert_fails(stt(*command), 2, str(file), "engine.slots")


def test_serve_refuses_a_model_nobody_knows():
    assert_fails(stt("serve", "--model", "no-such-model"), 2, "no-such-model")


def test_serve_says_when_its_port_is_taken():
    with peer(transcript) as address:
        assert_fails(stt("serve", "--port", address.split(":")[1]), 1, "cannot listen on", address)


def test_overrides_replace_the_config_files_values(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text("http_options: {port: 1, x: y}\napplications: [{name: a, args: {model: m, k: 1}}]")
    config, address = effective_config(file, Overrides())
    assert (address.host, address.port) == ("127.0.0.1", 1)
    config, address = effective_config(file, Overrides(host="0.0.0.0", port=2, model="n", name="b"))
    assert config == {
        "http_options": {"host": "0.0.0.0", "port": 2, "x": "y"},
        "applications": [{"name": "b", "args": {"model": "n", "k": 1}}],
    }
    assert address.reachable_host == "127.0.0.1"


@pytest.mark.parametrize(
    "text", [None, "[", "applications: 1", "applications: []", "{http_options: 1, applications: [{}]}"]
)
def test_what_is_no_config(tmp_path: Path, text: str | None):
    file = tmp_path / "config.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UnusableConfig, match=r"config\.yaml"):
        effective_config(file, Overrides())
