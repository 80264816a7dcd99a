"""The `stt` command: what it prints and how it ends."""

import asyncio
import contextlib
import json
import os
import shutil
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
from websockets.exceptions import ConnectionClosed

from serve_app.cli.config import DEFAULT_CONFIG, Address, Overrides, UnusableConfig, effective_config
from serve_app.cli.main import app
from serve_app.settings import MODELS_FOLDER, from_args

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
        assert_fails(stt("transcribe", clip, "--url", address, MODAL_KEY="open"), 3, "asks for an API key")
        pair = {"MODAL_KEY": "open", "MODAL_SECRET": "sesame"}
        assert_fails(stt("transcribe", clip, "--url", address, **pair), 3, "asks for another API key")
        assert stt("transcribe", clip, "--url", address, "--api-key", "open sesame", **pair).exit_code == 0


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


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "😀", "ü" * 70])
def test_odd_hosts(clip: str, host: str):
    result = stt("transcribe", clip, "--url", f"ws://{host}")
    assert_fails(result, 3 if host == "😀" else 2, host)


@pytest.mark.parametrize("option", ["--words", "--json", None])
def test_a_reader_that_has_seen_enough(clip: str, option: str | None):
    async def talk(connection: ServerConnection) -> None:
        await connection.send(json.dumps(READY))
        with contextlib.suppress(ConnectionClosed):
            for number in range(100_000):
                word = {"type": "word", "text": f"{number}", "start": 1.0, "end": 2.0}
                await connection.send(json.dumps({"type": "token", "text": f" {number}"}))
                await connection.send(json.dumps(word))

    command = [sys.executable, "-m", "serve_app.cli.main", "transcribe", clip, "--rtf", "0"]
    with peer(talk) as address:
        talking = subprocess.Popen(
            [*command, "--url", address, *filter(None, [option])], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert talking.stdout.read(5)
        talking.stdout.close()
        assert talking.stderr.read() == b""
        assert talking.wait(30) == 1


@pytest.mark.parametrize("argument", ["-", "/dev/stdin"])
def test_audio_through_a_pipe(clip: str, argument: str):
    command = [sys.executable, "-m", "serve_app.cli.main", "transcribe", argument]
    with peer(transcript) as address:
        result = subprocess.run(
            [*command, "--url", address], input=Path(clip).read_bytes(), capture_output=True, check=True
        )
    assert (result.stdout, result.stderr) == (b"one deux\ntwo\n", b"")
    result = subprocess.run([*command, "--url", address], input=b"", capture_output=True, check=False)
    name = "standard input" if argument == "-" else argument
    assert (result.returncode, result.stderr) == (
        2,
        f"stt: {name}: expected an audio file, got an empty one\n".encode(),
    )


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


def test_serve_refuses_a_model_nobody_knows_and_blames_what_the_user_typed():
    assert_fails(stt("serve", "--model", "no-such-model"), 2, "option --model: model: expected one of")
    assert_fails(stt("serve", MODEL_NAME="no-such-model"), 2, "environment variable MODEL_NAME: model: expected one of")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"application": {"argz": {}}}, "applications[0].argz: unknown key; did you mean 'args'?"),
        ({"http_options": {"port": "x"}}, "http_options.port: expected a valid integer"),
        ({"http_options": {"port": 70_000}}, "http_options.port: expected 1 to 65535, got 70000"),
        ({"http_options": {"hots": "::"}}, "http_options.hots: unknown key; did you mean 'host'?"),
        ({"http_options": [1]}, "http_options: expected a group of keys, got [1]"),
        ({"proxy_lokation": "EveryNode"}, "proxy_lokation: unknown key; did you mean 'proxy_location'?"),
        (
            {"proxy_location": "Nowhere"},
            "proxy_location: expected 'Disabled', 'HeadOnly' or 'EveryNode', got 'Nowhere'",
        ),
        (
            {"application": {"deployments": [{"name": "engine", "num_replikas": 2}]}},
            "applications[0].deployments[0].num_replikas: unknown key; did you mean 'num_replicas'?",
        ),
        (
            {"application": {"deployments": [{"name": "e", "num_replicas": 2, "autoscaling_config": {}}]}},
            "applications[0].deployments[0]: Manually setting num_replicas is not allowed",
        ),
        ({"applications": [{}, {}]}, "applications: expected a list with one application, got 2"),
    ],
)
def test_serve_names_what_is_wrong_outside_the_settings(tmp_path: Path, changes: dict, expected: str):
    config = yaml.safe_load(DEFAULT_CONFIG.read_text())
    config["applications"][0] |= changes.pop("application", {})
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config | changes))
    assert_fails(stt("serve", "--config", str(file)), 2, f"stt: {file}: {expected}")


