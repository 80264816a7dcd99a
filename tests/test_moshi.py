"""`/api/asr-streaming` from the point of view of moshi-server's clients."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import msgpack
import numpy as np
import pytest
import soxr
import websockets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import ClientConnection

from serve_app.errors import InvalidMessage
from serve_app.protocols.moshi_messages import Audio, Init, Marker, OggOpus, decode
from tests.audio_signals import cut, encoded
from tests.support import Clip, Service, answers_until_close, serving

DELAY_FRAMES = 6
"""Of the demo model."""

SECOND = np.zeros(24_000, np.float32)


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines) as made:
        yield made


def connected(service: Service) -> websockets.connect:
    return websockets.connect(service.at("/api/asr-streaming"), additional_headers={"kyutai-api-key": "public_token"})


def packed(kind: str, **fields: object) -> bytes:
    """As Kyutai's own scripts do it."""
    return msgpack.packb({"type": kind, **fields}, use_single_float=True)


def audio(samples: np.ndarray) -> bytes:
    return packed("Audio", pcm=[float(x) for x in samples])


async def hear(connection: ClientConnection) -> dict:
    async with asyncio.timeout(30):
        return msgpack.unpackb(await connection.recv())


async def hear_until(connection: ClientConnection, **wanted: object) -> list[dict]:
    messages = []
    while not messages or not wanted.items() <= messages[-1].items():
        messages.append(await hear(connection))
    return messages


async def answers(connection: ClientConnection) -> list[dict]:
    return [msgpack.unpackb(message) for message in await answers_until_close(connection)]


def of(kind: str, messages: list[dict]) -> list[dict]:
    return [message for message in messages if message["type"] == kind]


def said(messages: list[dict]) -> list[str]:
    return [word["text"] for word in of("Word", messages)]


@pytest.mark.parametrize("piece_samples", [1_920, 311, 100_000])
async def test_kyutais_own_script_transcribes_a_clip(service, clip, piece_samples):
    """`transcribe_from_file_via_rust_server.py` of delayed-streams-modeling, message by message."""
    samples = clip.samples
    async with connected(service) as connection:
        await connection.send(audio(SECOND))
        for start in range(0, len(samples), piece_samples):
            await connection.send(audio(samples[start : start + piece_samples]))
        for _ in range(5):
            await connection.send(audio(SECOND))
        await connection.send(packed("Marker", id=0))
        for _ in range(35):
            await connection.send(audio(SECOND))
        messages = await hear_until(connection, type="Marker")
    assert messages[0] == {"type": "Ready"}
    assert messages[-1] == {"type": "Marker", "id": 0}
    assert said(messages) == clip.words
    check_times(messages, clip, shift=1.0)
    await service.wait_until_empty()


def check_times(messages: list[dict], clip: Clip, shift: float) -> None:
    words, ends = of("Word", messages), of("EndWord", messages)
    for word, end, (start_s, end_s) in zip(words, ends, clip.times, strict=True):
        assert word["start_time"] == pytest.approx(start_s + shift, abs=0.3)
        assert end["stop_time"] == pytest.approx(end_s + shift, abs=0.4)
    order = [message["type"] for message in messages if message["type"] in ("Word", "EndWord")]
    assert order[0] == "Word"
    assert order[-1] == "EndWord"


async def test_a_step_for_each_frame_before_its_words(service, clip):
    samples = clip.samples[: 40 * 1_920]
    async with connected(service) as one, connected(service) as other:
        for connection in (one, other):  # the steps of one have nothing to do with those of the other
            await connection.send(audio(samples))
            await connection.send(audio(samples[:500]))
            messages = await hear_until(connection, type="Step", step_idx=39)
            steps = of("Step", messages)
            assert [step["step_idx"] for step in steps] == list(range(40))
            for step in steps:
                assert set(step) == {"type", "step_idx", "prs", "buffered_pcm"}
                assert len(step["prs"]) == 4
                assert all(0 <= pr <= 1 for pr in step["prs"])
                assert 0 <= step["buffered_pcm"] <= len(samples) + 500
            assert messages[1]["type"] == "Step"
            assert steps[-1]["buffered_pcm"] <= 500


