"""A client's audio as the protocols take it."""

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.audio.formats import SAMPLE_BYTES, AudioFormat
from serve_app.audio.stream import PIECE_BYTES, AudioStream
from serve_app.errors import InvalidAudio
from tests.audio_signals import chord, cut, encoded, open_page, opus_headers, raw, snr_db

OPUS = encoded(chord(48_000, 1.0), 48_000, "ogg", "libopus", b="64000", page_duration="20000")


class Clock:
    """A clock that the test moves."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def streamed(audio_format: AudioFormat, messages: list[bytes]) -> np.ndarray:
    stream = AudioStream(audio_format, Clock())
    blocks = [block for message in messages for block in stream.feed(message)]
    return np.concatenate([*blocks, stream.finish()])


@pytest.mark.parametrize("encoding", [*SAMPLE_BYTES, "opus"])
@settings(deadline=None, max_examples=20)
@given(size=st.one_of(st.integers(1, 9), st.integers(1, 50_000)))
def test_opus_is_recognised_whatever_was_declared_and_however_it_is_cut(encoding, size):
    samples = streamed(AudioFormat(encoding), cut(OPUS, size))
    assert snr_db(samples, chord(24_000, 1.0)) > 20


@settings(deadline=None)
@given(
    st.sampled_from(list(SAMPLE_BYTES)),
    st.sampled_from([8_000, 24_000, 44_100]),
    st.sampled_from([1, 2]),
    st.one_of(st.just(1), st.integers(1, 100_000)),
)
def test_the_size_of_the_messages_changes_nothing(encoding, rate_hz, channels, size):
    audio_format = AudioFormat(encoding, rate_hz, channels)
    data = raw(chord(rate_hz, 0.2), audio_format)
    np.testing.assert_array_equal(streamed(audio_format, cut(data, size)), streamed(audio_format, [data]))


@pytest.mark.parametrize("start", [b"", b"O", b"Og", b"OggS\x01"])
def test_a_stream_that_only_begins_like_ogg_is_raw(start):
    data = start + bytes([1, 2, 3, 4])
    assert len(streamed(AudioFormat("mulaw", 24_000), cut(data, 1))) == len(data)


def test_ogg_from_its_middle_is_called_that():
    with pytest.raises(InvalidAudio, match="expected an Ogg/Opus stream from its beginning"):
        streamed(AudioFormat("s16"), cut(OPUS[OPUS.rindex(b"OggS") :], 7))


def test_so_few_bytes_that_they_might_become_ogg():
    assert len(streamed(AudioFormat("s16"), [b"OggS"])) == 2
    with pytest.raises(InvalidAudio, match="expected a multiple of 2 bytes, got 1 trailing"):
        streamed(AudioFormat("s16"), [b"Ogg"])


def test_finishing_twice_gives_nothing_more():
    stream = AudioStream(AudioFormat("s16", 16_000))
    assert sum(len(block) for block in stream.feed(raw(chord(16_000, 0.5), AudioFormat("s16", 16_000)))) < 12_000
    assert len(stream.finish()) > 0
    assert len(stream.finish()) == 0
    assert len(AudioStream(AudioFormat()).finish()) == 0


@pytest.mark.parametrize("encoding", SAMPLE_BYTES)
def test_a_huge_message_comes_out_in_bounded_blocks(encoding):
    rate_hz = 8_000
    blocks = list(AudioStream(AudioFormat(encoding, rate_hz)).feed(bytes(1 << 20)))
    most = max(len(block) for block in blocks)
    assert most <= 4 * PIECE_BYTES / SAMPLE_BYTES[encoding]


def test_endless_tags_take_no_memory():
    stream = AudioStream(AudioFormat())
    tags = b"".join(open_page(bytes(254 * 255), number) for number in range(1, 40))
    with pytest.raises(InvalidAudio, match="reasonable size"):
        list(stream.feed(opus_headers()[:47] + tags))


def paced(audio_format: AudioFormat, bytes_per_second: float, seconds: float, step: float = 0.08) -> None:
    """Send noise-free audio at a pace, in real time by the clock's idea of it."""
    clock = Clock()
    stream = AudioStream(audio_format, clock)
    width, sent = audio_format.frame_bytes, 0
    for number in range(1, round(seconds / step) + 1):
        size = int(bytes_per_second * number * step / width) * width - sent
        list(stream.feed(bytes(size)))
        sent += size
        clock.now += step


def test_16_khz_declared_as_24_khz_is_noticed():
    with pytest.raises(InvalidAudio, match=r"this looks like 16000 Hz, f32 .*sample_rate=16000"):
        paced(AudioFormat(), 64_000, 20)


def test_real_time_is_fine():
    paced(AudioFormat(), 96_000, 60)


def test_opus_has_no_pace():
    clock = Clock()
    stream = AudioStream(AudioFormat("s16"), clock)
    for _ in range(12):
        for piece in cut(OPUS, len(OPUS) // 40 + 1):
            list(stream.feed(piece))
            clock.now += 0.05


def test_a_sender_that_we_hold_up_is_not_blamed():
    clock = Clock()
    stream = AudioStream(AudioFormat(), clock)
    for _ in range(300):
        for _ in stream.feed(bytes(7_680)):
            clock.now += 0.12  # the caller waits for the engine: two thirds of real time


@settings(deadline=None)
@given(st.sampled_from([*SAMPLE_BYTES, "opus"]), st.lists(st.binary(max_size=200), max_size=6), st.booleans())
def test_any_messages_are_audio_or_a_typed_error(encoding, messages, is_ogg):
    try:
        samples = streamed(AudioFormat(encoding), [opus_headers(), *messages] if is_ogg else messages)
    except InvalidAudio:
        return
    assert np.isfinite(samples).all()


def test_no_threads_are_left():
    before = len(os.listdir("/proc/self/task"))
    streams = [AudioStream(AudioFormat()) for _ in range(20)]
    for stream in streams:
        list(stream.feed(OPUS))
    assert len(os.listdir("/proc/self/task")) == before
