"""`stt latency` against the real ingress, each time a process of its own."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from rich.console import Console

from serve_app.cli.compare_gpus import price_per_stream_hour
from serve_app.cli.latency_view import print_comparison, showing
from serve_app.measuring.hearing import Hearing
from serve_app.measuring.latency import StreamRun, spread
from serve_app.measuring.speaking import Outcome
from serve_app.samples import demo_clip
from tests.support import SAMPLES, Service, serving
from tests.test_cli_transcribe import stt


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines) as made:
        yield made


async def test_numbers_for_scripts(service):
    status, output, errors = await stt(
        "latency", "--url", service.url, "-p", "2", "--runs", "2", "--rtf", "8", "--warmup", "--json"
    )
    assert (status, errors) == (0, "")
    numbers = json.loads(output)
    assert set(numbers) == {"streams", "rtf", "first_token_s", "word_delay_s", "wer", "failures"}
    assert (numbers["streams"], numbers["rtf"], numbers["wer"], numbers["failures"]) == (2, 8.0, 0.0, 0)
    for name in ("first_token_s", "word_delay_s"):
        assert list(numbers[name]) == ["min", "avg", "p50", "p95"]
        assert numbers[name]["min"] <= numbers[name]["p50"] <= numbers[name]["p95"]


async def test_lines_for_people_without_a_terminal(service):
    status, output, _ = await stt(
        "latency", "--url", service.url, "-p", "2", "--rtf", "8", "--samples", str(SAMPLES / "hello-en.wav"),
        "--samples", str(SAMPLES / "merci-fr.wav"),
    )  # fmt: skip
    lines = output.splitlines()
    assert status == 0
    assert lines[0] == "run 1 of 1: 2 streams, rtf 8"
    assert {line.split(":")[0] for line in lines[1:3]} == {"1", "2"}
    assert lines[3].startswith("first token: min ")
    assert lines[4].startswith("word delay: min ")
    assert lines[5] == "WER unknown, 0 failed"  # a single file's words are only known from a text beside it


async def test_services_side_by_side(service, tmp_path):
    (tmp_path / "stt").mkdir()
    (tmp_path / "stt" / "services.yaml").write_text(f"office: {{url: {service.url}}}")
    status, output, _ = await stt(
        "latency", "--endpoints", f"here={service.url}, office, none=127.0.0.1:9", "-p", "1", "--rtf", "8", "--json",
        XDG_CONFIG_HOME=str(tmp_path),
    )  # fmt: skip
    assert status == 1
    here, office, none = json.loads(output)
    assert [row["name"] for row in (here, office, none)] == ["here", "office", "none"]
    assert (here["wer"], office["failures"]) == (0.0, 0)
    assert "no connection" in none["error"]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--url", "127.0.0.1:9"), 3, "no connection"),
        (("--samples", "none.wav"), 2, "none.wav: no such file"),
        (("--endpoints", "a=x", "--compare-gpus", "L4"), 2, "expected one of --endpoints and --compare-gpus"),
        (("--endpoints", "=ws://127.0.0.1:9"), 2, "expected NAME=URL with commas"),
    ],
)
async def test_what_cannot_be(arguments, status, message):
    result, output, errors = await stt("latency", *arguments)
    assert (result, output.count("\n") <= 1) == (status, True)
    assert message in errors
    assert "Traceback" not in errors


def test_a_terminal_shows_the_words_against_the_reference():
    clip = demo_clip()
    run = StreamRun(1, clip, Outcome(clip.file, clip.seconds), Hearing())
    console = Console(force_terminal=True, width=120, color_system="standard", legacy_windows=False)
    with console.capture() as captured, showing(console, "run 1 of 1", quiet=False) as show:
        show([run])
        for text in (" hello", " too"):
            run.hearing.add_text(text, 1.0)
    shown = captured.get()
    assert "\x1b[32mhello" in shown  # right: green
    assert "\x1b[31mtoo" in shown  # wrong: red
    assert "\x1b[2meight" in shown  # still to be heard: dim


def test_a_comparison_has_a_line_for_each_and_prices_where_known(capsys):
    numbers = {"first_token_s": spread([0.5]), "word_delay_s": spread([0.1]), "wer": None, "failures": 0}
    rows = [{"name": "L4", **numbers, "price_per_stream_hour": 0.0082}, {"name": "A10G", "error": "not ready"}]
    print_comparison(Console(force_terminal=False), rows)
    heading, first, second = capsys.readouterr().out.splitlines()
    assert heading.endswith("failed\tprice per stream-hour")
    assert first.split("\t") == [
        "L4", "0.50 s", "0.50 s", "0.50 s", "0.10 s", "0.10 s", "0.10 s", "", "0", "$0.0082",
    ]  # fmt: skip
    assert second == "A10G\tnot ready"


def test_the_price_of_a_stream(tmp_path: Path):
    file = tmp_path / "gpus.yaml"
    assert price_per_stream_hour("L4", "demo", file) is None
    file.write_text("gpus: {L4: {price: {dollars_per_hour: 0.8}, capacity: {small: {slots: 80}, none: }}}")
    assert price_per_stream_hour("L4", "small", file) == pytest.approx(0.01)
    assert price_per_stream_hour("L4", "none", file) is None
    assert price_per_stream_hour("L4", "demo", file) is None
    assert price_per_stream_hour("H100", "small", file) is None
