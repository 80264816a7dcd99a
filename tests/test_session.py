"""Sessions against a real engine (the demo model) over a real link, without Ray."""

import asyncio
from contextlib import asynccontextmanager

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from serve_app.errors import AtCapacity, EngineLost, IdleTimeout, InvalidMessage, SessionTooLong, StepFailed
from serve_app.session.core import Done, Flushed, Status
from serve_app.session.session import Session
from serve_app.settings import EngineSettings, SessionSettings
from serve_app.speech import SAMPLE_RATE_HZ
from serve_app.telemetry import IngressMetrics
from serve_app.transcript import Token, TurnEnd, Word
from tests.support import DirectEngines, running_engines, served

CHUNK = 2_000
"""Samples per call: not a whole number of frames."""


def new_session(engines: DirectEngines, **settings) -> Session:
    return Session(
        "session-1",
        served(engines),
        SessionSettings(**settings),
        IngressMetrics(CollectorRegistry()),
    )


@asynccontextmanager
async def opened(engines: DirectEngines, **settings):
    session = new_session(engines, **settings)
    await session.open()
    try:
        yield session
    finally:
        await session.close()


async def collect(session: Session) -> list:
    return [event async for _, event in session.events()]


async def speak(session: Session, samples: np.ndarray) -> None:
    for start in range(0, len(samples), CHUNK):
        await session.feed(samples[start : start + CHUNK])


def words(events: list) -> list[str]:
    return [event.text for event in events if isinstance(event, Word)]


async def no_slot_used(engines: DirectEngines) -> None:
    async with asyncio.timeout(5):
        while engines.slots_used():
            await asyncio.sleep(0.01)


async def test_a_clip_becomes_its_words_at_their_times(engines, clip):
    async with opened(engines) as session:
        reading = asyncio.create_task(collect(session))
        await speak(session, clip.samples)
        await session.end()
        events = await reading
    heard = [event for event in events if isinstance(event, Word)]
    assert [word.text for word in heard] == clip.words
    for word, (start, end) in zip(heard, clip.times, strict=True):
        assert word.start_s == pytest.approx(start, abs=0.3)
        assert word.end_s == pytest.approx(end, abs=0.4)
    assert "".join(event.text for event in events if isinstance(event, Token)).split() == clip.words
    assert events[-1] == Done(len(clip.samples) / SAMPLE_RATE_HZ)
    await no_slot_used(engines)


async def test_sessions_side_by_side_hear_only_their_own_clip(engines, clips):
    async def hold(clip) -> list:
        async with opened(engines) as session:
            reading = asyncio.create_task(collect(session))
            await speak(session, clip.samples)
            await session.end()
            return words(await reading)

    async with asyncio.TaskGroup() as group:
        sessions = [(clip, group.create_task(hold(clip))) for clip in clips[:6]]
    for clip, heard in sessions:
        assert heard.result() == clip.words, clip.path.name


async def test_a_flush_brings_out_what_was_said_and_the_clock_goes_on(engines, clip):
    """Flushed after each word: the same words, at the times of an undisturbed session, and none is late."""
    async with opened(engines) as session:
        events = session.events()
        heard: list[Word] = []
        position = 0
        for _, end in [*clip.times, (0, len(clip.samples) / SAMPLE_RATE_HZ)]:
            cut = min(len(clip.samples), int((end + 0.05) * SAMPLE_RATE_HZ)) if end else len(clip.samples)
            await speak(session, clip.samples[position:cut])
            position = max(position, cut)
            await session.flush()
            async for _, event in events:
                if isinstance(event, Word):
                    heard.append(event)
                if isinstance(event, Flushed):
                    break
        await session.end()
        rest = [event async for _, event in events]
    assert words(rest) == []
    assert isinstance(rest[-1], Done)
    assert rest[-1].audio_seconds == len(clip.samples) / SAMPLE_RATE_HZ
    starts = [word.start_s for word in heard]
    assert starts == sorted(starts)
    assert all(word.end_s <= rest[-1].audio_seconds for word in heard)
    spoken = zip(heard, clip.times, clip.words, strict=False)
    matching = [(word, time) for word, time, text in spoken if word.text == text]
    assert len(matching) >= len(clip.words) - 1  # cutting the stream after a word may cost one of them
    for word, (start, _) in matching:
        assert word.start_s == pytest.approx(start, abs=0.35)


async def test_flush_without_audio_answers_at_once(engines):
    async with opened(engines) as session:
        for _ in range(3):
            await session.flush()
        await session.end()
        assert await collect(session) == [Flushed(), Flushed(), Flushed(), Done(0.0)]


async def test_a_turn_ends_once_after_speech(engines, clip):
    async with opened(engines) as session:
        reading = asyncio.create_task(collect(session))
        await speak(session, np.concatenate([clip.samples, np.zeros(5 * SAMPLE_RATE_HZ, np.float32)]))
        await session.end()
        events = await reading
    last_word = max(index for index, event in enumerate(events) if isinstance(event, Word))
    assert [type(event) for event in events[last_word + 1 :]] == [TurnEnd, Done]


