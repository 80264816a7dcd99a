"""Peers that lie, on either end of the link, over real sockets: whoever keeps the rules beside them loses nothing."""

import asyncio
import contextlib
import json
from collections.abc import Iterator

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from serve_app.engine.service import EngineService, Lease
from serve_app.errors import EngineLost, SpeechError, StepFailed
from serve_app.link.client import LinkClient
from serve_app.link.messages import LENGTH_BYTES, SECRET_BYTES, Attach, Attached, Grant, decode, encode
from serve_app.settings import EngineSettings, LinkSettings
from serve_app.speech import FRAME_SAMPLES, FrameResult

SETTINGS = LinkSettings(heartbeat_seconds=0.2, timeout_seconds=5.0, max_message_bytes=2**20)
OWN, NEIGHBOURS = "own", "neighbour's"
"""Stand for stream numbers and secrets in the drawn messages; the test puts the real ones in."""

INTEGERS = st.one_of(
    st.integers(-(2**63), 2**64 - 1), st.sampled_from([0, 1, -1, 2**31, 2**32, 2**62, 2**63 - 1, -(2**63)])
)
ANYTHING = st.recursive(
    st.one_of(st.none(), st.booleans(), INTEGERS, st.floats(), st.text(max_size=20), st.binary(max_size=64)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
STREAMS = st.one_of(st.sampled_from([OWN, NEIGHBOURS]), INTEGERS)
SECRETS = st.one_of(st.sampled_from([OWN, NEIGHBOURS]), st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES))
SAMPLES = st.sampled_from([0.0, 0.5, -1e3, 1e3, 1e30, float("nan"), float("inf"), -float("inf")])
TYPES = st.sampled_from(["attach", "frames", "ping", "attached", "refused", "results", "failed", "load", "", None, 7])
NAMES = st.sampled_from(
    ["stream", "secret", "streams", "audio", "frames", "tokens", "codes", "pauses", "code", "message", "values", "x"]
)


@st.composite
def frame_messages(draw: st.DrawFn) -> dict:
    """Frames for any streams, in any number, of any loudness, sometimes with a row too few or too many."""
    rows = draw(st.lists(STREAMS.filter(lambda s: isinstance(s, str) or -(2**63) <= s < 2**63), max_size=40))
    off_by = draw(st.sampled_from([0, 0, 0, -1, 1]))
    audio = np.full((max(0, len(rows) + off_by), FRAME_SAMPLES), draw(SAMPLES), "<f4")
    return {"type": "frames", "streams": rows, "audio": audio.tobytes()}


@st.composite
def result_messages(draw: st.DrawFn) -> dict:
    """Columns of results that agree in length, or not."""
    rows = draw(st.integers(0, 5))
    frames = draw(st.lists(st.integers(-5, 5), min_size=rows, max_size=rows))
    tokens = draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=rows, max_size=rows))
    column = st.binary(max_size=64) | st.just(None)
    return {
        "type": "results",
        "streams": [draw(STREAMS.filter(lambda s: isinstance(s, str) or abs(s) < 2**63)) for _ in range(rows)],
        "frames": draw(column) or np.array(frames, "<i4").tobytes(),
        "tokens": draw(column) or np.array(tokens, "<i4").tobytes(),
        "codes": draw(column) or bytes(2 * draw(st.integers(0, 9)) * rows),
        "pauses": draw(column) or np.full((rows, draw(st.integers(0, 5))), draw(SAMPLES), "<f4").tobytes(),
        "engine_seconds": draw(column) or np.full(rows, draw(SAMPLES), "<f4").tobytes(),
        "probabilities": draw(column) or np.full(rows, draw(SAMPLES), "<f4").tobytes(),
    }  # fmt: skip


