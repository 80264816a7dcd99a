"""The load test as people run it: Locust's own command, against the real ingress."""

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

from serve_app.settings import key_digest
from tests.support import PROJECT, serving

LOCUST = Path(sys.executable).with_name("locust")


async def locust(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit status and everything it printed."""
    command = [str(LOCUST), "-f", "loadtest/locustfile.py", "--headless", "--only-summary", *arguments]
    process = await asyncio.create_subprocess_exec(
        *command, cwd=PROJECT, env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode or 0, output.decode()


async def test_a_run_with_its_report(engines, tmp_path):
    page = tmp_path / "run.html"
    async with serving(engines, auth={"keys": [{"name": "load", "sha256": key_digest(b"k")}]}) as service:
        status, output = await locust(
            "--host", service.http, "-u", "4", "-r", "4", "-t", "4s", "--rtf", "8", "--budget", "30",
            "--report", str(page), STT_API_KEY="k",
        )  # fmt: skip
        await service.wait_until_empty()
    assert status == 0, output
    report = json.loads(page.with_suffix(".json").read_text())
    (step,) = report["steps"]
    assert (step["users"], step["failures"], step["wer"]) == (4, 0, 0.0)
    assert step["sessions"] >= 4
    assert report["largest_users_within_budget"] == 4
    for name in ("word_delay_s", "first_token_s", "connect_s", "ready_s", "flush_s", "end_s"):
        assert 0 <= step[name]["p50"] <= step[name]["p95"] <= step[name]["p99"]
    assert step["generator_late_p99_s"] >= 0
    assert step["resources"]["generator"]["cpu_cores"] > 0
    for row in ("connect", "ready", "first token", "word delay", "flush", "session"):
        assert f" {row} " in output
    assert "Largest number of users" in output
    for suffix in (".html", ".csv", ".svg"):
        assert page.with_suffix(suffix).stat().st_size


async def test_workers_report_to_their_master(engines, tmp_path):
    page = tmp_path / "run.html"
    async with serving(engines) as service:
        status, output = await locust(
            "--host", service.http, "--processes", "2", "-u", "4", "-r", "4", "-t", "3s", "--rtf", "8",
            "--dialect", "moshi", "--report", str(page),
        )  # fmt: skip
    assert status == 0, output
    (step,) = json.loads(page.with_suffix(".json").read_text())["steps"]
    assert (step["failures"], step["wer"]) == (0, 0.0)
    assert step["sessions"] >= 4


async def test_steps_end_with_the_first_over_the_budget(engines, tmp_path):
    page = tmp_path / "run.html"
    async with serving(engines) as service:
        status, output = await locust(
            "--host", service.http, "--shape", "steps", "--steps", "1,2,3", "--step-seconds", "3", "--rtf", "10",
            "--budget", "0", "--report", str(page),
        )  # fmt: skip
    assert status == 0, output
    report = json.loads(page.with_suffix(".json").read_text())
    assert [step["users"] for step in report["steps"]] == [1]
    assert report["largest_users_within_budget"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--session-length", "x"), "expected seconds, as in 12 or 5-30, got 'x'"),
        (("--dialect", "ws", "--format", "f32"), "format: expected opus with ws, got 'f32'"),
        (("--shape", "ramp"), "ramp: expected a number of users (-u) and a time (-t)"),
        (("--clips", "docs"), "expected manifest.json, or audio files with their texts"),
    ],
)
async def test_what_cannot_be_ends_before_anything_starts(arguments, message):
    status, output = await locust("--host", "ws://127.0.0.1:9", *arguments)
    assert status == 2
    assert message in output
    assert "Traceback" not in output
