"""The client without asyncio, against the real ingress and servers that misbehave."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection

from serve_app import client
from tests.support import Service, serving
from tests.test_client import READY, peer, say
from tests.test_client_resume import network


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines) as made:
        yield made


async def silent(connection: ServerConnection) -> None:
    await say(connection, READY)
    await connection.wait_closed()


async def test_a_whole_session(service, clip):
    def session() -> list[client.Event]:
        with client.sync.connect(service.url, words=True, pauses=True) as stream:
            assert isinstance(next(stream), client.Ready)
            with pytest.raises(TimeoutError):
                stream.receive(0.05)
            stream.send(clip.samples)
            stream.flush()
            stream.end()
            events = list(stream)
            with pytest.raises(EOFError):
                stream.receive()
            return events

    events = await asyncio.to_thread(session)
    assert [event.text for event in events if isinstance(event, client.Word)] == clip.words
    pauses = [event for event in events if isinstance(event, client.Pauses)]
    assert len(pauses) >= len(clip.samples) // 1_920
    assert all(len(event.probabilities) == 4 and max(event.probabilities) <= 1 for event in pauses)
    assert isinstance(events[-1], client.Done)
    await service.wait_until_empty()


async def test_cut_in_the_middle(service, clip):
    def session(port: int) -> tuple[list[client.Event], int]:
        with client.sync.connect(f"127.0.0.1:{port}", words=True, format="s16") as stream:
            heard: list[client.Event] = []
            reading = threading.Thread(target=lambda: heard.extend(stream))
            reading.start()
            for start in range(0, len(clip.samples), 4_000):
                stream.send(clip.samples[start : start + 4_000])
                time.sleep(0.02)
            stream.end()
            reading.join()
            return heard, stream.reconnects

    async with network(service) as breaking:
        talking = asyncio.create_task(asyncio.to_thread(session, breaking.port))
        await asyncio.sleep(0.5)
        breaking.cut()
        events, reconnects = await talking
    assert reconnects == 1
    assert [event.text for event in events if isinstance(event, client.Word)] == clip.words


async def test_transcribe(service, clip):
    def words() -> list[str]:
        arrivals = client.sync.transcribe(service.url, clip.samples, rtf=0, words=True)
        return [each.event.text for each in arrivals if isinstance(each.event, client.Word)]

    assert await asyncio.to_thread(words) == clip.words


async def test_leaving_early_frees_the_slot_and_the_thread(service, clip):
    def leave() -> None:
        arrivals = client.sync.transcribe(service.url, clip.samples)
        next(arrivals)
        arrivals.close()
        with pytest.raises(KeyError), client.sync.connect(service.url):
            raise KeyError

    before = threading.active_count()
    async with asyncio.timeout(10):
        await asyncio.to_thread(leave)
    await service.wait_until_empty()
    assert threading.active_count() <= before + 1  # the one of asyncio.to_thread stays


async def test_errors_are_those_of_the_client(unused_tcp_port):
    def refused() -> None:
        with pytest.raises(client.ConnectionRefused), client.sync.connect(f"127.0.0.1:{unused_tcp_port}"):
            pass
        with pytest.raises(client.ConnectionRefused):
            list(client.sync.transcribe(f"127.0.0.1:{unused_tcp_port}", np.zeros(9, np.float32)))

    await asyncio.to_thread(refused)


async def test_a_server_that_falls_silent():
    def session(address: str) -> None:
        with client.sync.connect(address, timeout_s=0.3, resume_s=0) as stream:
            next(stream)
            with pytest.raises(client.ServerSilent):
                next(stream)

    async with peer(silent) as address:
        async with asyncio.timeout(10):
            await asyncio.to_thread(session, address)


async def test_one_thread_closes_while_another_one_reads():
    def session(address: str) -> type[BaseException]:
        raised: list[type[BaseException]] = []

        def read(stream: client.sync.Stream) -> None:
            try:
                list(stream)
            except BaseException as error:
                raised.append(type(error))

        with client.sync.connect(address) as stream:
            reading = threading.Thread(target=read, args=(stream,))
            reading.start()
            time.sleep(0.2)
        reading.join(5)
        return raised[0]

    async with peer(silent) as address:
        async with asyncio.timeout(10):
            assert issubclass(await asyncio.to_thread(session, address), client.ClientError)