async def test_a_fast_feeder_is_held_back_to_a_window(demo_model, clip):
    """An engine that holds no more than a window drops the connection of whoever sends more."""
    async with (
        running_engines(demo_model, engine=EngineSettings(queue_frames=4)) as engines,
        opened(engines, window_frames=4) as session,
    ):
        reading = asyncio.create_task(collect(session))
        await session.feed(clip.samples)
        await session.end()
        assert words(await reading) == clip.words
        assert engines.link.is_open


async def test_a_reader_that_stops_holds_the_feeder_back_and_loses_nothing(engines, clip):
    async with opened(engines, event_buffer=16) as session:
        feeding = asyncio.create_task(speak(session, np.tile(clip.samples, 6)))
        await asyncio.sleep(2)
        assert not feeding.done()
        reading = asyncio.create_task(collect(session))
        await feeding
        await session.end()
        assert len(words(await reading)) >= 6 * len(clip.words) - 3


async def test_no_audio_for_too_long_ends_the_session(engines, clip):
    async with opened(engines, idle_audio_timeout_seconds=0.3) as session:
        await session.feed(clip.samples[:10_000])
        with pytest.raises(IdleTimeout, match=r"got none for 0\.3 s"):
            await collect(session)
        with pytest.raises(IdleTimeout):
            await session.feed(clip.samples[:10])


async def test_the_longest_duration_ends_the_session_although_audio_comes(engines, clip):
    async with opened(engines, max_session_seconds=0.5) as session:
        with pytest.raises(SessionTooLong):
            while True:
                await session.feed(clip.samples[:1_000])
                await asyncio.sleep(0.02)


async def test_calls_in_the_wrong_order_are_refused(engines, clip):
    session = new_session(engines)
    with pytest.raises(InvalidMessage, match="live, this one is new"):
        await session.feed(clip.samples)
    await session.open()
    await session.end()
    await session.end()
    for call in (session.feed(clip.samples), session.flush()):
        with pytest.raises(InvalidMessage, match="expected nothing after the end of the audio"):
            await call
    await session.close()
    with pytest.raises(InvalidMessage, match="this one is over"):
        await session.flush()


async def test_close_is_safe_at_any_moment_and_frees_the_slot(engines, clip):
    session = new_session(engines)
    await session.close()
    for wait_s in (0.0, 0.01, 0.1):
        async with opened(engines) as session:
            feeding = asyncio.create_task(speak(session, np.tile(clip.samples, 10)))
            reading = asyncio.create_task(collect(session))
            await asyncio.sleep(wait_s)
            for task in (feeding, reading):
                task.cancel()
            await asyncio.gather(feeding, reading, return_exceptions=True)
        await session.close()
        await no_slot_used(engines)


async def test_full_is_at_capacity(engines):
    sessions = [new_session(engines) for _ in range(8)]
    for session in sessions:
        await session.open()
    with pytest.raises(AtCapacity):
        await new_session(engines).open()
    for session in sessions:
        await session.close()


async def test_the_slot_is_free_before_the_client_hears_that_it_is_over(engines, clip):
    async with opened(engines) as session:
        reading = session.events()
        await session.feed(clip.samples[:CHUNK])
        await session.end()
        async for _, event in reading:
            if isinstance(event, Done):
                assert engines.leases == 0


async def tokens_of(engines: DirectEngines, samples: np.ndarray, disturb=None, **settings) -> tuple[list, list]:
    """Events without times, and statuses, of a session that is disturbed after each second of audio."""
    async with opened(engines, **settings) as session:
        reading = asyncio.create_task(collect(session))
        for number, start in enumerate(range(0, len(samples), SAMPLE_RATE_HZ)):
            await speak(session, samples[start : start + SAMPLE_RATE_HZ])
            if disturb:
                await disturb(number, session)
        await session.end()
        events = await reading
    return [e for e in events if not isinstance(e, Status)], [e.state for e in events if isinstance(e, Status)]


async def test_a_session_survives_the_loss_of_its_engine_without_losing_or_doubling_anything(
    demo_model, other_model, clip
):
    async with running_engines(demo_model) as engines:
        undisturbed, _ = await tokens_of(engines, clip.samples)

    async with running_engines(demo_model, other_model) as engines:

        async def kill(number: int, _: Session) -> None:
            if number == 3:
                await engines.kill(0)

        disturbed, states = await tokens_of(engines, clip.samples, kill)
    assert disturbed == undisturbed
    assert states == ["migrating", "live"]


async def test_a_session_leaves_a_draining_engine_as_often_as_it_is_told(demo_model, other_model, clip):
    async with running_engines(demo_model) as engines:
        undisturbed, _ = await tokens_of(engines, clip.samples)

    async with running_engines(demo_model, other_model) as engines:

        async def drain(number: int, _: Session) -> None:
            engines.engines.reverse()
            engines.engines[1][1].announce_draining()

        disturbed, states = await tokens_of(engines, clip.samples, drain)
        assert states.count("live") >= 4
    assert disturbed == undisturbed


