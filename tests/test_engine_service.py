"""Leases and their ends, over real links."""

import asyncio

import pytest

from serve_app.engine.service import EngineService
from serve_app.errors import AtCapacity
from serve_app.link.client import LinkClient
from serve_app.settings import EngineSettings, LinkSettings

QUICK = LinkSettings(heartbeat_seconds=0.1, timeout_seconds=2.0)


class Listener:
    def __init__(self) -> None:
        self.errors: list[Exception] = []

    def on_result(self, result) -> None:
        pass

    def on_draining(self) -> None:
        pass

    def on_lost(self, error: Exception) -> None:
        self.errors.append(error)


@pytest.fixture
async def service(demo_model):
    made = EngineService(demo_model, name="engine-1", engine=EngineSettings(min_headroom=-100.0), link=QUICK)
    await made.start("127.0.0.1")
    yield made
    await made.stop()


async def connect(service: EngineService):
    with service.lease() as lease:
        return await LinkClient.connect(lease.grant.host, lease.grant.port, QUICK, name="engine-1")


async def test_a_lease_holds_a_slot_for_the_length_of_its_block(service, demo_model):
    with service.lease():
        assert service.load()["slots_used"] == 1
    assert service.load()["slots_used"] == 0
    leases = [service.lease() for _ in range(demo_model.slots)]
    for lease in leases:
        lease.__enter__()
    with pytest.raises(AtCapacity), service.lease():
        pass
    for lease in leases:
        lease.__exit__(None, None, None)
    assert service.load()["slots_used"] == 0


async def test_a_grant_that_nobody_takes_ends_its_lease(service):
    async with asyncio.timeout(30):
        with service.lease() as lease:
            await lease.wait_ended()
    assert service.load()["slots_used"] == 0


async def test_an_ingress_that_dies_ends_its_leases_and_nobody_elses(service):
    dying, living = await connect(service), await connect(service)
    with service.lease() as one, service.lease() as other:
        await dying.attach(one.grant, Listener())
        await living.attach(other.grant, Listener())
        await dying.close()
        async with asyncio.timeout(30):
            await one.wait_ended()
        ended = asyncio.create_task(other.wait_ended())
        await asyncio.sleep(1.5 * QUICK.timeout_seconds)
        assert not ended.done()
        ended.cancel()
    await living.close()


async def test_stop_ends_every_lease_and_tells_every_ingress(service):
    client = await connect(service)
    listener = Listener()
    with service.lease() as lease:
        await client.attach(lease.grant, listener)
        await service.stop()
        async with asyncio.timeout(30):
            await lease.wait_ended()
            while not listener.errors:
                await asyncio.sleep(0.01)
    await client.close()
