"""What a session's summary says: the line in the log at its end."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
import websockets

from serve_app import client
from serve_app.session.tally import Tally
from serve_app.telemetry import configure_logging
from tests.support import LocalVault, serving


@pytest.fixture
def logged(capfd: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """The lines with this event, so far."""
    seen: list[dict[str, Any]] = []

    def lines(event: str) -> list[dict[str, Any]]:
        for line in capfd.readouterr().err.splitlines():
            with contextlib.suppress(ValueError):
                seen.append(json.loads(line))
        return [line for line in seen if line.get("event") == event]

    configure_logging("info")
    yield lines
    configure_logging("info")


def test_numbers_that_nothing_is_known_of_are_none():
    assert Tally().summary([]) == {
        "words": 0, "first_token_seconds": None, "word_delay_p95_seconds": None, "moves": 0, "resumes": 0,
    }  # fmt: skip
    tally = Tally(words=3, moves=1, resumes=2, first_token_s=0.61249)
    assert tally.summary([0.5] * 19 + [1.5]) == {
        "words": 3, "first_token_seconds": 0.612, "word_delay_p95_seconds": 0.55, "moves": 1, "resumes": 2,
    }  # fmt: skip


async def test_a_session_ends_with_one_line_that_does_not_tell_what_was_said(engines, clip, logged):
    async with serving(engines) as service:
        async for _ in client.transcribe(service.url, clip.samples, rtf=0.0, words=True):
            pass
        await service.wait_until_empty()
    (line,) = logged("session over")
    assert (line["dialect"], line["outcome"], line["key"]) == ("stream", "done", None)
    assert (line["words"], line["moves"], line["resumes"]) == (len(clip.words), 0, 0)
    assert line["audio_seconds"] == round(len(clip.samples) / 24_000, 3)
    assert line["first_token_seconds"] > 0
    assert line["word_delay_p95_seconds"] > 0
    assert not [word for word in clip.words if word in json.dumps(line)]


async def test_a_session_that_goes_on_elsewhere_takes_its_numbers_along(engines, clip, logged):
    vault = LocalVault(60)
    half = len(clip.samples) // 2
    async with serving(engines, vault) as first, serving(engines, vault) as second:
        async with websockets.connect(f"{first.url}?words=true") as connection:
            token = json.loads(await connection.recv())["resume_token"]
            await connection.send(clip.samples[:half].tobytes())
            while (message := json.loads(await connection.recv()))["type"] != "word":
                pass
            connection.transport.abort()
        await first.wait_until_empty()
        async with websockets.connect(f"{second.url}?resume={token}&last_seq={message['seq']}") as again:
            samples = json.loads(await again.recv())["received"]["samples"]
            await again.send(clip.samples[samples:].tobytes())
            await again.send("EOS")
            async for _ in again:
                pass
        await second.wait_until_empty()
    (handed_on,), (over,) = logged("session may go on elsewhere"), logged("session over")
    assert handed_on["session_id"] == over["session_id"]
    assert (handed_on["resumes"], over["resumes"]) == (0, 1)
    assert over["words"] == len(clip.words) > handed_on["words"] > 0
    assert over["first_token_seconds"] == handed_on["first_token_seconds"]
