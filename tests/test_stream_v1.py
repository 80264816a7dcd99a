"""`WS /v1/stream` from a client's point of view: real uvicorn, real WebSockets, a real engine, no Ray."""

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import AsyncIterator

import httpx
import numpy as np
import pytest
import soxr
import websockets
from websockets.asyncio.client import ClientConnection

from serve_app.audio.formats import AudioFormat
from tests.audio_signals import cut, encoded, raw
from tests.support import LocalVault, Service, serving

FLUSH, END = '{"type": "flush"}', '{"type": "end"}'


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines) as made:
        yield made


async def events_until_close(connection: ClientConnection) -> list[dict]:
    events = []
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            async with asyncio.timeout(30):
                events.append(json.loads(await connection.recv()))
    return events


def text(events: list[dict]) -> list[str]:
    return "".join(event["text"] for event in events if event["type"] == "token").split()


async def send_clip(connection: ClientConnection, samples: np.ndarray, piece_bytes: int = 7_680) -> None:
    data = samples.astype("<f4").tobytes()
    for start in range(0, len(data), piece_bytes):
        await connection.send(data[start : start + piece_bytes])


async def test_a_clip_becomes_tokens_and_a_clean_end(service, clip):
    async with websockets.connect(service.url) as connection:
        ready = json.loads(await connection.recv())
        assert set(ready) == {"type", "session_id", "model", "resume_token"}
        assert (ready["type"], ready["model"]) == ("ready", "demo")
        await send_clip(connection, clip.samples)
        await connection.send(END)
        events = await events_until_close(connection)
    assert text(events) == clip.words
    assert events[-1] == {
        "type": "done",
        "audio_seconds": round(len(clip.samples) / 24_000, 3),
        "seq": events[-1]["seq"],
    }
    assert {event["type"] for event in events} == {"token", "vad_end", "done"}
    assert (connection.close_code, connection.close_reason) == (1000, "done")
    await service.wait_until_empty()
    assert service.outcomes("done") == 1


@pytest.mark.parametrize("piece_bytes", [1_001, 4, 100_000])
async def test_pieces_of_any_size_give_the_same_text(service, clip, piece_bytes):
    samples = clip.samples[:12_000] if piece_bytes == 4 else clip.samples
    async with websockets.connect(service.url) as connection:
        await send_clip(connection, samples, piece_bytes)
        await connection.send(END)
        events = await events_until_close(connection)
    assert events[-1]["audio_seconds"] == round(len(samples) / 24_000, 3)
    if piece_bytes != 4:
        assert text(events) == clip.words


@pytest.mark.parametrize("end", [END, "EOS", b"EOS"])
async def test_every_way_to_end(service, clip, end):
    async with websockets.connect(service.url) as connection:
        await send_clip(connection, clip.samples)
        await connection.send(end)
        events = await events_until_close(connection)
    assert text(events) == clip.words
    assert connection.close_code == 1000


async def test_words_with_their_times_where_they_are_asked_for(service, clip):
    async with websockets.connect(service.url + "?words=true") as connection:
        await send_clip(connection, clip.samples)
        await connection.send(END)
        events = await events_until_close(connection)
    words = [event for event in events if event["type"] == "word"]
    assert [word["text"] for word in words] == clip.words
    for word, (start, end) in zip(words, clip.times, strict=True):
        assert word["start"] == pytest.approx(start, abs=0.3)
        assert word["end"] == pytest.approx(end, abs=0.4)


