"""Audio that travels as s16, at another rate or as Ogg/Opus: the words are the same, also after cuts."""

import asyncio
import socket
from collections.abc import AsyncIterator

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection, serve

from serve_app import client
from serve_app.audio.formats import parse_audio_format
from serve_app.audio.stream import AudioStream
from serve_app.client.encoding import declaration, make_encoder
from tests.support import Service, serving
from tests.test_client import DONE, READY, say
from tests.test_client_resume import listen, network, speak

PIECES = 370

WAYS = [("s16", 24_000), ("s16", 16_000), ("f32", 48_000), ("mulaw", 16_000), ("mulaw", 24_000), ("opus", 24_000)]


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines) as made:
        yield made


@pytest.mark.parametrize(("format", "sample_rate"), WAYS)
@pytest.mark.parametrize("chunk", [7, 1_000, 1_920, 50_000])
def test_the_server_gets_every_sample_in_its_place(clip, format, sample_rate, chunk):
    samples = clip.samples[:60_001]
    encoder = make_encoder(format, sample_rate)
    stream = AudioStream(parse_audio_format(declaration(format, sample_rate)), clock=iter(range(10**9)).__next__)
    pieces = [encoder.encode(samples[start : start + chunk]) for start in range(0, len(samples), chunk)]
    pieces.append(encoder.finish())
    parts = [part for piece in pieces for part in stream.feed(piece)]
    heard = np.concatenate([*parts, stream.finish()])
    assert abs(len(heard) - len(samples)) <= 1
    size = sum(map(len, pieces))
    assert size < 0.1 * samples.nbytes if format == "opus" else size <= 2 * samples.nbytes
    common = min(len(heard), len(samples))
    assert np.corrcoef(heard[:common], samples[:common])[0, 1] > (0.9 if format == "opus" else 0.98)


def test_nothing_said_is_nothing_sent():
    assert all(make_encoder(*way).finish() == b"" for way in WAYS)


@pytest.mark.parametrize(("format", "sample_rate"), WAYS)
async def test_words_come_back_whatever_the_cuts(service, clip, format, sample_rate):
    async with (
        network(service) as breaking,
        client.connect(f"127.0.0.1:{breaking.port}", words=True, format=format, sample_rate=sample_rate) as stream,
    ):
        listening = asyncio.create_task(listen(stream))
        for start in range(0, len(clip.samples), 40_000):
            await speak(stream, clip.samples[start : start + 40_000], pause_s=0.02)
            await asyncio.sleep(0.2)
            breaking.cut()
        await stream.end()
        events = await listening
    assert stream.reconnects >= 3
    assert [event.text for event in events if isinstance(event, client.Word)] == clip.words
    assert events[-1].audio_seconds == pytest.approx(len(clip.samples) / 24_000, abs=0.01)
    await service.wait_until_empty()


async def test_transcribe_takes_a_format(service, clip):
    arrivals = client.transcribe(service.url, clip.samples, rtf=0, words=True, format="opus")
    assert [each.event.text async for each in arrivals if isinstance(each.event, client.Word)] == clip.words


@pytest.mark.parametrize(("format", "sample_rate"), [("mp3", 24_000), ("opus", 16_000), ("s16", 12_345)])
async def test_what_the_client_does_not_make(format, sample_rate):
    with pytest.raises(ValueError, match=r"^(format|sample_rate): expected .*, got"):
        async with client.connect("127.0.0.1:1", format=format, sample_rate=sample_rate):
            pass


@pytest.mark.parametrize("format", ["s16", "mulaw", "opus"])
async def test_samples_that_cannot_be_encoded(service, format):
    async with client.connect(service.url, format=format) as stream:
        with pytest.raises(ValueError, match="expected finite samples"):
            await stream.send([0.0, np.nan])


async def test_what_is_sent_while_the_rest_is_sent_again_is_not_lost():
    taken: list[bytes | str] = []
    connections = 0

    async def script(connection: ServerConnection) -> None:
        nonlocal connections
        connections += 1
        received = {"received": {"samples": 0, "flushes": 0, "end": False}} if connections > 1 else {}
        await say(connection, READY | {"resume_token": "t"} | received)
        if connections == 1:
            for _ in range(PIECES - 1):  # the first one is still in the resampler
                await connection.recv()
            connection.transport.abort()
            return
        await asyncio.sleep(1.0)  # the client is held up in the middle of it: at 48 kHz no socket's buffer holds it all
        async for message in connection:
            taken.append(message)
            if isinstance(message, str):
                await say(connection, DONE)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        async with serve(script, sock=listener, max_size=None), client.connect(address, sample_rate=48_000) as stream:
            listening = asyncio.create_task(listen(stream))
            before, after = np.zeros(PIECES * 1_920, np.float32), np.ones(1_000, np.float32)
            for start in range(0, len(before), 1_920):
                await stream.send(before[start : start + 1_920])
            while connections < 2:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.3)
            await stream.send(after)
            await stream.end()
            assert isinstance((await listening)[-1], client.Done)
    assert len(b"".join(taken[:-1])) == 2 * (before.nbytes + after.nbytes)