@pytest.mark.parametrize("host", ["a..b", "a" * 70, "no such host"])
def test_serve_refuses_a_host_that_is_none(host: str):
    assert_fails(stt("serve", "--host", host, "--port", "21999"), 1, f"cannot listen on {host}:21999")


def test_a_wrong_checkpoint_is_told_before_anything_starts(tmp_path: Path):
    folder = Path(shutil.copytree(MODELS_FOLDER / "demo", tmp_path / "mine"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"moshi_name": 5}))
    expected = f"stt: {folder}/config.json: expected moshi_name to be the name of a file, got 5"
    assert_fails(stt("serve", "--model", str(folder)), 2, expected)
    assert_fails(stt("demo", "--model", str(folder)), 2, expected)
    assert_fails(
        stt("serve", "--model", str(tmp_path / "none")), 2, f"{tmp_path}/none: expected a folder with a config"
    )


def test_a_model_is_downloaded_before_anything_starts(tmp_path: Path):
    command = [sys.executable, "-m", "serve_app.cli.main", "serve", "--model", "someone/else"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert_fails(result, 2, "someone/else/config.json: not in the local cache, and the hub cannot be reached")


def test_serve_says_when_its_port_is_taken():
    with peer(transcript) as address:
        assert_fails(stt("serve", "--port", address.split(":")[1]), 1, "cannot listen on", address, "--port chooses")


def test_serve_does_not_wait_for_gpus_that_are_not_there(tmp_path: Path):
    config = yaml.safe_load(DEFAULT_CONFIG.read_text())
    config["applications"][0]["args"]["engine"] |= {"gpu": "H200", "replicas": 99}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    advice = ("engine.gpu H200: expected 99 GPUs on this machine", "engine.device: cpu", "RAY_ADDRESS")
    assert_fails(stt("serve", "--config", str(file), "--port", "21996"), 2, *advice)


def test_serve_does_not_wait_for_cpus_that_are_not_there(tmp_path: Path):
    config = yaml.safe_load(DEFAULT_CONFIG.read_text())
    config["applications"][0]["args"]["engine"] |= {"replicas": 999, "num_cpus": 1}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    advice = ("num_cpus: expected at most", "got 1000 (ingress: 1 of 1, engine of demo: 999 of 1)", "RAY_ADDRESS")
    assert_fails(stt("serve", "--config", str(file), "--port", "21996"), 2, *advice)


def test_one_of_several_models_is_meant_by_its_name_or_its_model(tmp_path: Path):
    folder = Path(shutil.copytree(MODELS_FOLDER / "demo", tmp_path / "mine"))
    config = yaml.safe_load(DEFAULT_CONFIG.read_text())
    config["applications"][0]["args"]["models"] = [{"model": str(folder), "name": "small", "engine": {"slots": 3}}]
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    for model in ("small", str(folder)):
        result = stt("fetch", model, "--config", str(file))
        assert (result.exit_code, result.stdout.strip()) == (0, str(folder))
        effective, _ = effective_config(file, Overrides(model=model))
        settings = from_args(effective["applications"][0]["args"], {"MODEL_NAME": model})
        assert {name: one.engine.slots for name, one in settings.served.items()} == {"small": 3}
    (folder / "config.json").unlink()
    assert_fails(
        stt("serve", "--config", str(file), "--model", "small"), 2, f"{folder}/config.json: expected this file"
    )


def test_fetch_says_where_a_checkpoint_is():
    result = stt("fetch", "demo")
    assert (result.exit_code, result.stdout.strip()) == (0, str(MODELS_FOLDER / "demo"))
    assert_fails(stt("fetch", "no-such-model"), 2, "model: expected one of")
    assert_fails(stt("fetch", "someone/else", HF_HUB_OFFLINE="1"), 2, "not in the local cache")


def test_fetch_needs_no_more_of_the_settings_than_what_names_models(tmp_path: Path):
    folder = Path(shutil.copytree(MODELS_FOLDER / "demo", tmp_path / "mine"))
    config = yaml.safe_load(DEFAULT_CONFIG.read_text())
    args = config["applications"][0]["args"]
    args["models"] = [{"model": str(folder), "name": "small", "engine": {"gpu": "none of this kind", "slots": 0}}]
    args |= {"engine": {"slots": -1, "model_cache_dir": str(tmp_path)}, "auth": {"mode": "keys"}, "kafka": "?", "x": 1}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    for model, expected in (("small", folder), ("demo", MODELS_FOLDER / "demo")):
        result = stt("fetch", model, "--config", str(file), BATCH_SIZE="many")
        assert (result.exit_code, result.stdout.strip()) == (0, str(expected))
    args["models"].append({"name": "nameless"})
    file.write_text(yaml.safe_dump(config))
    assert_fails(stt("fetch", "demo", "--config", str(file)), 2, f"{file}: models[1].model: expected a value, got none")


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_serve_does_not_listen_for_others_without_keys(host: str, tmp_path: Path):
    refusal = (2, "http_options.host: expected 127.0.0.1 as long as there are no API keys", "stt keys add", "auth.mode")
    assert_fails(stt("serve", "--host", host, "--port", "21997"), *refusal)
    config = yaml.safe_load(DEFAULT_CONFIG.read_text())
    config["http_options"] = {"host": host, "port": 21997}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(config))
    assert_fails(stt("serve", "--config", str(file)), *refusal)