async def test_pause_probabilities_of_every_frame_where_they_are_asked_for(service, clip):
    """And where they are not, nobody gets them (see the first test); the numbers of the other events are the same."""
    heard = []
    for query in ("", "?pauses=true"):
        async with websockets.connect(service.url + query) as connection:
            await send_clip(connection, clip.samples)
            await connection.send(END)
            heard.append(await events_until_close(connection))
    plain, told = ([event for event in events[1:] if event["type"] != "pauses"] for events in heard)
    assert told == plain
    pauses = [event for event in heard[1] if event["type"] == "pauses"]
    assert len(pauses) >= len(clip.samples) // 1_920
    assert [pause["time"] for pause in pauses[:3]] == [0.08, 0.16, 0.24]
    assert pauses[-1]["time"] == pytest.approx(len(clip.samples) / 24_000, abs=0.001)
    for pause in pauses:
        assert set(pause) == {"type", "time", "probabilities"}
        assert len(pause["probabilities"]) == 4
        assert all(0 <= probability <= 1 for probability in pause["probabilities"])


async def test_how_far_the_transcript_has_come_and_how_sure_the_model_is(service, clip):
    async with websockets.connect(service.url + "?words=true&confidence=true&settled=true") as connection:
        await send_clip(connection, clip.samples)
        await connection.send(END)
        events = await events_until_close(connection)
    settled_s = 0.0
    for event in events:
        if event["type"] == "settled":
            assert event["time"] >= settled_s
            settled_s = event["time"]
        elif event["type"] == "word":
            assert event["end"] >= settled_s
            assert 0.5 < event["confidence"] <= 1
    assert settled_s == pytest.approx(len(clip.samples) / 24_000, abs=0.1)
    assert not [event for event in events if event["type"] == "pauses"]


async def test_pause_probabilities_go_on_after_a_resume(service, clip):
    speaker = Speaker(service.url, clip.samples, query="pauses=true")
    for seconds in (1.3, 2.0, None):
        await speaker.talk(seconds)
    assert text(speaker.events) == clip.words
    times = [event["time"] for event in speaker.events if event["type"] == "pauses"]
    assert {time for time in times if 3.5 < time < 7.0} == {round(frame * 0.08, 3) for frame in range(44, 88)}
    assert times[-1] == pytest.approx(len(clip.samples) / 24_000, abs=0.001)


async def test_a_flush_brings_everything_out_and_the_session_goes_on(service, clip):
    async with websockets.connect(service.url) as connection:
        for _ in range(2):
            await send_clip(connection, clip.samples)
            await connection.send(FLUSH)
            events = []
            while not events or events[-1]["type"] != "flushed":
                events.append(json.loads(await connection.recv()))
            assert text(events) == clip.words
        await connection.send(END)
        assert (await events_until_close(connection))[-1]["type"] == "done"


async def test_pings_when_idle(engines):
    async with (
        serving(engines, ingress={"ping_seconds": 0.1}) as service,
        websockets.connect(service.url) as connection,
    ):
        kinds = [json.loads(await connection.recv())["type"] for _ in range(4)]
    assert sorted(kinds) == ["ping", "ping", "ping", "ready"]  # one may come while the slot is being taken


async def test_full_is_said_at_once_and_disturbs_nobody(service, clip):
    async with contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(websockets.connect(service.url)) for _ in range(8)]
        for connection in connections:
            assert json.loads(await connection.recv())["type"] == "ready"
        async with websockets.connect(service.url) as refused:
            (error,) = await events_until_close(refused)
        assert error["code"] == "at_capacity"
        assert "8 slots" in error["message"]
        assert error["retry_after_s"] > 0
        assert refused.close_code == 1013
        assert refused.close_reason.startswith("at_capacity")
        await send_clip(connections[0], clip.samples)
        await connections[0].send(END)
        assert text(await events_until_close(connections[0])) == clip.words
    await service.wait_until_empty()


NAN = np.array([0.0, np.nan], "<f4").tobytes()
INFINITE = np.array([np.inf], "<f4").tobytes()
INTEGERS = np.array([12_000.0], "<f4").tobytes()