MESSAGES = st.one_of(
    frame_messages(),
    result_messages(),
    st.fixed_dictionaries({"type": st.just("attach"), "stream": STREAMS, "secret": SECRETS}),
    st.fixed_dictionaries({"type": st.just("load"), "values": st.dictionaries(st.text(max_size=8), st.floats())}),
    st.fixed_dictionaries({"type": st.just("failed"), "streams": st.lists(STREAMS, max_size=4),
                           "code": st.text(max_size=9), "message": st.text(max_size=9)}),
    st.fixed_dictionaries({"type": st.sampled_from(["attached", "refused"]), "stream": STREAMS}),
    st.just({"type": "ping"}),
    st.builds(lambda fields, kind: fields | {"type": kind}, st.dictionaries(NAMES, ANYTHING, max_size=6), TYPES),
    ANYTHING,
)  # fmt: skip
LENGTHS = st.one_of(
    st.none(), st.none(), st.none(), st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 2**20, 2**20 + 1])
)
"""What the prefix claims; None for the truth."""
CUTS = st.one_of(st.none(), st.none(), st.integers(0, 200))
WIRE = st.one_of(st.tuples(MESSAGES, LENGTHS, CUTS), st.binary(max_size=300))


class Parties:
    """The streams and secrets that the words in drawn messages stand for."""

    def __init__(self, own: Grant, neighbours: Grant) -> None:
        self._grants = {OWN: own, NEIGHBOURS: neighbours}

    def bytes(self, wire: tuple | bytes) -> bytes:
        if isinstance(wire, bytes):
            return wire
        message, length, cut = wire
        body = msgpack.packb(self._filled(message) if isinstance(message, dict) else message)
        return ((len(body) if length is None else length).to_bytes(LENGTH_BYTES, "big") + body)[:cut]

    def _filled(self, message: dict) -> dict:
        filled = dict(message)
        if isinstance(filled.get("stream"), str):
            filled["stream"] = self._stream(filled["stream"])
        if isinstance(filled.get("secret"), str) and filled["secret"] in self._grants:
            filled["secret"] = self._grants[filled["secret"]].secret
        if isinstance(filled.get("streams"), list) and all(type(s) in (int, str) for s in filled["streams"]):
            streams = [self._stream(stream) for stream in filled["streams"]]
            as_column = filled.get("type") in ("frames", "results") and all(
                type(s) is int and -(2**63) <= s < 2**63 for s in streams
            )
            filled["streams"] = np.array(streams, "<i8").tobytes() if as_column else streams
        return filled

    def _stream(self, stream: int | str) -> int | str:
        return self._grants[stream].stream if stream in self._grants else stream


class Listener:
    def __init__(self) -> None:
        self.results: list[FrameResult] = []
        self.errors: list[SpeechError] = []

    def on_result(self, result: FrameResult) -> None:
        self.results.append(result)

    def on_draining(self) -> None:
        pass

    def on_lost(self, error: SpeechError) -> None:
        self.errors.append(error)


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


