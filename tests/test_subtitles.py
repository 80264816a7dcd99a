"""Subtitles: lines that fit, cues that can be read, files that players understand."""

import io
import itertools

import av
import pytest

from serve_app.segments import Segment
from serve_app.subtitles import CUE_LINES, LINE_CHARACTERS, MAX_CUE_SECONDS, MIN_CUE_SECONDS, cues, srt, vtt
from serve_app.transcript import Word


def segment(*words: tuple[str, float, float]) -> Segment:
    return Segment(tuple(Word(*word) for word in words))


def test_long_segments_become_several_cues_with_every_word_once():
    words = [("extraordinary", n * 0.3, n * 0.3 + 0.3) for n in range(30)]
    found = cues([segment(*words)])
    assert " ".join(" ".join(cue.lines) for cue in found).split() == ["extraordinary"] * 30
    for cue in found:
        assert len(cue.lines) <= CUE_LINES
        assert all(len(line) <= LINE_CHARACTERS for line in cue.lines)
        assert cue.end_s - cue.start_s <= MAX_CUE_SECONDS
    assert all(one.end_s <= other.start_s + 1e-9 for one, other in itertools.pairwise(found))


def test_long_words_and_slow_words_stand_alone():
    found = cues([segment(("x" * 60, 0.0, 1.0), ("slow", 1.0, 9.5), ("end", 9.5, 10.0))])
    assert [cue.lines for cue in found] == [("x" * 60,), ("slow",), ("end",)]


def test_short_cues_stay_until_the_next_one():
    found = cues([segment(("a", 0.0, 0.2)), segment(("b", 0.5, 0.6)), segment(("c", 5.0, 5.1))])
    assert [(cue.start_s, cue.end_s) for cue in found] == [
        (0.0, 0.5),
        (0.5, 0.5 + MIN_CUE_SECONDS),
        (5.0, 5.0 + MIN_CUE_SECONDS),
    ]


def test_files():
    found = cues([segment(("<a>", 0.0, 1.2), ("&", 1.2, 2.0)), segment(("later", 3_723.0, 3_724.5))])
    assert srt(found) == ("1\n00:00:00,000 --> 00:00:02,000\n<a> &\n\n2\n01:02:03,000 --> 01:02:04,500\nlater\n\n")
    assert vtt(found) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\n&lt;a&gt; &amp;\n\n01:02:03.000 --> 01:02:04.500\nlater\n\n"
    )
    assert (srt([]), vtt([])) == ("", "WEBVTT\n\n")


@pytest.mark.parametrize(("write", "kind"), [(srt, "srt"), (vtt, "webvtt")])
def test_ffmpeg_reads_them(write, kind):
    text = write(cues([segment(("one", 0.5, 1.75)), segment(("two", 3.0, 4.5))]))
    with av.open(io.BytesIO(text.encode()), format=kind) as file:
        packets = [packet for packet in file.demux() if packet.size]
    assert [(bytes(packet), float(packet.pts * packet.time_base)) for packet in packets] == [(b"one", 0.5), (b"two", 3)]