async def test_a_session_waits_for_a_replacement_and_goes_on(demo_model, other_model, clip):
    async with running_engines(demo_model, other_model) as engines:
        undisturbed, _ = await tokens_of(engines, clip.samples)
        spare = engines.engines.pop()

        async def kill_and_replace(number: int, _: Session) -> None:
            if number == 2:
                await engines.kill(0)
                asyncio.get_running_loop().call_later(1.5, engines.engines.append, spare)

        disturbed, states = await tokens_of(engines, clip.samples, kill_and_replace)
    assert disturbed == undisturbed
    assert states == ["migrating", "live"]


async def test_a_session_whose_engine_has_no_replacement_ends_with_its_error(engines, clip):
    async with opened(engines, move_timeout_seconds=0.5) as session:
        reading = asyncio.create_task(collect(session))
        await session.feed(clip.samples[:10_000])
        await engines.kill(0)
        with pytest.raises(EngineLost):
            await reading
        with pytest.raises(EngineLost):
            await speak(session, np.tile(clip.samples, 2))


async def test_a_silent_session_gives_its_slot_up_and_comes_back(engines, clip):
    undisturbed, _ = await tokens_of(engines, clip.samples)

    async def pause(number: int, _: Session) -> None:
        if number in (1, 3):
            await no_slot_used(engines)

    disturbed, states = await tokens_of(engines, clip.samples, pause, park_after_seconds=0.2)
    assert disturbed == undisturbed
    assert states[:6] == ["parked", "migrating", "live"] * 2


async def test_nobody_new_is_refused_while_a_parked_session_takes_one_of_several_free_slots(engines, clip, monkeypatch):
    is_opening, may_open, opens = asyncio.Event(), asyncio.Event(), engines.open

    async def open_late(*arguments, **options):
        is_opening.set()
        await may_open.wait()
        return await opens(*arguments, **options)

    async with opened(engines, park_after_seconds=0.2) as session, asyncio.timeout(60):
        reading = asyncio.create_task(collect(session))
        await speak(session, clip.samples)
        await no_slot_used(engines)
        monkeypatch.setattr(engines, "open", open_late)
        await session.feed(clip.samples[:CHUNK])
        await is_opening.wait()
        monkeypatch.setattr(engines, "open", opens)
        other = Session("session-2", session.model, SessionSettings(), IngressMetrics(CollectorRegistry()))
        async for _ in session.model.admission.enter(other.open, wait_s=0.0):
            pass
        assert other.standing == "live"
        await other.close()
        may_open.set()
        await session.end()
        assert await reading


async def test_a_model_that_fails_on_every_engine_ends_the_session_with_its_error(demo_model, clip):
    class Failing:
        def __getattr__(self, name):
            return getattr(demo_model, name)

        def step(self, slots, frames):
            raise RuntimeError("no such kernel")

    async with running_engines(Failing()) as engines, opened(engines, move_timeout_seconds=2) as session:
        await session.feed(clip.samples[:10_000])
        with pytest.raises(StepFailed):
            await collect(session)


async def test_a_storm_of_flushes_is_held_back_until_somebody_reads(engines):
    async with opened(engines, event_buffer=16) as session:

        async def storm() -> None:
            for _ in range(100):
                await session.flush()
            await session.end()

        storming = asyncio.create_task(storm())
        await asyncio.sleep(0.2)
        assert not storming.done()
        assert await collect(session) == [Flushed()] * 100 + [Done(0.0)]


async def test_words_said_before_a_mistake_come_before_its_error(engines, clip):
    """Also where the mistake comes behind the end, whose Done then does not come."""
    for ended in (False, True):
        async with opened(engines) as session:
            heard: list = []

            async def listen(session: Session, heard: list) -> None:
                async for _, event in session.events():
                    heard.append(event)

            reading = asyncio.create_task(listen(session, heard))
            await speak(session, clip.samples)
            if ended:
                await session.end()
            await session.end_with_mistake(InvalidMessage("expected audio, got poetry"))
            with pytest.raises(InvalidMessage, match="poetry"):
                await reading
            assert words(heard) == clip.words
            assert not any(isinstance(event, Done) for event in heard)


async def test_the_metrics_count_what_happened(engines, clip):
    session = new_session(engines)
    await session.open()
    reading = asyncio.create_task(collect(session))
    await speak(session, clip.samples)
    await session.end()
    await reading
    await session.close()
    value = session._metrics.registry.get_sample_value
    assert value("stt_words_total") == len(clip.words)
    assert value("stt_tokens_total") >= len(clip.words)
    assert value("stt_frames_total") >= len(clip.samples) / 1_920
    assert value("stt_result_seconds_count") == value("stt_frames_total")
    assert value("stt_first_token_seconds_count") == 1
    assert value("stt_admission_seconds_count") == 1
