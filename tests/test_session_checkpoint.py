"""Sessions that go on elsewhere, from what a vault has of them. Real engine, real link, no Ray."""

import asyncio
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from prometheus_client import CollectorRegistry

from serve_app.errors import InvalidMessage, UnknownSession
from serve_app.session import checkpoint
from serve_app.session.checkpoint import Restored
from serve_app.session.core import Done, Event, Status
from serve_app.session.recorder import Recorder
from serve_app.session.session import Marks, Session
from serve_app.session.vault import Checkpoint, Saved, Vault
from serve_app.settings import SessionSettings
from serve_app.speech import FRAME_SAMPLES, ModelInfo
from serve_app.telemetry import IngressMetrics
from serve_app.transcript import Vocabulary, Word
from tests.support import DirectEngines, served

CHUNK = 2_000
OWNER = "me"


def new_session(engines: DirectEngines, restored: Restored | None = None, **settings) -> Session:
    metrics = IngressMetrics(CollectorRegistry())
    return Session("session-1", served(engines), SessionSettings(**settings), metrics, restored)


class Client:
    """Sends a clip and flushes in the middle of it; knows what it has seen."""

    def __init__(self, samples: np.ndarray) -> None:
        self.samples = samples
        self.seen = 0
        self.heard: list[Event] = []

    async def talk(self, session: Session) -> None:
        await session.go_on()
        samples, flushes, ended = session.received
        middle = len(self.samples) // 2
        while samples < len(self.samples):
            if samples >= middle and not flushes:
                await session.flush()
                flushes += 1
            chunk = self.samples[samples : samples + CHUNK]
            await session.feed(chunk)
            samples += len(chunk)
        if not ended:
            await session.end()

    async def listen(self, session: Session) -> None:
        async for number, event in session.events():
            if not isinstance(event, Status):
                assert number == self.seen + 1
                self.heard.append(event)
                self.seen = number


async def run_for(client: Client, session: Session, seconds: float | None) -> None:
    tasks = [asyncio.create_task(client.talk(session)), asyncio.create_task(client.listen(session))]
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results), results


def save(vault: Vault, session: Session, since: Marks) -> Marks:
    marks = session.marks
    state, pieces = session.checkpoint(since)
    answer = vault.save([Checkpoint("hold", ("token",), OWNER, state, pieces)], [], [])
    assert not answer.incomplete
    return marks


def take(vault: Vault, info: ModelInfo, window: int = 24) -> Restored:
    saved = vault.take("token", OWNER, "elsewhere")
    assert saved is not None
    vault.save([], [], ["hold"])  # one hold serves the whole test
    vault._taken.clear()
    return checkpoint.restore(saved, lambda name: info, window)


@pytest.mark.parametrize("behind", [False, True])
async def test_killed_again_and_again_the_events_are_those_of_an_undisturbed_session(engines, clip, behind):
    """The session dies with its ingress, at any moment; `behind`: its last checkpoint is a while older than that."""
    undisturbed = Client(clip.samples)
    session = new_session(engines)
    await session.open()
    await run_for(undisturbed, session, None)
    await session.close()

    vault, client, draw = Vault(60, 2**30), Client(clip.samples), random.Random(7)
    session = new_session(engines)
    await session.open()
    marks = Marks()
    for deaths in range(20):
        for _ in range(3):
            await run_for(client, session, draw.uniform(0.005, 0.03))
            marks = save(vault, session, marks)
        if behind:
            await run_for(client, session, draw.uniform(0.005, 0.03))
        await session.close()
        if client.heard and isinstance(client.heard[-1], Done):
            assert deaths >= 2
            break
        session = new_session(engines, take(vault, engines.info))
        session.resume(client.seen)
        marks = Marks()
    else:
        await run_for(client, session, None)
    await session.close()
    assert isinstance(client.heard[-1], Done)
    assert without_confidence(client.heard) == without_confidence(undisturbed.heard)
    # A prefill computes what single steps have computed, but for the last bits.
    np.testing.assert_allclose(confidences(client.heard), confidences(undisturbed.heard), atol=1e-4)


def without_confidence(events: list[Event]) -> list[Event]:
    return [replace(event, confidence=0.0) if isinstance(event, Word) else event for event in events]


def confidences(events: list[Event]) -> list[float]:
    return [event.confidence for event in events if isinstance(event, Word)]


async def test_events_that_are_gone_cannot_be_resumed_from(engines, clip):
    session = new_session(engines, event_buffer=16)
    await session.open()
    client = Client(np.tile(clip.samples, 3))
    await run_for(client, session, None)
    await session.close()
    vault = Vault(60, 2**30)
    for number, fits in ((client.seen - 5, True), (client.seen - 30, False), (client.seen + 1_000, False)):
        save(vault, session, Marks())
        again = new_session(engines, take(vault, engines.info), event_buffer=16)
        if fits:
            again.resume(number)
        else:
            with pytest.raises(InvalidMessage, match="cannot resume from there"):
                again.resume(number)
        await again.close()


async def test_a_session_of_another_model_does_not_go_on(engines, clip):
    session = new_session(engines)
    await session.open()
    await session.feed(clip.samples[:30_000])
    await session.close()
    vault = Vault(60, 2**30)
    save(vault, session, Marks())
    other = ModelInfo(**{**engines.info.__dict__, "name": "another model"})
    with pytest.raises(UnknownSession, match="another model"):
        take(vault, other)


class _Evil:
    def __reduce__(self):
        return eval, ("1 + 1",)


@pytest.mark.parametrize(
    "state", [b"", b"not a pickle", pickle.dumps(_Evil()), pickle.dumps(print), pickle.dumps([1]), pickle.dumps("x")]
)
async def test_what_is_no_session_is_not_restored_and_not_run(engines, state):
    with pytest.raises(UnknownSession):
        checkpoint.restore(Saved(b"demo\0" + state, ((), (), ())), lambda name: engines.info, 24)


def test_the_vocabulary_does_not_travel():
    assert len(checkpoint._pickled(Vocabulary(["piece"] * 1_000))) < 100


@given(
    st.one_of(
        st_numpy.arrays(np.float32, (2, FRAME_SAMPLES), elements=st.floats(-4, 4, width=32)),
        st_numpy.arrays(np.int16, (2, FRAME_SAMPLES)).map(lambda steps: steps / np.float32(32_768)),
        st.just(np.full((1, FRAME_SAMPLES), -1, np.float32)),
    )
)
def test_audio_travels_unchanged_and_16_bit_audio_in_16_bits(frames):
    info = ModelInfo(
        name="tiny", pieces=(), delay_frames=6, silence_prefix_frames=0, context_frames=5, codec_context_frames=3,
        codebooks=2, pause_heads=0,
    )  # fmt: skip
    recorder = Recorder(info, 4)
    recorder.add_frames(frames.astype(np.float32))
    piece = checkpoint.audio_piece(recorder, 0)
    np.testing.assert_array_equal(checkpoint._unpack_audio([piece.data]), frames.astype(np.float32))
    if np.array_equal(frames * 32_768, np.rint(frames * 32_768)) and abs(frames).max() < 1:
        assert len(piece.data) == 1 + 2 * frames.size
