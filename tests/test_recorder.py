import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serve_app.session.recorder import CODEC_WARMTH, Recorder
from serve_app.speech import FRAME_SAMPLES, FrameResult, ModelInfo

WINDOW = 4
INFO = ModelInfo(
    name="tiny", pieces=(), delay_frames=6, silence_prefix_frames=0, context_frames=5, codec_context_frames=3,
    codebooks=2, pause_heads=0,
)  # fmt: skip


def frames(start: int, stop: int) -> np.ndarray:
    return np.repeat(np.arange(start, stop, dtype=np.float32)[:, None], FRAME_SAMPLES, axis=1)


@given(st.lists(st.tuples(st.integers(0, WINDOW), st.integers(0, WINDOW)), max_size=30))
def test_the_history_is_the_latest_context_and_the_unanswered_frames_are_all_there(schedule):
    """Whatever the order of sending and answering, within the window."""
    recorder = Recorder(INFO, WINDOW)
    for send, answer in schedule:
        send = min(send, WINDOW - (recorder.sent - recorder.answered))
        recorder.add_frames(frames(recorder.sent, recorder.sent + send))
        for _ in range(min(answer, recorder.sent - recorder.answered)):
            index = recorder.answered
            recorder.add_result(FrameResult(index, 100 + index, (), np.array([index, -index], np.int16)))

        history = recorder.history()
        done = recorder.answered
        kept = range(max(0, done - INFO.context_frames - 1), done)
        warm = range(max(0, done - CODEC_WARMTH * INFO.codec_context_frames), done)
        assert history.next_frame == done
        assert history.tokens.tolist() == [100 + index for index in kept]
        assert history.codes.tolist() == [[index, -index] for index in kept]
        assert history.audio[:, 0].tolist() == list(warm)
        assert recorder.unanswered[:, 0].tolist() == list(range(done, recorder.sent))


def test_an_empty_history_is_that_of_a_new_stream():
    history = Recorder(INFO, WINDOW).history()
    assert history.next_frame == 0
    assert history.tokens.shape == (0,)
    assert history.codes.shape == (0, INFO.codebooks)
    assert history.audio.shape == (0, FRAME_SAMPLES)
