"""What clients say about their audio."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.audio.formats import FORMATS, SAMPLE_RATES_HZ, AudioFormat, parse_audio_format
from serve_app.errors import InvalidMessage


def test_nothing_said_is_float32_at_24_khz():
    assert parse_audio_format({}) == AudioFormat("f32", 24_000, 1)


@pytest.mark.parametrize("encoding", ["mulaw", "alaw"])
def test_telephone_formats_have_the_telephones_rate(encoding):
    assert parse_audio_format({"format": encoding}) == AudioFormat(encoding, 8_000, 1)
    assert parse_audio_format({"format": encoding, "sample_rate": "16000"}).sample_rate_hz == 16_000


@pytest.mark.parametrize("encoding", FORMATS)
@pytest.mark.parametrize("rate_hz", SAMPLE_RATES_HZ)
@pytest.mark.parametrize("channels", [1, 2])
def test_everything_that_is_documented(encoding, rate_hz, channels):
    query = {"format": encoding, "sample_rate": str(rate_hz), "channels": str(channels), "words": "true"}
    assert parse_audio_format(query) == AudioFormat(encoding, rate_hz, channels)


@pytest.mark.parametrize(
    ("audio_format", "bytes_per_second", "query"),
    [
        (AudioFormat(), 96_000, "?format=f32&sample_rate=24000"),
        (AudioFormat("s16", 16_000, 2), 64_000, "?format=s16&sample_rate=16000&channels=2"),
        (AudioFormat("alaw", 8_000), 8_000, "?format=alaw&sample_rate=8000"),
        (AudioFormat("opus"), 0, "?format=opus&sample_rate=24000"),
    ],
)
def test_what_follows_from_a_format(audio_format, bytes_per_second, query):
    assert (audio_format.bytes_per_second, audio_format.query) == (bytes_per_second, query)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"format": "S16"}, "?format=: expected one of f32, s16, mulaw, alaw, opus, got 'S16'"),
        (
            {"sample_rate": "11025"},
            "?sample_rate=: expected one of 8000, 16000, 22050, 24000, 44100, 48000, got '11025'",
        ),
        ({"sample_rate": ""}, "?sample_rate=: expected one of 8000, 16000, 22050, 24000, 44100, 48000, got ''"),
        ({"channels": "3"}, "?channels=: expected one of 1, 2, got '3'"),
        ({"channels": "٢"}, "?channels=: expected one of 1, 2, got '٢'"),
    ],
)
def test_what_is_wrong_is_named(query, message):
    with pytest.raises(InvalidMessage) as error:
        parse_audio_format(query)
    assert error.value.message == message


@given(st.sampled_from(["format", "sample_rate", "channels"]), st.text(max_size=5_000))
def test_any_text_is_a_format_or_a_short_error(name, value):
    try:
        assert parse_audio_format({name: value}).encoding in FORMATS
    except InvalidMessage as error:
        message = error.message
    else:
        return
    assert name in message
    assert len(message) < 600