@pytest.mark.parametrize("frames", [0, 10, 10.4])
async def test_a_marker_comes_back_after_the_whole_frames_before_it_and_the_delay(service, frames):
    before = round(frames * 1_920)
    due = int(frames) + DELAY_FRAMES
    async with connected(service) as connection:
        await connection.send(audio(np.zeros(before)))
        await connection.send(packed("Marker", id=-(2**63)))
        await connection.send(packed("Marker", id=7))
        await connection.send(audio(np.zeros((due + 3) * 1_920 - before)))
        messages = await hear_until(connection, type="Step", step_idx=due + 2)
    kinds = [message["type"] for message in messages]
    assert kinds == ["Ready", *["Step"] * due, "Marker", "Marker", *["Step"] * 3]
    assert [marker["id"] for marker in of("Marker", messages)] == [-(2**63), 7]


async def test_a_marker_alone_waits_for_audio(service):
    async with connected(service) as connection:
        await connection.send(audio(SECOND))
        await connection.send(packed("Marker", id=1))
        await hear_until(connection, type="Step", step_idx=11)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await connection.recv()
        await connection.send(audio(SECOND))
        assert of("Marker", await hear_until(connection, type="Marker")) == [{"type": "Marker", "id": 1}]


@pytest.mark.parametrize("as_list", [False, True])
async def test_ogg_opus(service, clip, as_list):
    padded = np.concatenate([clip.samples, SECOND, SECOND])
    file = encoded(soxr.resample(padded, 24_000, 48_000), 48_000, "ogg", "libopus", page_duration="80000")
    async with connected(service) as connection:
        for page in cut(file, 1_000):
            await connection.send(packed("OggOpus", data=list(page) if as_list else page))
        messages = await hear_until(connection, type="EndWord")
        while len(said(messages)) < len(clip.words):
            messages += await hear_until(connection, type="EndWord")
    assert said(messages) == clip.words


async def test_init_asks_for_ready_again(service):
    async with connected(service) as connection:
        await connection.send(packed("Init"))
        assert [await hear(connection), await hear(connection)] == [{"type": "Ready"}] * 2


async def test_full_is_said_in_moshi_servers_words(service):
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(8):
            await hear(await stack.enter_async_context(connected(service)))
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=service.http))
        async with asyncio.timeout(10):  # engines report every second
            while (await http.get("/api/modules_info")).json()[0]["used_slots"] != "8":
                await asyncio.sleep(0.1)
        async with connected(service) as refused:
            assert await answers(refused) == [{"type": "Error", "message": "no free channels"}]
        assert refused.close_code == 1013
    await service.wait_until_empty()


