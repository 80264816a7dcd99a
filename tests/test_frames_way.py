"""The way of frames is measured, or a line says why not; against services that misbehave."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from click.testing import Result
from typer.testing import CliRunner
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from loadtest import frames

IDLE = json.dumps({"engines": {"one": {"slots_used": 0, "step_p50_seconds": 0.001}}})
BUSY = json.dumps({"engines": {"one": {"slots_used": 3, "step_p50_seconds": 0.001}}})
SILENT_SPEAKER = ("-c", "import sys; sys.stdin.read()")


def answer_frames(connection: ServerConnection, most: int) -> None:
    """A session that tells of each frame, up to so many; then the end of the audio is answered, or nothing is."""
    connection.send(json.dumps({"type": "ready", "session_id": "s", "model": "demo", "resume_token": "t"}))
    for number, message in enumerate(connection):
        if number == most:
            connection.socket.shutdown(socket.SHUT_RDWR)
            return
        if isinstance(message, str):
            connection.send(json.dumps({"type": "done", "audio_seconds": number * 0.08}))
            return
        connection.send(json.dumps({"type": "pauses", "time": number * 0.08, "probabilities": [0.0] * 4}))


@contextmanager
def service(status: Callable[[], str], most_frames: int = 10_000) -> Iterator[str]:
    """A service's address: `/status` is what the function says, everything else is a session."""

    def process(connection: ServerConnection, request: Request) -> Response | None:
        return connection.respond(200, status()) if request.path == "/status" else None

    with serve(lambda one: answer_frames(one, most_frames), "127.0.0.1", 0, process_request=process) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


def measure(url: str, sessions: int = 0) -> Result:
    """Run the program; a failure ends it well before the five seconds of a measurement are over."""
    return CliRunner().invoke(frames.app, ["--url", url, "--sessions", str(sessions), "--seconds", "5", "--json"])


def failure(url: str, sessions: int = 0) -> str:
    """The one line that the program ends with, at once."""
    begun_at = time.monotonic()
    done = measure(url, sessions)
    assert (done.exit_code, done.stdout) == (1, ""), (done.output, done.exception)
    assert time.monotonic() - begun_at < 4
    assert "Traceback" not in done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("stt: ")]
    return line


def test_each_frame_is_timed_and_the_median_step_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "SPEAKER", SILENT_SPEAKER)
    steps = iter([7.0, 0.001, 0.001, 0.001, 0.5])  # the first is asked for before anything is measured

    def status() -> str:
        return json.dumps({"engines": {"one": {"slots_used": 0, "step_p50_seconds": next(steps, 0.001)}}})

    with service(status) as url:
        done = measure(url)
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout)
    assert (figures["frames"], figures["step_p50_ms"]) == (63, 1.0)
    assert -1 < figures["way_p50_ms"] <= figures["way_p99_ms"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://", "expected a host"),
        ("ftp://x", "expected ws, wss, http or https"),
        ("http://127.0.0.1:99999", "is not an address"),
        ("ws://[::1", "is not an address"),
    ],
)
def test_what_is_no_address_is_said_at_once(url: str, expected: str) -> None:
    done = measure(url)
    assert done.exit_code == 1
    [line] = done.stderr.splitlines()
    assert expected in line


def test_an_address_without_a_service_is_named() -> None:
    with service(lambda: IDLE) as url:
        pass
    assert f"{url}/status: no answer" in failure(url)


@pytest.mark.parametrize(
    "text", ["hello", "[]", "{}", '{"engines": ["one"]}', '{"engines": {"one": {"slots_used": 1}}}']
)
def test_a_status_of_another_kind_is_shown(text: str) -> None:
    with service(lambda: text) as url:
        line = failure(url)
    assert f"{url}/status: expected engines with slots_used and step_p50_seconds, got HTTP 200 and {text!r}" in line


def test_a_status_that_fails_later_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "SPEAKER", SILENT_SPEAKER)
    texts = iter([BUSY, BUSY, BUSY])
    with service(lambda: next(texts, "hm")) as url:
        assert "got HTTP 200 and 'hm'" in failure(url)


def test_a_service_that_dies_is_named_and_not_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "SPEAKER", SILENT_SPEAKER)
    with service(lambda: IDLE, most_frames=5) as url:
        assert f"{url}: the connection broke off" in failure(url)


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("raise SystemExit(3)", "the process that speaks beside ended with exit status 3"),
        ("import time; print('{}', flush=True); time.sleep(1.5); raise SystemExit(4)", "ended with exit status 4"),
        ('print(\'{"error": "no clips"}\', flush=True); input()', "a session beside failed: no clips"),
        (
            'print(\'{"said": 0, "outcome": {"failure": "at_capacity"}}\', flush=True); input()',
            "a session beside failed: at_capacity",
        ),
    ],
)
def test_nothing_is_measured_beside_sessions_that_fail(
    monkeypatch: pytest.MonkeyPatch, program: str, expected: str
) -> None:
    monkeypatch.setattr(frames, "SPEAKER", ("-c", program))
    with service(lambda: BUSY) as url:
        assert expected in failure(url, sessions=3)


def test_nothing_is_measured_beside_sessions_that_never_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "SPEAKER", SILENT_SPEAKER)
    monkeypatch.setattr(frames, "BEGIN_SECONDS", 0.5)
    with service(lambda: BUSY) as url:
        assert "expected 4 sessions beside to have slots within 0.5 s, got 3 slots used" in failure(url, sessions=4)
