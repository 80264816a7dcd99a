import threading
import time
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from serve_app.engine.batcher import FAILED_STEPS_LIMIT, Batcher
from serve_app.errors import AtCapacity, SpeechError, StepFailed
from serve_app.settings import EngineSettings
from serve_app.speech import FRAME_SAMPLES, FrameResults, History

TIMEOUT_SECONDS = 20


class Outcome:
    """Collects what a batcher hands out, by stream."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = defaultdict(list)
        self.frames: dict[int, list[int]] = defaultdict(list)
        self.codes: dict[int, list[np.ndarray]] = defaultdict(list)
        self.errors: dict[int, SpeechError] = {}
        self.steps: list[list[int]] = []
        self._changed = threading.Condition()

    def on_results(self, results: FrameResults) -> None:
        with self._changed:
            self.steps.append(results.streams.tolist())
            for row, stream in enumerate(results.streams.tolist()):
                self.tokens[stream].append(int(results.tokens[row]))
                self.frames[stream].append(int(results.frames[row]))
                self.codes[stream].append(results.codes[row])
            self._changed.notify_all()

    def on_failure(self, streams: list[int], error: SpeechError) -> None:
        with self._changed:
            for stream in streams:
                self.errors[stream] = error
            self._changed.notify_all()

    def wait(self, condition) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, TIMEOUT_SECONDS)

    def wait_for_results(self, stream: int, count: int) -> None:
        self.wait(lambda: len(self.tokens[stream]) >= count)


class Faulty:
    """The real model, with a step or a prefill that fails or blocks when a test says so."""

    def __init__(self, model) -> None:
        self._model = model
        self.fail_steps = 0
        self.fail_prefills = 0
        self.fail_resets = 0
        self.blocked: threading.Event | None = None
        self.stepping = threading.Event()

    def __getattr__(self, name: str):
        return getattr(self._model, name)

    def reset(self, slots):
        if self.fail_resets:
            self.fail_resets -= 1
            raise RuntimeError("device fell off the bus")
        self._model.reset(slots)

    def step(self, slots, frames):
        self.stepping.set()
        if self.blocked:
            assert self.blocked.wait(TIMEOUT_SECONDS)
        if self.fail_steps:
            self.fail_steps -= 1
            raise RuntimeError("device fell off the bus")
        return self._model.step(slots, frames)

    def prefill(self, slots, histories):
        if self.fail_prefills:
            self.fail_prefills -= 1
            yield
            raise RuntimeError("history does not fit")
        yield from self._model.prefill(slots, histories)


@pytest.fixture
def running(demo_model):
    """Makes running batchers: (batcher, its outcome)."""
    made: list[Batcher] = []

    def make(model=None, **engine) -> tuple[Batcher, Outcome]:
        outcome = Outcome()
        batcher = Batcher(
            model or demo_model,
            on_results=outcome.on_results,
            on_failure=outcome.on_failure,
            settings=EngineSettings(**engine),
        )
        made.append(batcher)
        batcher.start()
        return batcher, outcome

    yield make
    for batcher in made:
        batcher.stop(TIMEOUT_SECONDS)


def alone(model, frames) -> list[int]:
    """Tokens of a stream that has the model for itself."""
    slot = np.array([0])
    model.reset(slot)
    return [int(model.step(slot, frame[None]).tokens[0]) for frame in frames]


def feed_all(batcher: Batcher, outcome: Outcome, stream: int, frames, piece: int = 16) -> None:
    for start in range(0, len(frames), piece):
        assert batcher.feed(stream, frames[start : start + piece])
        outcome.wait_for_results(stream, min(start + piece, len(frames)))


def test_streams_side_by_side_get_the_tokens_they_get_alone(running, demo_model, clips):
    expected = [alone(demo_model, clip.frames[:60]) for clip in clips[:4]]
    batcher, outcome = running()
    streams = [batcher.open() for _ in range(4)]
    for start in range(0, 60, 5):
        for stream, clip in zip(streams, clips, strict=False):
            assert batcher.feed(stream, clip.frames[:60][start : start + 5])
        for stream in streams:
            outcome.wait_for_results(stream, start + 5)
    assert [outcome.tokens[stream] for stream in streams] == expected
    assert all(outcome.frames[stream] == list(range(60)) for stream in streams)
    assert max(len(step) for step in outcome.steps) > 1


@hypothesis_settings(max_examples=5, deadline=None)
@given(schedule=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.booleans()), max_size=40))
def test_any_schedule_of_opens_feeds_and_closes_leaves_every_stream_its_own_tokens(demo_model, clips, schedule):
    frames = clips[0].frames[:24]
    expected = alone(demo_model, frames)
    outcome = Outcome()
    batcher = Batcher(
        demo_model, on_results=outcome.on_results, on_failure=outcome.on_failure, settings=EngineSettings()
    )
    batcher.start()
    try:
        open_streams: dict[int, tuple[int, int]] = {}  # by place: stream, frames fed
        fed: dict[int, int] = {}
        for place, count, close in schedule:
            if place not in open_streams:
                open_streams[place] = batcher.open(), 0
            stream, done = open_streams[place]
            count = min(count, len(frames) - done)
            assert batcher.feed(stream, frames[done : done + count])
            open_streams[place] = stream, done + count
            if close:
                batcher.close(stream)
                del open_streams[place]
            else:
                fed[stream] = done + count
        for stream, _ in open_streams.values():
            outcome.wait_for_results(stream, fed[stream])
    finally:
        batcher.stop(TIMEOUT_SECONDS)
    assert not outcome.errors
    for stream, tokens in outcome.tokens.items():
        assert tokens == expected[: len(tokens)]
        assert outcome.frames[stream] == list(range(len(tokens)))


def test_full_means_at_capacity_and_a_closed_slot_is_free_again(running, demo_model):
    batcher, _ = running()
    streams = [batcher.open() for _ in range(demo_model.slots)]
    with pytest.raises(AtCapacity, match=f"all {demo_model.slots} slots"):
        batcher.open()
    batcher.close(streams[3])
    batcher.close(streams[3])
    again = batcher.open()
    assert again != streams[3]
    assert batcher.load().slots_used == demo_model.slots


def test_no_headroom_means_at_capacity_for_the_next_stream_only(running, clip):
    batcher, outcome = running(min_headroom=0.999)
    stream = batcher.open()
    feed_all(batcher, outcome, stream, clip.frames[:40])
    with pytest.raises(AtCapacity, match="headroom"):
        batcher.open()
    assert batcher.feed(stream, clip.frames[40:41])
    outcome.wait_for_results(stream, 41)


def test_more_frames_than_the_queue_holds_are_not_taken(running, clip, demo_model):
    model = Faulty(demo_model)
    model.blocked = threading.Event()
    batcher, outcome = running(model, queue_frames=4)
    stream = batcher.open()
    assert batcher.feed(stream, clip.frames[:1])
    assert model.stepping.wait(TIMEOUT_SECONDS)
    assert batcher.feed(stream, clip.frames[1:5])
    assert not batcher.feed(stream, clip.frames[5:6])
    model.blocked.set()
    outcome.wait_for_results(stream, 5)


def test_a_slot_closed_and_reused_during_a_step_starts_afresh(running, clip, demo_model):
    expected = alone(demo_model, clip.frames[:20])
    model = Faulty(demo_model)
    batcher, outcome = running(model)
    first = batcher.open()
    feed_all(batcher, outcome, first, clip.frames[30:40])
    model.blocked = threading.Event()
    model.stepping.clear()
    assert batcher.feed(first, clip.frames[40:44])
    assert model.stepping.wait(TIMEOUT_SECONDS)
    batcher.close(first)
    second = batcher.open()
    assert batcher.feed(second, clip.frames[:16])
    model.blocked.set()
    model.blocked = None
    outcome.wait_for_results(second, 16)
    feed_all(batcher, outcome, second, clip.frames[16:20])
    outcome.wait_for_results(second, 20)
    assert outcome.tokens[second] == expected
    assert batcher.feed(first, clip.frames[:1]), "frames of a closed stream are dropped"
    assert len(outcome.tokens[first]) <= 11


def test_a_failing_step_ends_its_own_streams_with_the_error_and_no_others(running, clip, demo_model):
    expected = alone(demo_model, clip.frames[:20])
    model = Faulty(demo_model)
    batcher, outcome = running(model)
    bystander, victim = batcher.open(), batcher.open()
    feed_all(batcher, outcome, bystander, clip.frames[:10])
    model.fail_steps = 1
    assert batcher.feed(victim, clip.frames[:1])
    outcome.wait(lambda: outcome.errors)
    assert list(outcome.errors) == [victim]
    assert isinstance(outcome.errors[victim], StepFailed)
    assert "device fell off the bus" in outcome.errors[victim].message
    assert not batcher.is_open(victim)
    feed_all(batcher, outcome, bystander, clip.frames[10:20], piece=10)
    outcome.wait_for_results(bystander, 20)
    assert outcome.tokens[bystander] == expected
    assert batcher.broken is None


def test_steps_that_keep_failing_break_the_batcher(running, clip, demo_model):
    model = Faulty(demo_model)
    batcher, outcome = running(model)
    idle = batcher.open()
    model.fail_steps = FAILED_STEPS_LIMIT
    for _ in range(FAILED_STEPS_LIMIT):
        stream = batcher.open()
        assert batcher.feed(stream, clip.frames[:1])
        outcome.wait(lambda stream=stream: stream in outcome.errors)
    outcome.wait(lambda: idle in outcome.errors)
    assert isinstance(batcher.broken, StepFailed)
    with pytest.raises(StepFailed, match="this engine has stopped"):
        batcher.open()


def test_resets_that_keep_failing_break_the_batcher_although_steps_work(running, clip, demo_model):
    model = Faulty(demo_model)
    batcher, outcome = running(model)
    working = batcher.open()
    feed_all(batcher, outcome, working, clip.frames[:2])
    model.fail_resets = FAILED_STEPS_LIMIT
    for frame in clip.frames[2 : 2 + FAILED_STEPS_LIMIT]:
        stream = batcher.open()
        assert batcher.feed(working, frame[None])
        outcome.wait(lambda stream=stream: stream in outcome.errors)
    outcome.wait(lambda: working in outcome.errors)
    assert "resets failed" in outcome.errors[working].message


def test_a_stream_continues_from_its_history(running, clip, demo_model):
    expected = alone(demo_model, clip.frames[:70])
    batcher, outcome = running()
    first, other = batcher.open(), batcher.open()
    feed_all(batcher, outcome, first, clip.frames[:50])
    history = History(
        next_frame=50,
        tokens=np.array(outcome.tokens[first], dtype=np.int32),
        codes=np.stack(outcome.codes[first]),
        audio=clip.frames[:50],
    )
    batcher.close(first)
    assert batcher.feed(other, clip.frames[:10])
    moved = batcher.open(history)
    assert batcher.feed(moved, clip.frames[50:70])
    outcome.wait_for_results(moved, 20)
    outcome.wait_for_results(other, 10)
    assert outcome.tokens[moved] == expected[50:]
    assert outcome.frames[moved] == list(range(50, 70))
    assert outcome.tokens[other] == expected[:10]


def test_a_history_that_fails_ends_its_own_stream_only(running, clip, demo_model):
    model = Faulty(demo_model)
    batcher, outcome = running(model)
    bystander = batcher.open()
    model.fail_prefills = 1
    nothing = History(0, np.zeros(0, np.int32), np.zeros((0, demo_model.info.codebooks), np.int16), clip.frames[:0])
    victim = batcher.open(nothing)
    outcome.wait(lambda: victim in outcome.errors)
    feed_all(batcher, outcome, bystander, clip.frames[:5])
    assert list(outcome.errors) == [victim]
    assert batcher.load().slots_used == 1


def test_a_history_of_another_model_ends_its_own_stream_and_the_steps_go_on(running, clip, demo_model):
    batcher, outcome = running()
    bystander = batcher.open()
    wrong = History(1, np.zeros(1, np.int32), np.zeros((1, demo_model.info.codebooks + 1), np.int16), clip.frames[:1])
    victim = batcher.open(wrong)
    outcome.wait(lambda: victim in outcome.errors)
    assert "does not fit the model" in outcome.errors[victim].message
    feed_all(batcher, outcome, bystander, clip.frames[:5])
    assert batcher.broken is None
    assert batcher.load().slots_used == 1


def test_whatever_ends_the_step_loop_shows_as_broken(running, clip):
    batcher, outcome = running()
    idle, stream = batcher.open(), batcher.open()

    def nobody_there(_: FrameResults) -> None:
        raise LookupError("nobody wants these results")

    batcher._on_results = nobody_there
    assert batcher.feed(stream, clip.frames[:1])
    outcome.wait(lambda: idle in outcome.errors)
    assert isinstance(batcher.broken, StepFailed)
    assert "nobody wants these results" in batcher.broken.message


def test_a_stream_closed_during_its_prefill_frees_its_slot(running, clip, demo_model):
    batcher, outcome = running()
    frames = clip.frames[:60]
    stream = batcher.open()
    feed_all(batcher, outcome, stream, frames)
    history = History(60, np.array(outcome.tokens[stream], np.int32), np.stack(outcome.codes[stream]), frames)
    batcher.close(stream)
    for _ in range(3):
        batcher.close(batcher.open(history))
    deadline = time.monotonic() + TIMEOUT_SECONDS
    streams = []
    while len(streams) < demo_model.slots and time.monotonic() < deadline:
        try:
            streams.append(batcher.open())
        except AtCapacity:
            time.sleep(0.01)
    assert len(streams) == demo_model.slots


def test_backlogs_do_not_keep_live_frames_from_the_next_step(running, clip, demo_model):
    """Whatever the backlog, a live frame takes part in the first step that starts after it came."""
    model = Faulty(demo_model)
    batcher, outcome = running(model, queue_frames=64)
    backlogs = [batcher.open() for _ in range(4)]
    for stream in backlogs:  # use the credit up
        feed_all(batcher, outcome, stream, np.tile(clip.frames[:1], (60, 1)), piece=60)
    live = batcher.open()
    model.blocked = threading.Event()
    model.stepping.clear()
    for stream in backlogs:
        assert batcher.feed(stream, np.tile(clip.frames[:1], (40, 1)))
    assert model.stepping.wait(TIMEOUT_SECONDS)
    steps_before = len(outcome.steps)
    assert batcher.feed(live, clip.frames[:1])
    model.blocked.set()
    outcome.wait_for_results(live, 1)
    assert live in outcome.steps[steps_before + 1]
    for stream in backlogs:
        outcome.wait_for_results(stream, 100)


def test_stop_ends_the_thread_and_frames_of_wrong_shape_never_reach_the_model(demo_model):
    before = threading.enumerate()
    outcome = Outcome()
    batcher = Batcher(
        demo_model, on_results=outcome.on_results, on_failure=outcome.on_failure, settings=EngineSettings()
    )
    batcher.start()
    assert [thread.name for thread in threading.enumerate() if thread not in before] == ["step-loop"]
    stream = batcher.open()
    with pytest.raises(ValueError, match="broadcast"):
        batcher.feed(stream, np.zeros((1, FRAME_SAMPLES + 1), np.float32))
    batcher.stop()
    assert not [thread for thread in threading.enumerate() if thread not in before]