@pytest.mark.parametrize(
    ("message", "close_code", "complaint"),
    [
        (audio(SECOND)[:-3], 1003, "expected a msgpack map, got"),
        (b"", 1003, "expected a msgpack map, got 0 bytes"),
        (b"\xc1", 1003, "expected a msgpack map, got 1 bytes"),
        (b"\x91" * 10_000, 1003, "expected a msgpack map, got 10000 bytes"),
        (b"\xdd\xff\xff\xff\xff", 1003, "expected a msgpack map, got 5 bytes"),
        (msgpack.packb([1, 2]), 1003, "Audio, OggOpus, Marker or Init, got a list of 2"),
        (packed("Word", text="a"), 1003, "of type Audio, OggOpus, Marker or Init, got one of type 'Word'"),
        (packed("Audio"), 1003, "Audio.pcm: expected a list of numbers and nothing else, got None"),
        (packed("Audio", pcm=b"abcd"), 1003, "Audio.pcm: expected a list of numbers"),
        (packed("Audio", pcm=["1.5"]), 1003, "Audio.pcm: expected a list of numbers and nothing else, got a list of 1"),
        (packed("Audio", pcm=[{"a": 1}]), 1003, "bytes that are none (more than one map)"),
        (packed("Audio", pcm=[[]] * 10_000_000), 1003, "bytes that are none (more than one list)"),
        (packed("Audio", pcm=["a" * 10_000] + [0] * 6_000_000), 1003, "Audio.pcm: expected a list of numbers"),
        (packed("Audio", pcm=[msgpack.ExtType(5, b"a")]), 1003, "bytes that are none (an extension type, 5)"),
        (packed("Audio", pcm=[0.0, float("nan")]), 1007, "got nan at sample 1"),
        (msgpack.packb({"type": "Audio", "pcm": [1e300]}), 1007, "got inf at sample 0"),
        (packed("OggOpus", data=[256]), 1003, "OggOpus.data: expected bytes, got a list of 1"),
        (packed("OggOpus", data=b"OggS" + bytes(60)), 1007, "expected"),
        (packed("Marker"), 1003, "Marker.id: expected a 64-bit integer, got None"),
        (packed("Marker", id=True), 1003, "Marker.id: expected a 64-bit integer, got True"),
        (packed("Marker", id=2**63), 1003, "Marker.id: expected a 64-bit integer, got 9223372036854775808"),
        ("hello", 1003, "expected binary msgpack, got the text 'hello'"),
    ],
)  # fmt: skip
async def test_bad_input_gets_an_error_and_ends_only_its_own_session(service, message, close_code, complaint):
    async with connected(service) as neighbour, connected(service) as connection:
        await neighbour.send(audio(SECOND))
        await connection.send(message)
        ready, *_, error = await answers(connection)
        assert ready == {"type": "Ready"}
        assert error["type"] == "Error"
        assert complaint in error["message"]
        assert connection.close_code == close_code
        await neighbour.send(audio(SECOND))
        await hear_until(neighbour, type="Step", step_idx=24)
    await service.wait_until_empty()


async def test_init_after_audio_is_refused(service):
    async with connected(service) as connection:
        await connection.send(audio(SECOND))
        await connection.send(packed("Init"))
        assert "expected Init before any audio" in (await answers(connection))[-1]["message"]


async def test_markers_that_nothing_brings_out_are_bounded(service):
    async with connected(service) as connection:
        with contextlib.suppress(websockets.ConnectionClosed):
            for number in range(300):
                await connection.send(packed("Marker", id=number))
        *_, error = await answers(connection)
    assert "at most 256 marks" in error["message"]
    await service.wait_until_empty()


async def test_too_large_a_message(engines):
    async with serving(engines, ingress={"max_message_bytes": 10_000}) as service, connected(service) as connection:
        await connection.send(audio(SECOND))
        assert "at most 10000 bytes in a message" in (await answers(connection))[-1]["message"]
        assert connection.close_code == 1009


async def test_one_that_vanishes_is_not_kept(service):
    connection = await connected(service)
    await connection.send(audio(SECOND))
    await hear_until(connection, type="Step")
    connection.transport.abort()
    await service.wait_until_empty()
    assert service.outcomes("disconnected") == 1


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
MESSAGES = st.fixed_dictionaries(
    {"type": st.sampled_from(["Audio", "OggOpus", "Marker", "Init", "Step", ""]) | ANYTHING},
    optional={"pcm": st.lists(st.floats(-1, 1), max_size=50) | ANYTHING, "data": ANYTHING, "id": ANYTHING},
)


@given(data=st.binary(max_size=60) | (MESSAGES | ANYTHING).map(msgpack.packb))
def test_every_message_is_read_or_refused(data):
    with contextlib.suppress(InvalidMessage):
        assert isinstance(decode(data), Audio | OggOpus | Marker | Init)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(MESSAGES | ANYTHING, max_size=4), cut_off=st.integers(0, 3), junk=st.binary(max_size=30))
async def test_whatever_comes_is_answered_and_no_slot_is_lost(service, messages, cut_off, junk):
    sent = [msgpack.packb(message) for message in messages] + [junk + b"\xc1"]  # which no message can contain
    sent[0] = sent[0][: len(sent[0]) - cut_off]
    async with connected(service) as connection:
        with contextlib.suppress(websockets.ConnectionClosed):
            for message in [*sent, b"\xc1"]:
                await connection.send(message)
        assert (await answers(connection))[-1]["type"] == "Error"
    assert connection.close_code in (1003, 1007)
    await service.wait_until_empty()
    assert service.outcomes("internal_error") == 0


