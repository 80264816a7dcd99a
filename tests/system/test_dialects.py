"""Every dialect through everything, by `stt smoke`; the page in a real browser."""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Iterator

import httpx
import pytest

from serve_app.settings import key_digest
from serve_app.smoke.endpoints import ENDPOINTS
from serve_app.smoke.run import FIRST_DIALECT, LIVE
from serve_app.smoke.uploads import UPLOADS
from tests.test_web import browsing, chromium

from .conftest import STT, RunningService, running_service

__all__ = ["chromium"]  # a fixture: installs the browser first

pytestmark = pytest.mark.timeout(400)

KEY = "a key as long as a key should be"
MOST_BYTES = 150_000
"""Of a screenshot."""


def smoke(service: RunningService, *arguments: str, key: str = "") -> tuple[int, dict, str]:
    """Exit status, report, and what stands on standard error."""
    done = subprocess.run(
        [STT, "smoke", "--url", service.base, "--json", *arguments],
        capture_output=True, text=True, timeout=200, check=False, env={**os.environ, "STT_API_KEY": key},
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout), done.stderr


def check_all_is_well(status: int, report: dict, words: list[str]) -> dict[str, dict]:
    """Every check is good, every dialect has heard these words; the checks by name."""
    assert (status, report["ok"]) == (0, True), [check for check in report["checks"] if not check["ok"]]
    checks = {check["name"]: check for check in report["checks"]}
    dialects = (FIRST_DIALECT, *LIVE, *UPLOADS)
    assert set(checks) == {*ENDPOINTS, *dialects}
    assert {checks[name]["text"] for name in dialects} == {" ".join(words)}
    return checks


async def test_every_dialect_hears_the_same_words(service, clip):
    await service.wait_until_empty()
    status, report, _ = await asyncio.to_thread(smoke, service)
    check_all_is_well(status, report, clip.words)
    await service.wait_until_empty()


async def test_the_page_hears_a_microphone(service, clip, request):
    async with browsing(service.port, clip.path, viewport={"width": 1280, "height": 800}) as browser:
        await browser.page.get_by_role("button", name="Start").click()
        await browser.wait_for_words(len(clip.words))
        picture = await browser.page.screenshot(path=request.config.getoption("screenshot"), animations="disabled")
        assert len(picture) < MOST_BYTES
        await browser.page.get_by_role("button", name="Stop").click()
        await browser.wait_for_state("done")
        assert await browser.words() == clip.words
        assert browser.complaints == []
    await service.wait_until_empty()


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service that wants keys, with one engine that may be lost."""
    with running_service(
        tmp_path_factory.mktemp("locked"),
        engines=1,
        auth={"keys": [{"name": "ann", "sha256": key_digest(KEY.encode())}]},
        engine={"slots": 4, "num_cpus": 0.4, "torch_threads": 1},
        ingress={"num_cpus": 0.5},
    ) as running:
        yield running


def test_keys_are_wanted_and_open_every_dialect(locked, clip):
    status, report, errors = smoke(locked)
    assert (status, report["ok"]) == (3, False)
    assert errors == f"stt: {locked.base}: the server asks for an API key (HTTP 401)\n"
    status, report, _ = smoke(locked, key=KEY)
    checks = check_all_is_well(status, report, clip.words)
    assert checks["access"]["note"] == "key needed; tokens work"


def test_a_service_without_its_engine_is_not_ready_until_it_has_another_one(locked, clip):
    (engine,) = locked.processes("ServeReplica:stt:engine")
    engine.kill()
    while httpx.get(f"{locked.base}/readyz", timeout=10).status_code == httpx.codes.OK:
        time.sleep(0.1)
    status, report, errors = smoke(locked, key=KEY)
    assert (status, report["checks"]) == (1, [])
    assert errors == f"stt: {locked.base} is not ready: no engine has loaded its model yet\n"
    check_all_is_well(*smoke(locked, "--wait", "120", key=KEY)[:2], clip.words)
