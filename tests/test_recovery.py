"""Decoders that fall silent or repeat themselves: alone, and in a session with a model that does."""

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from serve_app.session.core import Done
from serve_app.session.recovery import Recovery
from serve_app.session.session import Session
from serve_app.settings import ModelSettings, SessionSettings
from serve_app.speech import FRAME_SAMPLES, PADDING_TOKEN, FrameResult
from serve_app.telemetry import IngressMetrics
from serve_app.transcript import Token, Word
from tests.support import running_engines, served

LOUD = np.full((1, FRAME_SAMPLES), 0.1, np.float32)
QUIET = np.full((1, FRAME_SAMPLES), 0.001, np.float32)


def result(token: int) -> FrameResult:
    return FrameResult(0, token, (), np.zeros(2, np.int16))


def watch(settings: ModelSettings, *frames: tuple[np.ndarray, int]) -> list[str | None]:
    recovery = Recovery(settings)
    said = []
    for frame, token in frames:
        recovery.sent(frame)
        said.append(recovery.heard(result(token)))
    return said


def test_speech_without_words_is_noticed_later_each_time_and_words_end_that():
    settings = ModelSettings(source="x", restart_when_silent_seconds=0.8)
    said = watch(settings, *[(LOUD, PADDING_TOKEN)] * 70, (LOUD, 7), *[(LOUD, PADDING_TOKEN)] * 10)
    assert [index for index, illness in enumerate(said) if illness == "silent"] == [9, 29, 69, 80]


def test_silence_and_speech_with_words_are_healthy():
    settings = ModelSettings(source="x", restart_when_silent_seconds=0.8, restart_when_repeated=4)
    assert not any(watch(settings, *[(QUIET, PADDING_TOKEN)] * 500))
    assert not any(watch(settings, *[(LOUD, 5 + n % 11 * (n % 3)) for n in range(60)]))


def test_models_without_the_problem_are_not_watched():
    assert not any(watch(ModelSettings(source="x"), *[(LOUD, PADDING_TOKEN)] * 1_000, *[(LOUD, 7)] * 1_000))


@given(st.lists(st.integers(4, 99), min_size=1, max_size=16), st.lists(st.integers(100, 200), max_size=20))
def test_a_phrase_said_too_often_is_noticed_whatever_came_before(phrase, before):
    settings = ModelSettings(source="x", restart_when_repeated=6)
    frames = [(LOUD, token) for token in [*before, *phrase * 6]]
    assert "repeating" in watch(settings, *frames)


@given(st.lists(st.integers(4, 99), min_size=1, max_size=16, unique=True))
def test_a_phrase_said_less_often_is_speech(phrase):
    settings = ModelSettings(source="x", restart_when_repeated=6)
    assert not any(watch(settings, *[(LOUD, token) for token in phrase * 5]))


class FallsIll:
    """A model that says nothing, or one thing again and again, from some step on until a stream starts anew."""

    def __init__(self, model, after_steps: int, token: int) -> None:
        self._model, self._after, self._token = model, after_steps, token
        self.steps = 0
        self.ill = False

    def __getattr__(self, name):
        return getattr(self._model, name)

    def prefill(self, slots, histories):
        if slots and self.steps > self._after:
            self.ill = False
        return self._model.prefill(slots, histories)

    def step(self, slots, frames):
        output = self._model.step(slots, frames)
        self.steps += 1
        if self.steps == self._after:
            self.ill = True
        if self.ill:
            output.tokens[:] = self._token
        return output


@pytest.mark.parametrize(
    ("token", "limits", "reason"),
    [
        (PADDING_TOKEN, {"restart_when_silent_seconds": 1.0}, "silent"),
        (9, {"restart_when_repeated": 12}, "repeating"),
    ],
)
async def test_a_session_whose_decoder_falls_ill_gets_well(demo_model, clip, token, limits, reason):
    model = FallsIll(demo_model, after_steps=30, token=token)
    metrics = IngressMetrics(CollectorRegistry())
    async with running_engines(model) as engines:
        session = Session("s", served(engines, **limits), SessionSettings(), metrics)
        await session.open()
        heard = []

        async def listen() -> None:
            async for _, event in session.events():
                heard.append(event)

        reading = asyncio.create_task(listen())
        await session.feed(np.tile(clip.samples, 3))
        await session.end()
        await reading
        await session.close()
    assert metrics.registry.get_sample_value("stt_decoder_restarts_total", {"reason": reason}) == 1
    words = [event.text for event in heard if isinstance(event, Word)]
    assert words[-2 * len(clip.words) :] == clip.words * 2
    assert any(isinstance(event, Token) for event in heard)
    assert isinstance(heard[-1], Done)