# ---------------------------------------------------------------------- HTTP


async def test_a_file_by_post(service, clip):
    async with httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(service.http + "/api/asr-streaming", content=clip.path.read_bytes())
    assert answer.status_code == 200
    assert said(answer.json()) == clip.words
    assert [message["type"] for message in answer.json()] == ["Word", "EndWord"] * len(clip.words)
    check_times(answer.json(), clip, shift=0.0)
    await service.wait_until_empty()
    assert service.outcomes("done") == 1


@pytest.mark.parametrize(
    ("body", "args", "status", "complaint"),
    [
        (b"", {}, 400, "expected an audio file, got an empty one"),
        (b"hello" * 100, {}, 400, "got one that begins with b'hello"),
        (b"RIFF" + bytes(100), {}, 400, "expected"),
        (bytes(2**20 + 1), {"ingress": {"max_upload_megabytes": 1}}, 413, "at most 1 MiB"),
    ],
)
async def test_a_bad_file_by_post(engines, body, args, status, complaint):
    async with serving(engines, **args) as service, httpx.AsyncClient(timeout=60) as http:
        answer = await http.post(service.http + "/api/asr-streaming", content=body)
        assert (answer.status_code, answer.json()["type"]) == (status, "Error")
        assert complaint in answer.json()["message"]
        await service.wait_until_empty()


@pytest.mark.parametrize(
    ("query", "ingress"), [("", {"max_wait_seconds": 0.3}), ("?wait_s=0.3", {}), ("?wait_s=0", {})]
)
async def test_a_file_that_finds_no_slot(engines, clip, query, ingress):
    async with contextlib.AsyncExitStack() as stack:
        service = await stack.enter_async_context(serving(engines, ingress=ingress))
        for _ in range(8):
            await hear(await stack.enter_async_context(connected(service)))
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=10))
        answer = await http.post(service.http + f"/api/asr-streaming{query}", content=clip.path.read_bytes())
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize("wait", ["-1", "301", "soon"])
async def test_a_wait_that_makes_no_sense_by_post(service, clip, wait):
    async with httpx.AsyncClient(timeout=10) as http:
        answer = await http.post(f"{service.http}/api/asr-streaming?wait_s={wait}", content=clip.path.read_bytes())
    assert (answer.status_code, answer.json()["type"]) == (400, "Error")
    assert answer.json()["message"] == f"?wait_s=: expected a number from 0 to 300, got '{wait}'"


async def test_one_that_leaves_while_it_waits_for_a_slot_takes_none(engines, clip):
    async with contextlib.AsyncExitStack() as stack:
        service = await stack.enter_async_context(serving(engines))
        others = [await stack.enter_async_context(connected(service)) for _ in range(8)]
        for connection in others:
            await hear(connection)
        async with httpx.AsyncClient(timeout=0.5) as http:
            with pytest.raises(httpx.ReadTimeout):
                await http.post(service.http + "/api/asr-streaming", content=clip.path.read_bytes())
        async with asyncio.timeout(5):
            while service.outcomes("left") < 1:
                await asyncio.sleep(0.01)


async def test_build_and_modules_info(service):
    async with httpx.AsyncClient(base_url=service.http) as http:
        build = (await http.get("/api/build_info")).json()
        async with asyncio.timeout(10):
            while (modules := (await http.get("/api/modules_info")).json())[0]["used_slots"] != "0":
                await asyncio.sleep(0.1)  # an engine tells its load once a second
    assert len(build) == 10
    assert build["git_describe"].startswith("stt-serve ")
    assert modules == [
        {"type": "batched_asr", "path": "/api/asr-streaming", "lm": "demo", "audio_tokenizer": "demo",
         "used_slots": "0", "total_slots": "8"}
    ]  # fmt: skip