@pytest.mark.parametrize(
    ("messages", "code", "close_code", "complaint"),
    [
        ([NAN], "invalid_audio", 1007, "got nan at sample 1"),
        ([INFINITE], "invalid_audio", 1007, "got inf at sample 0"),
        ([INTEGERS], "invalid_audio", 1007, "integers that were not scaled"),
        ([b"\0\0\0\0\0", END], "invalid_audio", 1007, "a multiple of 4 bytes, got 1 trailing"),
        (["hello"], "invalid_message", 1003, "got the text 'hello'"),
        (["[1]"], "invalid_message", 1003, "got the text '[1]'"),
        (['{"type": "start"}'], "invalid_message", 1003, "expected binary audio"),
        (["[" * 100_000], "invalid_message", 1003, "expected binary audio"),
        (["x" * 100_000], "invalid_message", 1003, "expected binary audio"),
        (['{"type": ["flush"]}'], "invalid_message", 1003, "expected binary audio"),
        ([bytes(96_000), END, bytes(4)], "invalid_message", 1003, "nothing after the end of the audio"),
    ],
)  # fmt: skip
async def test_bad_input_gets_a_typed_error_and_ends_only_its_own_session(
    service, clip, messages, code, close_code, complaint
):
    async with websockets.connect(service.url) as neighbour, websockets.connect(service.url) as connection:
        half = len(clip.samples) // 2
        await send_clip(neighbour, clip.samples[:half])
        with contextlib.suppress(websockets.ConnectionClosed):
            for message in messages:
                await connection.send(message)
        events = await events_until_close(connection)
        await send_clip(neighbour, clip.samples[half:])
        await neighbour.send(END)
        assert text(await events_until_close(neighbour)) == clip.words
    assert events[-1]["type"] == "error"
    assert events[-1]["code"] == code
    assert complaint in events[-1]["message"]
    assert connection.close_code == close_code
    assert connection.close_reason.startswith(code)
    await service.wait_until_empty()


async def test_a_wrong_query_is_refused_before_a_slot_is_taken(service):
    async with websockets.connect(service.url + "?words=perhaps") as connection:
        events = await events_until_close(connection)
    assert [event["code"] for event in events] == ["invalid_message"]
    assert "?words=: expected true or false, got 'perhaps'" in events[0]["message"]
    assert service.engines.link.load["frames_total"] == service.engines.service.load()["frames_total"]


@pytest.mark.parametrize("query", ["?format=mp3", "?sample_rate=11025", "?channels=0", "?format=s16&sample_rate=x"])
async def test_audio_declared_wrongly_is_refused_before_a_slot_is_taken(service, query):
    frames = service.engines.service.load()["frames_total"]
    async with websockets.connect(service.url + query) as connection:
        events = await events_until_close(connection)
    assert [event["code"] for event in events] == ["invalid_message"]
    assert "=: expected one of" in events[0]["message"]
    assert service.engines.service.load()["frames_total"] == frames


@pytest.mark.parametrize(
    "audio_format",
    [
        AudioFormat("s16", 16_000),
        AudioFormat("f32", 44_100),
        AudioFormat("s16", 48_000, 2),
        AudioFormat("s16", 22_050),
        AudioFormat("mulaw", 24_000),
        AudioFormat("alaw", 16_000),
    ],
    ids=lambda audio_format: audio_format.query,
)
async def test_a_clip_in_any_format_has_the_same_words(service, clip, audio_format):
    rate_hz = audio_format.sample_rate_hz
    samples = clip.samples if rate_hz == 24_000 else soxr.resample(clip.samples, 24_000, rate_hz)
    async with websockets.connect(service.url + audio_format.query) as connection:
        for piece in cut(raw(samples, audio_format), 1_999):
            await connection.send(piece)
        await connection.send(END)
        events = await events_until_close(connection)
    assert text(events) == clip.words
    assert events[-1]["audio_seconds"] == pytest.approx(len(clip.samples) / 24_000, abs=0.001)


@pytest.mark.parametrize("query", ["", "?format=opus", "?format=s16&sample_rate=16000"])
async def test_ogg_opus_needs_no_declaration(service, clip, query):
    file = encoded(soxr.resample(clip.samples, 24_000, 48_000), 48_000, "ogg", "libopus", page_duration="80000")
    async with websockets.connect(service.url + query) as connection:
        for piece in cut(file, 777):
            await connection.send(piece)
        await connection.send(END)
        assert text(await events_until_close(connection)) == clip.words


