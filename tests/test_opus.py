"""Ogg/Opus streams, good and bad."""

import itertools
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve_app.audio.files import read_audio
from serve_app.audio.opus import BLOCK_SECONDS, OpusDecoder
from serve_app.errors import InvalidAudio
from tests.audio_signals import chord, cut, encoded, ogg_page, open_page, opus_bomb, opus_head, opus_headers, snr_db
from tests.support import SAMPLES

FILE = encoded(chord(48_000, 1.0), 48_000, "ogg", "libopus", b="64000", page_duration="20000")
PACKET = b"\xfc" + bytes(range(60))
"""20 ms of something, mono."""


def decoded(*pieces: bytes) -> NDArray[np.float32]:
    decoder = OpusDecoder()
    return np.concatenate([*(block for piece in pieces for block in decoder.feed(piece)), decoder.finish()])


def pages_of(file: bytes) -> list[bytes]:
    starts = [place for place in range(len(file)) if file.startswith(b"OggS\x00", place)]
    return [file[start:end] for start, end in itertools.pairwise([*starts, len(file)])]


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("frame_ms", ["2.5", "20", "60", "120"])
@pytest.mark.parametrize("page_us", ["20000", "1000000", "20000000"])
def test_every_kind_of_stream_carries_the_signal(channels, frame_ms, page_us):
    file = encoded(
        chord(48_000, 5.0), 48_000, "ogg", "libopus", channels=channels, b="96000", frame_duration=frame_ms,
        page_duration=page_us,
    )  # fmt: skip
    assert snr_db(decoded(*cut(file, 500)), chord(24_000, 5.0)) > 25


@settings(deadline=None)
@given(st.one_of(st.just(1), st.integers(1, 5_000)))
def test_the_size_of_the_pieces_changes_nothing(size):
    np.testing.assert_array_equal(decoded(*cut(FILE, size)), decoded(FILE))


@pytest.mark.parametrize("name", ["directions-en.ogg", "chiffres-fr.ogg"])
def test_streamed_or_as_a_file_it_is_the_same(name):
    samples, file = decoded(*cut((SAMPLES / name).read_bytes(), 960)), read_audio(SAMPLES / name)
    assert len(samples) == len(file)
    assert snr_db(samples, file) > 40


def test_audio_comes_out_while_it_comes_in():
    decoder = OpusDecoder()
    samples = sum(len(block) for page in pages_of(FILE)[:27] for block in decoder.feed(page))
    assert 0.4 * 24_000 < samples <= 0.5 * 24_000


def test_the_ends_are_those_of_the_signal():
    assert len(decoded(FILE)) == 24_000  # the encoder's delay and the padding of its last packet are not in it
    short = encoded(chord(48_000, 0.3), 48_000, "ogg", "libopus", page_duration="1000000")
    assert len(pages_of(short)) == 3
    assert len(decoded(short)) == 7_200  # its only page of audio is the last as well


def test_chained_streams_follow_one_another():
    assert abs(len(decoded(FILE + FILE)) - 48_000) <= 2


def test_a_client_that_comes_back_sends_its_headers_and_goes_on():
    pages = pages_of(FILE)
    samples = decoded(*pages[:2], *pages[27:])
    assert 0.45 * 24_000 < len(samples) < 0.55 * 24_000
    assert snr_db(samples[-9_600:], decoded(FILE)[-9_600:]) > 20


def test_a_stream_that_just_stops_is_no_mistake():
    assert len(decoded(*pages_of(FILE)[:-5])) > 20_000
    assert len(decoded()) == 0


def test_half_a_page_at_the_end():
    with pytest.raises(InvalidAudio, match="expected whole Ogg pages, got 100 bytes of one that is not complete"):
        decoded(*pages_of(FILE)[:3], pages_of(FILE)[3][:100])


def test_a_damaged_page():
    file = bytearray(FILE)
    file[len(file) // 2] ^= 1
    with pytest.raises(InvalidAudio, match="wrong checksum"):
        decoded(*cut(bytes(file), 333))


@pytest.mark.parametrize(
    ("pages", "message"),
    [
        ([ogg_page([PACKET], number=5)], "from its beginning"),
        ([ogg_page([b"\x01vorbis" + bytes(23)], flags=2)], "begins with b'.x01vorbis"),
        ([ogg_page([], flags=2)], "begins with b''"),
        ([ogg_page([b"OpusHead\x01"], flags=2)], "begins with b'OpusHead'"),
        ([opus_headers(channels=6)], "got 6 channels"),
        ([opus_headers(channels=0)], "got 0 channels"),
        ([opus_headers(version=17)], "version 17"),
        ([opus_headers(), ogg_page([b""] * 255, number=2)], "got an empty one"),
        ([opus_headers(), ogg_page([b"\xff" * 15], number=2)], "15 bytes that do not decode"),
        ([opus_headers(), ogg_page([PACKET], number=2, serial=9)], "serial number 9"),
        ([opus_headers(), ogg_page([PACKET * 1_050], number=2)], "64050 bytes that do not decode"),
        ([b"something else"], "expected an Ogg page"),
    ],
)
def test_what_is_no_opus_stream(pages, message):
    with pytest.raises(InvalidAudio, match=message):
        decoded(*pages)


def test_a_packet_without_end_is_not_collected():
    decoder = OpusDecoder()
    list(decoder.feed(ogg_page([opus_head()], flags=2)))
    with pytest.raises(InvalidAudio, match="reasonable size"):
        for number in range(1, 100):
            list(decoder.feed(open_page(bytes(254 * 255), number)))


def test_few_bytes_that_become_many_minutes_come_out_bit_by_bit():
    tracemalloc.start()
    try:
        lengths = [len(block) for block in OpusDecoder().feed(opus_bomb(600))]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(lengths) == pytest.approx(600 * 24_000, rel=0.05)
    assert max(lengths) <= (BLOCK_SECONDS + 0.12) * 24_000
    assert peak < 3_000_000  # ten minutes of samples have 58 MB


def test_the_end_that_the_last_page_tells_may_lie_before_several_packets():
    whole = opus_headers(pre_skip=0) + ogg_page([b"\xfb\x06"] * 4, flags=4, granule=10_000, number=2)
    assert len(decoded(whole)) == 5_000


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(FILE) - 1), st.integers(0, 255)), max_size=5), st.integers(0, len(FILE)))
def test_any_damage_is_a_typed_error(changes, end):
    file = bytearray(FILE)
    for place, value in changes:
        file[place] = value
    try:
        samples = decoded(*cut(bytes(file[:end]), 777))
    except InvalidAudio:
        return
    assert np.isfinite(samples).all()


@settings(deadline=None)
@given(st.lists(st.binary(max_size=100), max_size=10))
def test_any_packets_are_audio_or_a_typed_error(packets):
    """The checksum is right here, so they reach the codec."""
    try:
        samples = decoded(opus_headers(), ogg_page(packets, number=2))
    except InvalidAudio:
        return
    assert np.isfinite(samples).all()


def test_no_threads_are_left():
    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    before = threads()
    decoders = [OpusDecoder() for _ in range(20)]
    for decoder in decoders:
        list(decoder.feed(FILE))
    assert threads() == before
