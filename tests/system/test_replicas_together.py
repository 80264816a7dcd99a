"""A service with two ingress replicas before two engines that wants keys.

`/metrics` answers for all replicas, whichever of them is asked, and whatever becomes of the others.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import httpx
import psutil
import pytest

from serve_app import client
from serve_app.cli.figures import Scrape
from serve_app.settings import key_digest

from .conftest import ENGINES, SLOTS, SLOTS_PER_ENGINE, RunningService, check_all_is_well, running_service, smoke

pytestmark = pytest.mark.timeout(400)

INGRESSES = 2
SESSIONS = 4
SCRAPES = 10
PATIENCE_SECONDS = 90
KEY = "a key as long as a key should be"


@pytest.fixture(scope="module")
def wide_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    with running_service(
        tmp_path_factory.mktemp("wide"),
        key=KEY,
        auth={"keys": [{"name": "ann", "sha256": key_digest(KEY.encode())}], "metrics": "open"},
        engine={
            "slots": SLOTS_PER_ENGINE,
            "replicas": ENGINES,
            "num_cpus": 0.3,
            "torch_threads": 1,
            "min_headroom": -100.0,
            "health_check_timeout_seconds": 5.0,
        },
        ingress={"replicas": INGRESSES, "num_cpus": 0.2},
        session={"park_after_seconds": 100.0, "idle_audio_timeout_seconds": 120.0},
    ) as running:
        yield running


async def scrape(service: RunningService) -> Scrape:
    """One answer, over a connection of its own: the proxy may choose either replica."""
    async with httpx.AsyncClient(timeout=10) as http:
        text = (await http.get(f"{service.base}/metrics")).raise_for_status().text
    return Scrape(text, time.monotonic())


async def scrape_until(service: RunningService, reached: Callable[[Scrape], bool]) -> Scrape:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                if reached(seen := await scrape(service)):
                    return seen
            except httpx.HTTPError:
                pass  # the proxy has not noticed yet that a replica is gone
            await asyncio.sleep(0.5)


@asynccontextmanager
async def sessions(service: RunningService) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for _ in range(SESSIONS):
            stream = await stack.enter_async_context(client.connect(service.url, api_key=KEY))
            assert isinstance(await anext(stream), client.Ready)
        yield


def is_whole(seen: Scrape) -> bool:
    return (
        len(seen.by("replica", "stt_ingress_leases")) == INGRESSES
        and len(seen.by("replica", "stt_engine_slots")) == ENGINES
        and seen.sum("stt_metrics_complete") == 1
    )


def test_keys_are_wanted_and_open_every_dialect(wide_service, clip):
    status, report, errors = smoke(wide_service)
    assert (status, report["ok"]) == (3, False)
    assert errors == f"stt: {wide_service.base}: the server asks for an API key (HTTP 401)\n"
    status, report, _ = smoke(wide_service, key=KEY)
    checks = check_all_is_well(status, report, clip.words)
    assert checks["access"]["note"] == "key needed; tokens work"


async def test_every_scrape_is_complete(wide_service):
    async with sessions(wide_service):
        # An engine posts every two seconds.
        await scrape_until(wide_service, lambda seen: is_whole(seen) and seen.sum("stt_engine_slots_used") == SESSIONS)
        asked = set()
        for _ in range(SCRAPES):
            # Twice, because the proxy takes turns: the scrapes must reach now the one, now the other.
            asked |= {(await asyncio.to_thread(wide_service.status))["replica"] for _ in range(2)}
            seen = await scrape(wide_service)
            assert is_whole(seen)
            assert seen.sum("stt_sessions_open", state="live") == SESSIONS
            assert sorted(seen.by("replica", "stt_sessions_open").values()) != [0, SESSIONS], "both have some"
            assert seen.sum("stt_engine_slots") == SLOTS
            assert seen.sum("stt_engine_slots_used") == SESSIONS
            assert seen.by("deployment", "stt_replicas") == {"ingress": INGRESSES, "engine": ENGINES}
        assert len(asked) == INGRESSES, "the proxy asks both"
    assert len(seen.by("replica", "stt_engine_start_seconds")) == ENGINES
    assert seen.sum("stt_engine_start_seconds") > 0


async def test_a_replica_that_falls_silent_leaves_the_scrape_and_is_counted_as_lost(wide_service):
    await scrape_until(wide_service, is_whole)
    engine = wide_service.processes("ServeReplica:stt:engine")[0]
    engine.suspend()  # Serve kills and replaces it when its health checks fail
    for _ in range(SCRAPES):
        await scrape(wide_service)
    lost = await scrape_until(wide_service, lambda seen: seen.sum("stt_replica_events_total", event="lost") == 1)
    assert lost.by("deployment", "stt_replica_events_total", event="lost")["engine"] == 1
    await scrape_until(wide_service, is_whole)


async def test_the_board_may_die(wide_service):
    await scrape_until(wide_service, is_whole)
    (board,) = wide_service.processes("BoardActor")
    board.kill()
    await scrape(wide_service)  # of one replica, or of all again
    seen = await scrape_until(wide_service, is_whole)
    assert seen.sum("stt_replica_events_total", event="lost") == 0  # a new one has seen nobody go


async def test_a_service_without_its_engines_is_not_ready_until_it_has_another_one(wide_service, clip):
    async def kill_them_all() -> None:
        while True:
            for engine in wide_service.processes("ServeReplica:stt:engine"):
                with suppress(psutil.NoSuchProcess):
                    engine.kill()
            await asyncio.sleep(0.2)  # the next ones are there in two or three seconds

    killing = asyncio.create_task(kill_them_all())
    async with asyncio.timeout(PATIENCE_SECONDS), httpx.AsyncClient(timeout=10) as http:
        while (await http.get(f"{wide_service.base}/readyz")).status_code == httpx.codes.OK:
            await asyncio.sleep(0.1)
    status, report, errors = await asyncio.to_thread(smoke, wide_service, key=KEY)
    killing.cancel()
    await asyncio.wait([killing])
    assert (status, report["checks"]) == (1, [])
    assert errors == f"stt: {wide_service.base} is not ready: no engine has loaded its model yet: demo\n"
    await asyncio.to_thread(wide_service.wait_until_ready)
    stream = client.transcribe(wide_service.url, clip.samples, rtf=0.0, words=True, api_key=KEY)
    assert [arrival.event.text async for arrival in stream if isinstance(arrival.event, client.Word)] == clip.words