@pytest.mark.parametrize(
    ("query", "sent", "complaint"),
    [
        ("", AudioFormat("s16"), "?format=s16"),
        ("?format=s16", AudioFormat("f32"), "looks like float32 samples (?format=f32)"),
    ],
)
async def test_audio_that_is_not_what_it_is_said_to_be_gets_an_error_instead_of_silence(
    service, clip, query, sent, complaint
):
    async with websockets.connect(service.url + query) as connection:
        with contextlib.suppress(websockets.ConnectionClosed):
            for piece in cut(raw(clip.samples, sent), 7_680):
                await connection.send(piece)
        events = await events_until_close(connection)
    assert events[-1]["code"] == "invalid_audio"
    assert complaint in events[-1]["message"]
    assert connection.close_code == 1007


async def test_a_file_sent_as_samples_is_called_by_its_name(service, clip):
    async with websockets.connect(service.url + "?format=s16&sample_rate=16000") as connection:
        await connection.send(encoded(clip.samples, 24_000, "wav", "pcm_s16le")[:50_000])
        events = await events_until_close(connection)
    assert "got a WAV file: stream what follows its header (?format=s16&sample_rate=24000)" in events[-1]["message"]


async def test_empty_messages_are_nothing(service, clip):
    async with websockets.connect(service.url) as connection:
        await connection.send(b"")
        await send_clip(connection, clip.samples)
        await connection.send(b"")
        await connection.send(END)
        assert text(await events_until_close(connection)) == clip.words


async def test_a_message_of_20_mb_is_too_large(service):
    async with websockets.connect(service.url) as connection:
        with contextlib.suppress(websockets.ConnectionClosed):
            await connection.send(bytes(20_000_000))
        await events_until_close(connection)
    assert connection.close_code == 1009
    await service.wait_until_empty()


async def test_a_message_over_our_own_limit_is_too_large(engines):
    async with (
        serving(engines, ingress={"max_message_bytes": 10_000}) as service,
        websockets.connect(service.url) as connection,
    ):
        await connection.send(bytes(10_004))
        events = await events_until_close(connection)
        assert events[-1]["code"] == "message_too_large"
        assert "at most 10000 bytes in a message, got 10004" in events[-1]["message"]
        assert connection.close_code == 1009


async def test_one_that_sends_nothing_is_told_and_its_slot_freed(engines):
    async with serving(engines, session={"idle_audio_timeout_seconds": 0.3}) as service:
        async with websockets.connect(service.url) as connection:
            events = await events_until_close(connection)
        assert [event["type"] for event in events] == ["ready", "error"]
        assert events[-1]["code"] == "idle_timeout"
        assert connection.close_code == 1008
        await service.wait_until_empty()


async def test_one_that_vanishes_frees_its_slot_at_once_and_is_forgotten_after_the_window(engines, clip):
    async with serving(engines, session={"resume_window_seconds": 3}) as service:
        connection = await websockets.connect(service.url)
        await send_clip(connection, clip.samples[:24_000])
        connection.transport.abort()
        async with asyncio.timeout(3):
            while service.engines.slots_used():
                await asyncio.sleep(0.01)
        await service.wait_until_empty()
        assert service.outcomes("disconnected") == 1


async def test_one_that_leaves_politely_frees_its_slot_and_is_not_kept(service, clip):
    async with websockets.connect(service.url) as connection:
        await connection.recv()
        await send_clip(connection, clip.samples[:24_000])
    await service.wait_until_empty()
    assert service.outcomes("left") == 1


