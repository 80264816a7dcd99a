"""Our model and moshi's batched stepping as the program drives them: the same tokens, whatever is asked of them."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from loadtest.engine.capacity import realtime_streams
from loadtest.engine.comparing import NEAR_TIE, Agreement, compare
from loadtest.engine.loads import loads
from loadtest.engine.measuring import ROUND_FRAMES, Audio, Contest, Effort, full_histories
from loadtest.engine.random_checkpoint import write_checkpoint
from loadtest.engine.sides import Ours, Said, Upstream
from serve_app.model import Checkpoint, load_checkpoint
from tests.model.moshi_reference import LM_CONFIG, MIMI_CONFIG

CPU = torch.device("cpu")
SLOTS = 4
EFFORT = Effort(audio_s=0.4, most_s=60)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny matrices, and others work on this machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def audio() -> Audio:
    return Audio()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = write_checkpoint(tmp_path_factory.mktemp("random"), LM_CONFIG, MIMI_CONFIG)
    return load_checkpoint(str(folder), device=CPU, dtype=torch.float32)


@pytest.fixture
def both(checkpoint: Checkpoint) -> Iterator[tuple[Ours, Upstream]]:
    ours = Ours(checkpoint, SLOTS)
    upstream = Upstream(checkpoint, SLOTS)
    yield ours, upstream
    upstream.close()


@pytest.mark.parametrize("age", ["early", "full"])
def test_both_say_the_same_under_every_load(checkpoint, audio, both, age: str) -> None:
    ours, upstream = both
    if age == "full":
        for side in both:
            side.fill(full_histories(checkpoint, SLOTS, audio))
    contest = Contest(checkpoint, audio, ours, upstream)
    for load in loads(SLOTS):
        if age == "early":
            for side in both:
                side.restart()
        measured = contest.measure(load, age, EFFORT)
        assert measured.agreement.tokens >= 2 * ROUND_FRAMES * len(load.slots)
        assert measured.agreement.equal, measured.agreement
        assert measured.moshi is not None
        for tally in (measured.ours, measured.moshi):
            frames = len(tally.waits_and_steps_s)
            assert tally.audio_s == pytest.approx(0.08 * frames)
            assert 3 * len(load.slots) <= frames <= 7 * len(load.slots), "the first round only warms up"
            assert bool(tally.stages_s["codec"]) == (load.name == "aligned")


def test_what_is_not_the_same_is_counted_and_followed(audio, both) -> None:
    """Ours is given another stream's audio: most codes differ, and moshi goes on with our tokens."""
    ours, upstream = both
    every, agreement = np.arange(SLOTS), Agreement()
    for frame in range(20):
        frames = audio.of(every, np.full(SLOTS, frame))
        said = ours.step(every, np.roll(frames, 1, 0))
        compare(upstream, every, upstream.step(every, frames), said, NEAR_TIE[torch.float32], agreement)
    assert agreement.tokens == 20 * SLOTS
    assert agreement.codes_different > 0
    assert agreement.different > 0
    assert not agreement.equal


def test_a_near_tie_is_no_difference(audio, both) -> None:
    _, upstream = both
    every, agreement = np.arange(SLOTS), Agreement()
    theirs = upstream.step(every, audio.of(every, every))
    other = Said((theirs.tokens + 1) % LM_CONFIG["text_card"], theirs.codes)
    compare(upstream, every, theirs, other, 1e9, agreement)
    assert (agreement.near_ties, agreement.different) == (SLOTS, 0)
    assert (upstream.shortfall(every, theirs.tokens) == 0).all()


def test_our_model_can_be_measured_alone(checkpoint, audio) -> None:
    measured = Contest(checkpoint, audio, Ours(checkpoint, 2), None).measure(loads(2)[0], "early", EFFORT)
    assert measured.moshi is None
    assert measured.ratio is None
    assert measured.ours.compute_ms_per_audio_s > 0


@pytest.mark.parametrize("age", ["early", "full"])
def test_the_search_for_more_streams_stays_within_memory(checkpoint, audio, age: str) -> None:
    contest = Contest(checkpoint, audio, Ours(checkpoint, 1), None)
    measured = [contest.measure(load, age, EFFORT) for load in loads(1)]
    assert 0 <= realtime_streams(checkpoint, audio, measured, age, most=2, max_wait_s=0.005) <= 2
