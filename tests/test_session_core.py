"""What a session makes of results, without an engine: frames where asked for, marks. Flushes: see test_session."""

import pickle

import numpy as np
import pytest

from serve_app.errors import InvalidMessage
from serve_app.session.core import MOST_MARKS, Frame, Marked, SessionCore
from serve_app.settings import ModelSettings, SessionSettings
from serve_app.speech import FRAME_SAMPLES, PADDING_TOKEN, FrameResult, ModelInfo

PREFIX, DELAY = 13, 32
INFO = ModelInfo(
    name="like stt-2.6b-en", pieces=(), delay_frames=DELAY, silence_prefix_frames=PREFIX, context_frames=375,
    codec_context_frames=125, codebooks=1, pause_heads=4,
)  # fmt: skip
PAUSES = (0.9, 0.5, 0.2, 0.1)


def new_core(tells_frames: bool = True) -> SessionCore:
    core = SessionCore(INFO, ModelSettings(source="demo"), SessionSettings())
    core.tells_frames = tells_frames
    return core


def answer(core: SessionCore, frames: int) -> list:
    """The events of the next results."""
    first = core._answered
    codes = np.zeros(1, np.int16)
    results = [FrameResult(frame, PADDING_TOKEN, PAUSES, codes) for frame in range(first, first + frames)]
    return [event for result in results for event in core.hear(result)]


def audio(frames: float) -> np.ndarray:
    return np.zeros(round(frames * FRAME_SAMPLES), np.float32)


def test_frames_are_counted_from_the_clients_first_sample_and_say_what_waits():
    core = new_core()
    core.take_audio(audio(2.5))
    assert answer(core, PREFIX) == []
    assert answer(core, 2) == [
        Frame(0, pytest.approx(0.08), PAUSES, 3 * FRAME_SAMPLES // 2, 0.0),
        Frame(1, pytest.approx(0.16), PAUSES, FRAME_SAMPLES // 2, 0.0),
    ]


def test_nobody_pays_for_frames_that_are_not_asked_for():
    core = new_core(tells_frames=False)
    core.take_audio(audio(5))
    assert answer(core, PREFIX + 5) == []


def test_a_mark_is_reached_when_the_whole_frames_before_it_and_the_delay_were_heard():
    core = new_core(tells_frames=False)
    core.take_audio(audio(4.9))
    assert core.take_mark(7, delayed=True) == []
    core.take_audio(audio(DELAY + 3))
    assert answer(core, PREFIX + 4 + DELAY - 1) == []
    assert answer(core, 1) == [Marked(7)]


def test_a_mark_without_delay_is_due_at_once_when_nothing_waits():
    core = new_core()
    answer(core, PREFIX)
    assert core.take_mark(None, delayed=False) == [Marked(None)]


def test_marks_are_bounded():
    core = new_core()
    for mark in range(MOST_MARKS):
        core.take_mark(mark, delayed=True)
    with pytest.raises(InvalidMessage, match=f"at most {MOST_MARKS} marks"):
        core.take_mark(0, delayed=True)


def test_frames_and_marks_go_on_in_another_process():
    core = new_core()
    core.take_audio(audio(3))
    core.take_mark(7, delayed=True)
    answer(core, PREFIX + 1)
    again = pickle.loads(pickle.dumps(core))
    for one in (core, again):
        one.take_audio(audio(DELAY))
    heard = answer(again, 2 + DELAY)
    assert heard == answer(core, 2 + DELAY)
    assert heard[-1] == Marked(7)