class Speaker:
    """A client that is cut off at will and resumes."""

    def __init__(self, url: str, samples: np.ndarray, query: str = "") -> None:
        self.url = url
        self.query = query
        self.samples = samples
        self.events: list[dict] = []
        self.ready: dict = {}

    @property
    def last_seq(self) -> int:
        return max((event.get("seq", 0) for event in self.events), default=0)

    async def talk(self, seconds: float | None = None, headers: dict | None = None) -> None:
        """Connect (again), send from where the server is, and be cut off after `seconds`, or else end."""
        url = f"{self.url}?{self.query}"
        if self.ready:
            url += f"&resume={self.ready['resume_token']}&last_seq={self.last_seq}"
        async with websockets.connect(url, additional_headers=headers) as connection:
            message = json.loads(await connection.recv())
            if message["type"] == "error":
                self.events.append(message)
                return
            self.ready = message
            reading = asyncio.create_task(self.read(connection))
            taken = self.ready.get("received", {"samples": 0})["samples"]
            stop = len(self.samples) if seconds is None else taken + int(seconds * 24_000)
            await send_clip(connection, self.samples[taken:stop])
            if seconds is None:
                await connection.send(END)
                await reading
            else:
                await asyncio.sleep(0.05)
                connection.transport.abort()
                await reading

    async def read(self, connection: ClientConnection) -> None:
        self.events += await events_until_close(connection)


async def test_a_client_that_is_cut_off_resumes_and_misses_nothing(service, clip):
    speaker = Speaker(service.url, clip.samples)
    for seconds in (1.3, 0.4, 2.0, 0.1):
        await speaker.talk(seconds)
    await speaker.talk()
    heard = [event for event in speaker.events if "seq" in event]
    assert all(later["seq"] > earlier["seq"] for earlier, later in itertools.pairwise(heard))
    assert text(heard) == clip.words
    assert heard[-1]["audio_seconds"] == round(len(clip.samples) / 24_000, 3)
    await service.wait_until_empty()
    assert service.outcomes("done") == 1


async def test_a_resume_token_works_once_for_its_owner_and_until_the_session_is_over(service, clip):
    speaker = Speaker(service.url, clip.samples)
    await speaker.talk(1.0, headers={"Authorization": "Bearer mine"})
    first = speaker.ready
    thief = Speaker(service.url, clip.samples)
    thief.ready = first
    await thief.talk(headers={"Authorization": "Bearer another"})
    assert thief.events[-1]["code"] == "unknown_session"
    await speaker.talk(1.0, headers={"Authorization": "Bearer mine"})
    await service.wait_until_empty()
    again = Speaker(service.url, clip.samples)
    again.ready = first
    await again.talk(headers={"Authorization": "Bearer mine"})
    assert again.events[-1]["code"] == "unknown_session"
    await speaker.talk(headers={"Authorization": "Bearer mine"})
    assert text([event for event in speaker.events if "seq" in event]) == clip.words
    await again.talk()
    assert again.events[-1]["code"] == "unknown_session"


async def test_a_connection_that_hangs_is_replaced_by_the_one_that_resumes(service, clip):
    """The client's network broke, the server has not noticed: the new connection takes the session over."""
    hanging = await websockets.connect(service.url)
    ready = json.loads(await hanging.recv())
    await send_clip(hanging, clip.samples[:48_000])
    await asyncio.sleep(0.3)
    speaker = Speaker(service.url, clip.samples)
    speaker.ready = ready
    await speaker.talk()
    assert text([event for event in speaker.events if "seq" in event]) == clip.words
    await hanging.wait_closed()
    assert hanging.close_reason == "the session goes on over another connection"
    await service.wait_until_empty()


@pytest.mark.parametrize(
    "query", ["resume=&last_seq=0", "resume=abc&last_seq=-1", "resume=abc&last_seq=1e9", "resume=%00"]
)
async def test_a_wrong_resume_is_refused(service, query):
    async with websockets.connect(f"{service.url}?{query}") as connection:
        (error,) = await events_until_close(connection)
    assert error["code"] in ("unknown_session", "invalid_message")
    assert connection.close_code in (1003, 1008)