class Engine:
    """A running engine, and an ingress that keeps the rules with one stream there."""

    async def start(self, model) -> None:
        self.service = EngineService(model, name="engine-1", engine=EngineSettings(min_headroom=-100.0), link=SETTINGS)
        await self.service.start("127.0.0.1")
        self._leased = contextlib.ExitStack()
        self.lease: Lease = self._leased.enter_context(self.service.lease())
        grant = self.lease.grant
        self.listener = Listener()
        self.link = await LinkClient.connect(grant.host, grant.port, SETTINGS, name="engine-1")
        await self.link.attach(grant, self.listener)

    async def stop(self) -> None:
        self._leased.close()
        await self.link.close()
        await self.service.stop()

    async def check(self) -> None:
        """The neighbour's next frame gets its result, nothing was done to its stream, no slot is taken but its own."""
        had = len(self.listener.results)
        self.link.send(self.lease.grant.stream, np.zeros((1, FRAME_SAMPLES), np.float32))
        await until(lambda: len(self.listener.results) > had)
        await until(lambda: self.service.load()["slots_used"] == 1)
        await until(lambda: not self.service._link._strangers and len(self.service._link._serving) == 1)
        assert [result.frame for result in self.listener.results] == list(range(had + 1))
        assert not self.listener.errors
        assert self.service._link._owners.keys() == {self.lease.grant.stream}
        self.service.check_health()
        assert self.service.load()["failed_steps_total"] == 0


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One event loop for all examples of a test."""
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def engine(runner, demo_model) -> Iterator[Engine]:
    made = Engine()
    runner.run(made.start(demo_model))
    yield made
    runner.run(made.stop())


@given(attaches=st.booleans(), wires=st.lists(WIRE, min_size=1, max_size=6))
@hypothesis_settings(max_examples=150)
def test_an_ingress_that_lies_harms_nobody(runner, engine, attaches, wires):
    async def example() -> None:
        with engine.service.lease() as lease:
            reader, writer = await asyncio.open_connection(lease.grant.host, lease.grant.port)
            if attaches:
                writer.write(encode(Attach(lease.grant.stream, lease.grant.secret)))
            parties = Parties(lease.grant, engine.lease.grant)
            for wire in wires:
                writer.write(parties.bytes(wire))
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(10):
                    while await reader.read(65_536):
                        pass
            writer.close()
        await engine.check()

    runner.run(example())


@given(guesses=st.lists(SECRETS.filter(lambda secret: secret != OWN), max_size=12))
@hypothesis_settings(max_examples=30)
def test_guesses_do_not_spoil_the_right_ones_attach(runner, engine, guesses):
    async def example() -> None:
        with engine.service.lease() as lease:
            host, port, stream = lease.grant.host, lease.grant.port, lease.grant.stream
            _, writer = await asyncio.open_connection(host, port)
            parties = Parties(lease.grant, engine.lease.grant)
            for guess in guesses:
                writer.write(parties.bytes(({"type": "attach", "stream": stream, "secret": guess}, None, None)))
            link = await LinkClient.connect(host, port, SETTINGS, name="late")
            await link.attach(lease.grant, Listener())
            writer.close()
            await link.close()
        await engine.check()

    runner.run(example())


def test_a_secret_that_nobody_uses_expires(runner, demo_model):
    async def example() -> None:
        quick = LinkSettings(heartbeat_seconds=0.1, timeout_seconds=2.0)
        service = EngineService(demo_model, name="engine-1", engine=EngineSettings(min_headroom=-100.0), link=quick)
        await service.start("127.0.0.1")
        with service.lease() as lease:
            async with asyncio.timeout(5):
                await lease.wait_ended()
            link = await LinkClient.connect(lease.grant.host, lease.grant.port, quick, name="late")
            with pytest.raises(EngineLost):
                await link.attach(lease.grant, Listener())
            await link.close()
        await service.stop()

    runner.run(example())


@given(wires=st.lists(WIRE, min_size=1, max_size=6))
@hypothesis_settings(max_examples=150)
def test_an_engine_that_lies_ends_no_more_than_its_own_link(runner, wires):
    grants = [Grant("liar", "127.0.0.1", 0, stream, bytes(SECRET_BYTES)) for stream in (1, 2)]
    parties = Parties(*grants)

    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            attached = 0
            while attached < len(grants):
                length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
                message = decode(await reader.readexactly(length))
                if isinstance(message, Attach):
                    writer.write(encode(Attached(message.stream)))
                    attached += 1
            for wire in wires:
                writer.write(parties.bytes(wire))
            writer.write_eof()
            await reader.read()
        writer.close()

    async def example() -> None:
        problems: list[dict] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        async with await asyncio.start_server(lie, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            link = await LinkClient.connect("127.0.0.1", port, SETTINGS, name="liar")
            listeners = [Listener() for _ in grants]
            for grant, listener in zip(grants, listeners, strict=True):
                with contextlib.suppress(EngineLost):  # it may have lied before the second attach
                    await link.attach(grant, listener)
            await until(lambda: not link.is_open)
            json.dumps(link.load, allow_nan=False)
            await link.close()
        for listener in listeners:
            assert len(listener.errors) <= 1
            assert all(isinstance(error, EngineLost | StepFailed) for error in listener.errors)
        assert all(listener.errors for listener in listeners)
        assert not problems

    runner.run(example())
