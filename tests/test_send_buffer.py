import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from serve_app.client.send_buffer import SendBuffer
from serve_app.speech import SAMPLE_RATE_HZ

COMMANDS = st.lists(st.integers(1, 50) | st.sampled_from(["flush"]), max_size=30)


def flat(commands: list) -> list:
    """Single samples and controls, in order."""
    return [
        item for command in commands for item in (command.tolist() if isinstance(command, np.ndarray) else [command])
    ]


@given(COMMANDS, st.booleans(), st.integers(0, 2_000))
def test_what_the_server_lacks_is_the_rest_whatever_it_has_taken(commands, ends, taken):
    """The server takes commands in order, audio also in part: what is sent again is what follows."""
    buffer, sent, position = SendBuffer(), [], 0
    for command in [*commands, *(["end"] if ends else [])]:
        what = command
        if isinstance(command, int):
            what = np.arange(position, position + command, dtype=np.float32)
            position += command
        buffer.add(what)
        sent += flat([what])
    taken = min(taken, len(sent))
    samples = sum(isinstance(item, float) for item in sent[:taken])
    missing = buffer.after(samples, sent[:taken].count("flush"), "end" in sent[:taken])
    assert missing is not None
    assert flat(missing) == sent[taken:]


def test_old_audio_is_forgotten_and_cannot_be_asked_for():
    buffer = SendBuffer(seconds=1.0)
    for second in range(5):
        buffer.add(np.full(SAMPLE_RATE_HZ, second, np.float32))
    assert buffer.after(0, 0, False) is None
    assert len(flat(buffer.after(4 * SAMPLE_RATE_HZ, 0, False))) == SAMPLE_RATE_HZ


def test_a_server_that_claims_more_than_was_sent_is_not_believed():
    buffer = SendBuffer()
    buffer.add(np.zeros(10, np.float32))
    assert buffer.after(11, 0, False) is None
    assert buffer.after(10, 1, False) is None
    assert buffer.after(10, 0, False) == []


def test_with_the_end_everything_was_taken_even_a_sample_more():
    """A resampler's last samples may be one more than the client counts."""
    buffer = SendBuffer()
    buffer.add(np.zeros(100, np.float32))
    assert buffer.after(101, 0, False) is None
    assert buffer.after(101, 0, True) is None, "no end was sent"
    buffer.add("end")
    assert buffer.after(101, 0, True) == []
    assert buffer.after(100, 0, False) == ["end"]
