"""Client and server of the link over a real socket; the engine behind the server is a dictionary."""

import asyncio
import contextlib
from collections import defaultdict

import numpy as np
import pytest

from serve_app.errors import EngineLost, SpeechError, StepFailed
from serve_app.link.client import LinkClient
from serve_app.link.messages import Attach, Detach, Grant, Refused, encode
from serve_app.link.server import MAX_STRANGER_GUESSES, MAX_STRANGERS, LinkServer
from serve_app.settings import LinkSettings
from serve_app.speech import FRAME_SAMPLES, FrameResult, FrameResults

SETTINGS = LinkSettings(heartbeat_seconds=0.1, timeout_seconds=2.0)


class Engine:
    """Keeps what the server passes on."""

    def __init__(self) -> None:
        self.frames: dict[int, list[float]] = defaultdict(list)
        self.detached: list[int] = []
        self.fits = True
        self.link = LinkServer(
            SETTINGS, on_frames=self.on_frames, on_detached=self.detached.append, load=lambda: {"slots": 3.0}
        )

    def on_frames(self, stream: int, frames: np.ndarray) -> bool:
        self.frames[stream] += frames[:, 0].tolist()
        return self.fits

    def grant(self, stream: int) -> Grant:
        return Grant("engine-1", "127.0.0.1", self.port, stream, self.link.grant(stream))


class Listener:
    def __init__(self) -> None:
        self.results: list[FrameResult] = []
        self.errors: list[SpeechError] = []

    def on_result(self, result: FrameResult) -> None:
        self.results.append(result)

    def on_lost(self, error: SpeechError) -> None:
        self.errors.append(error)


@pytest.fixture
async def engine():
    made = Engine()
    made.port = await made.link.start("127.0.0.1", 0)
    yield made
    await made.link.stop()


@pytest.fixture
async def client(engine):
    made = await LinkClient.connect("127.0.0.1", engine.port, SETTINGS, name="engine-1")
    yield made
    await made.close()


async def until(condition) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def read_until_closed(reader: asyncio.StreamReader) -> bytes:
    """What comes until the peer has closed, or reset, the connection."""
    data = b""
    async with asyncio.timeout(30):
        with contextlib.suppress(ConnectionError):
            while more := await reader.read(65_536):
                data += more
    return data


def frames(*values: float) -> np.ndarray:
    return np.repeat(np.array(values, np.float32)[:, None], FRAME_SAMPLES, axis=1)


def results(*rows: tuple[int, int, int]) -> FrameResults:
    streams, indices, tokens = (np.array(column) for column in zip(*rows, strict=True))
    count = len(rows)
    return FrameResults(
        streams.astype(np.int64), indices.astype(np.int32), tokens.astype(np.int32),
        np.full((count, 8), 11, np.int16), np.full((count, 4), 0.5, np.float32),
        np.full(count, 0.25, np.float32), np.full(count, 0.75, np.float32),
    )  # fmt: skip


async def test_frames_arrive_in_order_and_results_reach_their_stream(engine, client):
    listeners = {stream: Listener() for stream in (1, 2)}
    for stream, listener in listeners.items():
        await client.attach(engine.grant(stream), listener)
    for value in range(0, 100, 2):
        client.send(1, frames(value, value + 1))
        client.send(2, frames(-value))
        if value % 10 == 0:
            await asyncio.sleep(0)
    await until(lambda: len(engine.frames[1]) == 100 and len(engine.frames[2]) == 50)
    assert engine.frames[1] == list(range(100))
    assert engine.frames[2] == [-value for value in range(0, 100, 2)]

    engine.link.send_results(results((1, 0, 30), (2, 0, 40)))
    engine.link.send_results(results((2, 1, 41)))
    await until(lambda: len(listeners[2].results) == 2 and listeners[1].results)
    assert [(r.frame, r.token) for r in listeners[1].results] == [(0, 30)]
    assert [(r.frame, r.token) for r in listeners[2].results] == [(0, 40), (1, 41)]
    assert listeners[1].results[0].codes.tolist() == [11] * 8
    assert listeners[1].results[0].pauses == (0.5,) * 4
    assert listeners[1].results[0].probability == 0.75