async def test_a_session_goes_on_at_another_ingress(engines, clip):
    vault = LocalVault(60)
    async with serving(engines, vault) as one, serving(engines, vault) as other:
        speaker = Speaker(one.url, clip.samples)
        await speaker.talk(1.5)
        speaker.url = other.url
        await speaker.talk(1.5)
        speaker.url = one.url
        await speaker.talk()
        assert text([event for event in speaker.events if "seq" in event]) == clip.words
        assert speaker.events[-1]["audio_seconds"] == round(len(clip.samples) / 24_000, 3)
        for service in (one, other):
            await service.wait_until_empty()


async def test_a_connection_that_hangs_at_another_ingress_is_replaced_too(engines, clip):
    vault = LocalVault(60)
    async with serving(engines, vault) as one, serving(engines, vault) as other:
        hanging = await websockets.connect(one.url)
        ready = json.loads(await hanging.recv())
        await send_clip(hanging, clip.samples[:48_000])
        await asyncio.sleep(1.5)  # saved at least once
        speaker = Speaker(other.url, clip.samples)
        speaker.ready = ready
        await speaker.talk()
        assert text([event for event in speaker.events if "seq" in event]) == clip.words
        await hanging.wait_closed()
        assert hanging.close_reason == "the session goes on over another connection"
        await one.wait_until_empty()
        await other.wait_until_empty()


async def test_a_token_is_still_good_if_the_answer_to_it_got_lost(service, clip):
    speaker = Speaker(service.url, clip.samples)
    await speaker.talk(1.0)
    first = speaker.ready
    lost = await websockets.connect(f"{service.url}?resume={first['resume_token']}&last_seq={speaker.last_seq}")
    await lost.recv()
    lost.transport.abort()
    await speaker.talk()
    assert text([event for event in speaker.events if "seq" in event]) == clip.words


async def test_a_network_that_flaps_while_the_client_resumes_loses_nothing(service, clip):
    """The connection that brings the token breaks before, during and after the answer."""
    speaker = Speaker(service.url, clip.samples)
    await speaker.talk(1.0)
    for delay_s in (0.0, 0.002, 0.005, 0.01, 0.02, 0.0):
        query = f"resume={speaker.ready['resume_token']}&last_seq={speaker.last_seq}"
        flapping = await websockets.connect(f"{service.url}?{query}")
        await asyncio.sleep(delay_s)
        flapping.transport.abort()
    await speaker.talk()
    assert text([event for event in speaker.events if "seq" in event]) == clip.words


async def test_a_number_that_makes_no_sense_costs_nothing_but_the_try(service, clip):
    speaker = Speaker(service.url, clip.samples)
    await speaker.talk(1.0)
    url = f"{service.url}?resume={speaker.ready['resume_token']}"
    async with websockets.connect(f"{url}&last_seq=5000") as connection:
        (error,) = await events_until_close(connection)
        assert error["code"] == "invalid_message"
    await speaker.talk()
    assert text([event for event in speaker.events if "seq" in event]) == clip.words


async def test_a_session_that_is_over_is_over(service, clip):
    for _ in range(5):
        speaker = Speaker(service.url, clip.samples[:20_000])
        await speaker.talk()
        assert speaker.events[-1]["type"] == "done"
        await asyncio.sleep(0.3)  # the vault hears of it a moment later
        await speaker.talk()
        assert speaker.events[-1]["code"] == "unknown_session"


async def test_without_a_vault_sessions_go_on_but_cannot_be_resumed_for_now(engines, clip):
    vault = LocalVault(60)
    async with serving(engines, vault) as service:
        speaker = Speaker(service.url, clip.samples)
        await speaker.talk(1.0)
        await service.wait_until_empty()
        vault.available = False
        async with websockets.connect(service.url) as connection:
            await send_clip(connection, clip.samples)
            await connection.send(END)
            assert text(await events_until_close(connection)) == clip.words
        kept = speaker.ready
        await speaker.talk()
        assert speaker.events.pop()["code"] == "restarting"
        vault.available = True
        speaker.ready = kept
        await speaker.talk()
        assert text([event for event in speaker.events if "seq" in event]) == clip.words