def test_overrides_replace_the_config_files_values(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "http_options: {port: 1, root_path: /x}\napplications: [{name: a, import_path: a:b, args: {model: m, k: 1}}]"
    )
    config, address = effective_config(file, Overrides())
    assert (address.host, address.port) == ("127.0.0.1", 1)
    config, address = effective_config(file, Overrides(host="0.0.0.0", port=2, model="n", name="b"))
    assert config == {
        "http_options": {"host": "0.0.0.0", "port": 2, "root_path": "/x"},
        "applications": [{"name": "b", "import_path": "a:b", "args": {"model": "n", "k": 1}}],
    }
    assert address.reachable_host == "127.0.0.1"
    assert Address("::1", 1).reachable_host == "[::1]"


@pytest.mark.parametrize(("address", "private"), [(None, True), ("", True), ("local", True), ("192.0.2.1:6379", False)])
def test_whose_ray_it_is(monkeypatch: pytest.MonkeyPatch, address: str | None, private: bool):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert Overrides().private == private
    assert Overrides().environment()["RAY_ADDRESS"] == (address or "local")


def test_a_group_with_every_key_commented_out_is_empty(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text("http_options:\napplications: [{name: a, import_path: a:b, args: }]")
    config, address = effective_config(file, Overrides(model="n"))
    assert config["applications"] == [{"name": "a", "import_path": "a:b", "args": {"model": "n"}}]
    assert (address.host, address.port) == ("127.0.0.1", 8000)


@pytest.mark.parametrize(
    "text", [None, "[", "applications: 1", "applications: []", "{http_options: 1, applications: [{}]}"]
)
def test_what_is_no_config(tmp_path: Path, text: str | None):
    file = tmp_path / "config.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UnusableConfig, match=r"config\.yaml"):
        effective_config(file, Overrides())