async def test_the_load_report_comes_with_the_heartbeat_to_those_who_have_attached(engine, client):
    await asyncio.sleep(3 * SETTINGS.heartbeat_seconds)
    assert not client.load
    await client.attach(engine.grant(1), Listener())
    await until(lambda: client.load == {"slots": 3.0})


async def test_a_stream_needs_its_secret_which_works_once(engine, client):
    grant = engine.grant(2)
    with pytest.raises(EngineLost, match="did not hand over"):
        await client.attach(grant._replace(secret=b"x" * 16), Listener())
    await client.attach(grant, Listener())
    thief = await LinkClient.connect("127.0.0.1", engine.port, SETTINGS, name="thief")
    with pytest.raises(EngineLost):
        await thief.attach(grant, Listener())
    thief.send(2, frames(666.0))
    await asyncio.sleep(0.1)
    assert not engine.frames[2]
    await thief.close()
    assert client.is_open


async def test_a_stranger_has_a_deadline_and_pings_do_not_move_it(engine):
    stranger = await LinkClient.connect("127.0.0.1", engine.port, SETTINGS, name="stranger")
    await until(lambda: not stranger.is_open)  # it pings all the while


async def test_a_stranger_may_guess_only_a_few_times(engine, client):
    grant = engine.grant(1)
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    writer.write(encode(Attach(1, b"x" * 16)) * 1_000)
    answers = len(await read_until_closed(reader)) // len(encode(Refused(1)))
    writer.close()
    assert answers == MAX_STRANGER_GUESSES
    await client.attach(grant, Listener())


async def test_many_strangers_push_each_other_out_but_no_ingress(engine, client):
    await client.attach(engine.grant(1), Listener())
    strangers = [await asyncio.open_connection("127.0.0.1", engine.port) for _ in range(MAX_STRANGERS + 3)]
    for reader, _ in strangers[:3]:
        async with asyncio.timeout(SETTINGS.timeout_seconds):
            await read_until_closed(reader)
    late = await LinkClient.connect("127.0.0.1", engine.port, SETTINGS, name="late")
    await late.attach(engine.grant(2), Listener())
    await asyncio.sleep(2 * SETTINGS.timeout_seconds)
    assert not engine.link._strangers
    assert client.is_open
    assert late.is_open
    await late.close()
    for _, writer in strangers:
        writer.close()


async def test_a_listener_that_fails_ends_its_own_stream_only(engine, client):
    class Broken(Listener):
        def on_result(self, result: FrameResult) -> None:
            raise IndexError("no such token")

    broken, bystander = Broken(), Listener()
    await client.attach(engine.grant(1), broken)
    await client.attach(engine.grant(2), bystander)
    engine.link.send_results(results((1, 0, 30), (2, 0, 40), (1, 1, 31), (2, 1, 41)))
    await until(lambda: len(bystander.results) == 2)
    assert [type(error) for error in broken.errors] == [EngineLost]
    assert client.is_open


async def test_when_the_ingress_goes_its_streams_are_given_up(engine, client):
    await client.attach(engine.grant(1), Listener())
    await client.close()
    await until(lambda: engine.detached == [1])


async def test_a_stream_that_is_over_is_given_back_at_once(engine, client):
    listener = Listener()
    await client.attach(engine.grant(1), listener)
    await client.attach(engine.grant(2), Listener())
    client.detach(1)
    client.detach(1)
    await until(lambda: engine.detached == [1])
    engine.link.send_results(results((1, 0, 30)))
    assert engine.link.is_attached(2)
    assert not listener.results


async def test_nobody_gives_back_the_stream_of_another(engine, client):
    stranger = await LinkClient.connect("127.0.0.1", engine.port, SETTINGS, name="stranger")
    await client.attach(engine.grant(1), Listener())
    await stranger.attach(engine.grant(2), Listener())
    stranger._connection.send(Detach(1))
    stranger.detach(2)
    await until(lambda: engine.detached == [2])
    assert engine.link.is_attached(1)
    await stranger.close()