async def test_a_session_that_is_cut_off_while_the_vault_is_away_is_saved_when_it_is_back(engines, clip):
    vault = LocalVault(60)
    async with serving(engines, vault) as service:
        vault.available = False
        asyncio.get_running_loop().call_later(2.0, setattr, vault, "available", True)
        speaker = Speaker(service.url, clip.samples)
        await speaker.talk(1.0)
        await speaker.talk()
        assert text([event for event in speaker.events if "seq" in event]) == clip.words


async def test_a_stopping_ingress_sends_its_clients_away_and_their_sessions_go_on(engines, clip):
    """First those who say that they resume by themselves, then everybody; nobody gets in any more."""
    vault = LocalVault(60)
    async with serving(engines, vault) as one, serving(engines, vault) as other:
        movable = await websockets.connect(f"{one.url}?resumable=true")
        plain = await websockets.connect(one.url)
        speakers = []
        for connection in (movable, plain):
            speaker = Speaker(other.url, clip.samples)
            speaker.ready = json.loads(await connection.recv())
            await send_clip(connection, clip.samples[:60_000])
            speakers.append(speaker)
        await asyncio.sleep(0.3)
        one.ingress.sessions.close()
        one.ingress.sessions.move_out(everyone=False)
        speakers[0].events += await events_until_close(movable)
        assert (movable.close_code, movable.close_reason[:10]) == (1012, "restarting")
        async with websockets.connect(one.url) as refused:
            (error,) = await events_until_close(refused)
            assert (error["code"], error["retry_after_s"], refused.close_code) == ("restarting", 1.0, 1012)
        assert plain.state.name == "OPEN"
        one.ingress.sessions.move_out(everyone=True)
        speakers[1].events += await events_until_close(plain)
        assert speakers[1].events.pop()["code"] == "restarting"
        assert plain.close_code == 1012
        await one.wait_until_empty()
        for speaker in speakers:
            await speaker.talk()
            assert text([event for event in speaker.events if "seq" in event]) == clip.words


async def test_one_key_cannot_take_every_slot(engines, clip):
    key = {"Authorization": "Bearer greedy"}
    async with serving(engines, engine={"slots": 8}, ingress={"key_share": 0.25}) as service:
        held = [await websockets.connect(service.url, additional_headers=key) for _ in range(2)]
        for connection in held:
            assert json.loads(await connection.recv())["type"] == "ready"
        async with websockets.connect(service.url, additional_headers=key) as third:
            (error,) = await events_until_close(third)
            assert (error["code"], third.close_code) == ("too_many_sessions", 1013)
        async with websockets.connect(service.url, additional_headers={"Authorization": "Bearer modest"}) as another:
            assert json.loads(await another.recv())["type"] == "ready"
        await held.pop().close()
        await asyncio.sleep(0.2)
        async with websockets.connect(service.url, additional_headers=key) as again:
            assert json.loads(await again.recv())["type"] == "ready"
        await held.pop().close()


async def test_who_waits_in_line_hears_his_place_and_gets_the_next_slot(engines, clip):
    async with serving(engines) as service:
        held = [await websockets.connect(service.url) for _ in range(8)]
        for connection in held:
            assert json.loads(await connection.recv())["type"] == "ready"
        waiting = [await websockets.connect(f"{service.url}?wait_s=20") for _ in range(2)]
        places = [json.loads(await connection.recv()) for connection in waiting]
        assert [(place["state"], place["place"]) for place in places] == [("waiting", 1), ("waiting", 2)]
        gives_up = await websockets.connect(f"{service.url}?wait_s=20")
        assert json.loads(await gives_up.recv())["place"] == 3
        gives_up.transport.abort()
        async with websockets.connect(service.url) as impatient:
            (error,) = await events_until_close(impatient)
            assert error["code"] == "at_capacity"
            assert "others wait for a slot" in error["message"]
        await send_clip(waiting[0], clip.samples)  # audio may be sent before the slot is there
        await waiting[0].send(END)
        await held.pop().close()
        assert text(await events_until_close(waiting[0])) == clip.words
        assert json.loads(await waiting[1].recv())["type"] in ("status", "ready")
        for connection in [*held, waiting[1]]:
            await connection.close()
        await service.wait_until_empty()


