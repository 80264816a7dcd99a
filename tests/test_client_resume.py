"""The client against the real ingress, through a network that breaks: nothing is lost, nothing comes twice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import numpy as np
import pytest

from serve_app import client
from tests.support import LocalVault, Service, serving
from tests.test_client import READY, peer, say


class BreakingNetwork:
    """A TCP relay in front of the service; it can cut every connection, and refuse new ones for a while."""

    def __init__(self, target_port: int) -> None:
        self.target_port = target_port
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.refuses = False
        self.swallows = False

    async def relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
        self._writers |= {writer, up_writer}

        broken: set[asyncio.StreamWriter] = set()

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            try:
                while data := await source.read(65_536):
                    if self.swallows:
                        broken.add(sink)
                    if sink in broken:
                        continue  # what was swallowed once cannot be followed by anything
                    sink.write(data)
                    await sink.drain()
            except ConnectionError:
                pass
            finally:
                sink.transport.abort()

        await asyncio.gather(pump(reader, up_writer), pump(up_reader, writer))
        self._writers -= {writer, up_writer}

    def cut(self) -> None:
        """Break every connection, whatever is in flight."""
        for writer in self._writers:
            writer.transport.abort()


@asynccontextmanager
async def network(service: Service) -> AsyncIterator[BreakingNetwork]:
    made = BreakingNetwork(service.port)
    server = await asyncio.start_server(made.relay, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.cut()


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines) as made:
        yield made


async def listen(stream: client.Stream) -> list[client.Event]:
    return [event async for event in stream]


def said(events: list[client.Event]) -> list[tuple[str, str]]:
    """What must be the same with and without cuts.

    Of a session longer than the model's context that is not each token's frame: neither words' times nor turn ends.
    """
    passing = client.Status | client.Ready | client.TurnEnd
    return [(event.type, getattr(event, "text", "")) for event in events if not isinstance(event, passing)]


async def speak(stream: client.Stream, samples, pause_s: float = 0.0) -> None:
    block = np.empty(4_000, np.float32)  # one for all, as sound cards hand it out
    for start in range(0, len(samples), len(block)):
        piece = samples[start : start + len(block)]
        block[: len(piece)] = piece
        await stream.send(block[: len(piece)])
        await asyncio.sleep(pause_s)


async def test_cut_again_and_again_the_events_are_those_of_an_undisturbed_session(service, clip):
    async def hold(port: int, cuts: BreakingNetwork | None) -> tuple[list[tuple[str, str]], int]:
        async with client.connect(f"127.0.0.1:{port}", words=True) as stream:
            listening = asyncio.create_task(listen(stream))

            async def cutting() -> None:
                while cuts:
                    await asyncio.sleep(0.25)
                    cuts.cut()

            disturbing = asyncio.create_task(cutting())
            await speak(stream, clip.samples, pause_s=0.02)
            await stream.flush()
            await speak(stream, clip.samples, pause_s=0.02)
            disturbing.cancel()
            await stream.end()
            return said(await listening), stream.reconnects

    undisturbed, _ = await hold(service.port, None)
    async with network(service) as breaking:
        disturbed, reconnects = await hold(breaking.port, breaking)
    assert reconnects >= 3
    assert disturbed == undisturbed
    await service.wait_until_empty()


async def test_a_service_that_is_away_for_a_while(service, clip):
    async with network(service) as breaking, client.connect(f"127.0.0.1:{breaking.port}", words=True) as stream:
        listening = asyncio.create_task(listen(stream))
        await speak(stream, clip.samples[:48_000])
        breaking.refuses = True
        breaking.cut()
        asyncio.get_running_loop().call_later(1.0, setattr, breaking, "refuses", False)
        await speak(stream, clip.samples[48_000:])
        await stream.end()
        events = await listening
    assert [event.text for event in events if isinstance(event, client.Word)] == clip.words


async def test_a_network_that_swallows_everything_is_a_broken_connection(engines, clip):
    async with (
        serving(engines, ingress={"ping_seconds": 0.2}) as service,
        network(service) as breaking,
        client.connect(f"127.0.0.1:{breaking.port}", words=True, timeout_s=1.0) as stream,
    ):
        listening = asyncio.create_task(listen(stream))
        await speak(stream, clip.samples[:80_000], pause_s=0.02)
        breaking.swallows = True
        asyncio.get_running_loop().call_later(1.5, setattr, breaking, "swallows", False)
        await speak(stream, clip.samples[80_000:], pause_s=0.05)
        await stream.end()
        events = await listening
    assert [event.text for event in events if isinstance(event, client.Word)] == clip.words
    assert stream.reconnects >= 1


async def test_a_service_that_stays_away_is_a_lost_connection(service, clip):
    async with (
        network(service) as breaking,
        client.connect(f"127.0.0.1:{breaking.port}", resume_s=0.5) as stream,
    ):
        assert isinstance(await anext(stream), client.Ready)
        breaking.refuses = True
        breaking.cut()
        with pytest.raises(client.ConnectionLost, match="broke off"):
            await anext(stream)


async def test_a_session_that_is_gone_is_begun_again_while_all_its_audio_is_still_here(engines, clip):
    """The service keeps nothing of sessions that were cut off."""
    async with (
        serving(engines, LocalVault(0.0)) as service,
        network(service) as breaking,
        client.connect(f"127.0.0.1:{breaking.port}", words=True) as stream,
    ):
        listening = asyncio.create_task(listen(stream))
        await speak(stream, clip.samples[:100_000], pause_s=0.02)
        breaking.cut()
        await speak(stream, clip.samples[100_000:])
        await stream.end()
        events = await listening
        assert [event.text for event in events if isinstance(event, client.Word)] == clip.words
        assert sum(isinstance(event, client.Ready) for event in events) == 1


async def test_a_session_that_is_gone_is_a_lost_connection_after_more_than_the_buffer(engines, clip):
    async with (
        serving(engines, LocalVault(0.0)) as service,
        network(service) as breaking,
        client.connect(f"127.0.0.1:{breaking.port}") as stream,
    ):
        listening = asyncio.create_task(listen(stream))
        await speak(stream, np.tile(clip.samples, 6))
        breaking.cut()
        with pytest.raises(client.ConnectionLost, match="broke off"):
            await listening


async def test_a_client_moves_when_its_ingress_is_stopped(engines, clip):
    vault = LocalVault(60)
    async with serving(engines, vault) as one, serving(engines, vault) as other, network(one) as routing:
        async with client.connect(f"127.0.0.1:{routing.port}", words=True) as stream:
            listening = asyncio.create_task(listen(stream))
            await speak(stream, clip.samples[:80_000], pause_s=0.02)
            routing.target_port = other.port
            one.ingress.sessions.close()
            one.ingress.sessions.move_out(everyone=False)
            await speak(stream, clip.samples[80_000:], pause_s=0.02)
            await stream.end()
            events = await listening
        assert [event.text for event in events if isinstance(event, client.Word)] == clip.words
        assert stream.reconnects == 1
        assert one.outcomes("restarting") == 1


async def test_a_client_that_meets_a_stopping_ingress_goes_to_the_next_one(engines, clip):
    async with serving(engines) as one, serving(engines) as other, network(one) as routing:
        one.ingress.sessions.close()
        async with client.connect(f"127.0.0.1:{routing.port}", words=True) as stream:
            asyncio.get_running_loop().call_later(0.5, setattr, routing, "target_port", other.port)
            listening = asyncio.create_task(listen(stream))
            await speak(stream, clip.samples)
            await stream.end()
            events = await listening
        assert isinstance(events[0], client.Ready)
        assert [event.text for event in events if isinstance(event, client.Word)] == clip.words


async def test_who_hears_a_no_after_silence_does_not_ask_again():
    calls = 0

    async def script(connection) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await say(connection, READY | {"resume_token": "a token"})
            await connection.wait_closed()
        else:
            await say(connection, {"type": "error", "code": "unknown_session", "message": "expected another token"})

    async with peer(script) as address, asyncio.timeout(10):
        with pytest.raises(client.ServerSilent):
            async with client.connect(address, timeout_s=0.3, resume_s=60) as stream:
                await listen(stream)
    assert calls == 2