async def test_when_the_engine_goes_every_listener_hears_it_once(engine, client):
    listener, gone = Listener(), Listener()
    await client.attach(engine.grant(1), listener)
    await client.attach(engine.grant(2), gone)
    client.detach(2)
    await engine.link.stop()
    await until(lambda: not client.is_open)
    assert [type(error) for error in listener.errors] == [EngineLost]
    assert not gone.errors
    with pytest.raises(EngineLost):
        await client.attach(Grant("engine-1", "127.0.0.1", engine.port, 3, b"s" * 16), Listener())


async def test_a_failed_stream_says_why(engine, client):
    failed, bystander = Listener(), Listener()
    await client.attach(engine.grant(1), failed)
    await client.attach(engine.grant(2), bystander)
    engine.link.send_failure([1], StepFailed("the model failed on a step"))
    await until(lambda: failed.errors)
    assert isinstance(failed.errors[0], StepFailed)
    assert failed.errors[0].message == "the model failed on a step"
    assert not bystander.errors
    assert not engine.link.is_attached(1)


async def test_an_engine_that_is_not_there_is_lost():
    with contextlib.closing(await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)) as server:
        port = server.sockets[0].getsockname()[1]
    await server.wait_closed()
    with pytest.raises(EngineLost, match="does not accept"):
        await LinkClient.connect("127.0.0.1", port, SETTINGS, name="engine-1")


async def test_a_silent_peer_is_dropped(engine):
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    await read_until_closed(reader)
    writer.close()


async def test_frames_beyond_the_window_end_that_ingress_only(engine, client):
    greedy = await LinkClient.connect("127.0.0.1", engine.port, SETTINGS, name="greedy")
    listener, bystander = Listener(), Listener()
    await greedy.attach(engine.grant(1), listener)
    await client.attach(engine.grant(2), bystander)
    engine.fits = False
    greedy.send(1, frames(1))
    await until(lambda: listener.errors and engine.detached == [1])
    assert client.is_open
    assert not bystander.errors


@pytest.mark.parametrize(
    "wire",
    [
        b"\xff\xff\xff\xff",
        (5).to_bytes(4, "big") + b"hello",
        b"GET / HTTP/1.1\r\nHost: engine\r\n\r\n",
        encode(
            FrameResults(
                *(np.zeros(0, np.int64),) * 3,
                np.zeros((0, 0), np.int16),
                np.zeros((0, 0), np.float32),
                np.zeros(0, np.float32),
                np.zeros(0, np.float32),
            )
        ),
        (2**31).to_bytes(4, "big") + bytes(100),
    ],
    ids=["length", "not msgpack", "http", "results from an ingress", "too long"],
)
async def test_a_peer_that_breaks_a_rule_is_dropped_and_nobody_else(engine, client, wire):
    listener = Listener()
    await client.attach(engine.grant(1), listener)
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    writer.write(wire)
    await read_until_closed(reader)
    writer.close()
    client.send(1, frames(1.0))
    await until(lambda: engine.frames[1] == [1.0])
    assert not listener.errors


async def test_a_peer_that_lies_about_streams_moves_nothing(engine, client):
    listener = Listener()
    await client.attach(engine.grant(1), listener)
    liar = await LinkClient.connect("127.0.0.1", engine.port, SETTINGS, name="liar")
    await liar.attach(engine.grant(2), Listener())
    for stream in (1, 99, 1 << 62, -1):
        liar.send(stream, frames(6.0))
    with pytest.raises(EngineLost):
        await liar.attach(engine.grant(3)._replace(stream=1), Listener())
    liar.send(2, frames(7.0))
    await until(lambda: engine.frames[2] == [7.0])
    assert not engine.frames[1]
    assert liar.is_open
    await liar.close()
    assert not listener.errors


@pytest.mark.parametrize("sample", [np.nan, np.inf, -1e9], ids=["nan", "infinite", "loud"])
async def test_audio_that_cannot_be_any_ends_that_ingress_only(engine, client, sample):
    liar = await LinkClient.connect("127.0.0.1", engine.port, SETTINGS, name="liar")
    await client.attach(engine.grant(1), Listener())
    await liar.attach(engine.grant(2), Listener())
    liar.send(2, frames(sample))
    await until(lambda: not liar.is_open)
    assert not engine.frames[2]
    assert client.is_open