@pytest.mark.parametrize("query", ["wait_s=-1", "wait_s=1e3", "wait_s=301", "wait_s=", "resumable=perhaps"])
async def test_a_wish_that_makes_no_sense_is_refused(service, query):
    async with websockets.connect(f"{service.url}?{query}") as connection:
        (error,) = await events_until_close(connection)
    assert (error["code"], connection.close_code) == ("invalid_message", 1003)


async def test_words_said_before_a_mistake_come_before_its_error(service, clip):
    for mistake in (b"\0\0\0\0", "nonsense"):
        async with websockets.connect(service.url) as connection:
            await send_clip(connection, clip.samples)
            await connection.send(END)
            await connection.send(mistake)
            events = await events_until_close(connection)
        assert text(events) == clip.words
        assert events[-1]["code"] == "invalid_message"


async def test_one_that_never_reads_is_dropped_and_its_slot_freed(engines, clip):
    """A raw socket, because every WebSocket library reads in the background. Small buffers and a fast ping fill up."""
    async with serving(engines, ingress={"slow_client_seconds": 0.5}, session={"event_buffer": 16}) as service:
        raw = socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        raw.connect(("127.0.0.1", service.port))
        raw.sendall(
            b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        raw.setblocking(False)
        # Each flush of a session without audio is answered at once: much to read for little to send.
        flush = bytes([0x81, 0x80 | len(FLUSH), 0, 0, 0, 0]) + FLUSH.encode()
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(60):
                while not service.outcomes("slow_client"):
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(loop.sock_sendall(raw, flush * 2_000), 1)
        raw.close()
        assert service.outcomes("slow_client") == 1
        await service.wait_until_empty()


async def test_100_times_real_time_is_slowed_down_not_buffered(service, clip):
    """Three minutes as fast as the socket takes them: the words are right, and little of it is ever in memory."""
    samples = np.tile(clip.samples, 24)
    # Its pings wait behind its audio: on a slow machine for longer than it would wait for an answer.
    async with websockets.connect(service.url, max_queue=None, ping_interval=None) as connection:
        sending = asyncio.create_task(send_clip(connection, samples, 96_000))
        await asyncio.sleep(0.5)
        assert not sending.done()
        sent_ahead = service.metrics.registry.get_sample_value("stt_frames_total")
        assert sent_ahead < len(samples) / 1_920
        reading = asyncio.create_task(events_until_close(connection))
        await sending
        await connection.send(END)
        events = await reading
    assert events[-1]["type"] == "done"
    assert abs(len(text(events)) - 24 * len(clip.words)) <= 24


async def test_http_routes(service, clip):
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as http:
        information = (await http.get("/")).json()
        assert information["service"] == "stt"
        assert information["endpoints"]["stream"] == "/v1/stream"
        assert (await http.get("/health")).text == (await http.get("/healthz")).text == "ok"
        assert (await http.get("/readyz")).status_code == 200
        service.engines.is_ready = False
        not_ready = await http.get("/readyz")
        assert not_ready.status_code == 503
        assert "Retry-After" in not_ready.headers
        async with websockets.connect(service.url) as connection:
            await connection.recv()
            status = (await http.get("/status")).json()
            assert status["sessions_open"] == 1
            assert status["engines"]["engine-1"]["slots"] == 8
            metrics = (await http.get("/metrics")).text
            assert (
                'stt_sessions_open{deployment="ingress",model="demo",replica="ingress-1",state="live"} 1.0' in metrics
            )
            assert 'stt_engine_slots{deployment="engine",replica="engine-1"} 8.0' in metrics
        assert (await http.get("/nothing")).status_code == 404
        assert (await http.get("/v1/stream")).status_code in (400, 404, 405, 426)
