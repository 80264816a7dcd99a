"""What is on the topics."""

import base64
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.bridges.messages import AudioChunk, ChunkTranscript, TranscribedWord, UnreadableChunk, read_chunk

SEED = {
    "device_id": "string",
    "recorded_at": "2024-01-01T00:00:00Z",
    "audio_data": base64.b64encode(b"RIFF").decode(),
    "sample_rate": 16000,
    "format": "wav",
    "duration_seconds": 1.5,
    "chunk_id": "unique-chunk-id",
    "sequence_number": 1,
}


def test_the_earlier_services_chunk_is_understood_and_written_in_the_same_way():
    chunk = read_chunk(json.dumps(SEED | {"firmware": "1.2", "location": {"room": 3}}).encode())
    assert (chunk.audio_data, chunk.recorded_at) == (b"RIFF", datetime(2024, 1, 1, tzinfo=UTC))
    assert json.loads(chunk.model_dump_json()) == SEED


def test_what_may_be_missing_may_be_missing():
    needed = {name: SEED[name] for name in ("device_id", "recorded_at", "audio_data", "chunk_id")}
    chunk = read_chunk(json.dumps(needed).encode())
    assert (chunk.format, chunk.sample_rate, chunk.sequence_number, chunk.duration_seconds) == ("wav", None, None, None)


def test_times_are_utc():
    for text in ("2024-01-01T02:00:00+02:00", "2024-01-01T00:00:00"):
        assert read_chunk(json.dumps(SEED | {"recorded_at": text}).encode()).recorded_at == datetime(
            2024, 1, 1, tzinfo=UTC
        )


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "expected a JSON object, got a message without a value"),
        (b"", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[]", "Input should be an object"),
        (b"{}", "device_id: Field required; recorded_at: Field required"),
        (SEED | {"audio_data": "@@@@"}, "audio_data: expected base64"),
        (SEED | {"audio_data": "UklGR"}, "audio_data: expected base64"),
        (SEED | {"audio_data": 5}, "audio_data: Input should be a valid bytes"),
        (SEED | {"recorded_at": "yesterday"}, "recorded_at: Input should be a valid datetime"),
        (SEED | {"recorded_at": "0001-01-01T00:00:00Z"}, "recorded_at: expected a year from 2 to 9998, got 1"),
        (SEED | {"sample_rate": 5}, "sample_rate: Input should be greater than or equal to 1000, got 5"),
        (SEED | {"format": "aiff"}, "format: Input should be 'wav', 's16', 'f32', 'opus' or 'mp3', got 'aiff'"),
        (SEED | {"duration_seconds": -1}, "duration_seconds: Input should be greater than or equal to 0, got -1"),
        (
            SEED | {"sequence_number": 10**4299},
            "sequence_number: Input should be less than or equal to 9223372036854775807",
        ),
        (SEED | {"sequence_number": -(2**63) - 1}, "sequence_number: Input should be greater than or equal to -9"),
        (SEED | {"device_id": ""}, "device_id: String should have at least 1 character"),
        (SEED | {"chunk_id": "x" * 300}, "chunk_id: String should have at most 256 characters"),
    ],
)
def test_a_reason_says_what_was_expected_and_what_came(value, reason):
    with pytest.raises(UnreadableChunk) as error:
        read_chunk(json.dumps(value).encode() if isinstance(value, dict) else value)
    assert reason in str(error.value)
    assert len(str(error.value)) <= 1_000


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(list(SEED)), ANYTHING), st.binary(max_size=40))
def test_anything_is_a_chunk_or_a_reason(fields, noise):
    for value in (json.dumps(SEED | fields).encode(), json.dumps(fields).encode(), noise):
        try:
            chunk = read_chunk(value)
        except UnreadableChunk:
            continue
        assert isinstance(chunk, AudioChunk)
        chunk.device_id.encode()
        chunk.model_dump_json()


def test_a_transcript_reads_as_the_earlier_services():
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    word = TranscribedWord(
        word="hello", start_time=0.0, end_time=0.5, confidence=0.95, start_at=moment, end_at=moment
    )  # fmt: skip
    transcript = ChunkTranscript(
        device_id="string", recorded_at=moment, chunk_id="unique-chunk-id", words=(word,), full_text="hello",
        language="en", processing_time_ms=150.5, model_version="kyutai/stt-1b-en_fr",
    )  # fmt: skip
    assert json.loads(transcript.model_dump_json()) == {
        "device_id": "string",
        "recorded_at": "2024-01-01T00:00:00Z",
        "chunk_id": "unique-chunk-id",
        "words": [
            {
                "word": "hello", "start_time": 0.0, "end_time": 0.5, "confidence": 0.95,
                "start_at": "2024-01-01T00:00:00Z", "end_at": "2024-01-01T00:00:00Z",
            }
        ],
        "full_text": "hello",
        "language": "en",
        "processing_time_ms": 150.5,
        "model_version": "kyutai/stt-1b-en_fr",
    }  # fmt: skip
