import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.link.messages import (
    LENGTH_BYTES,
    SECRET_BYTES,
    Attach,
    Attached,
    Detach,
    Failed,
    Frames,
    LinkError,
    LoadReport,
    Ping,
    Refused,
    decode,
    encode,
)
from serve_app.speech import FRAME_SAMPLES, FrameResults

STREAMS = np.array([7, 1 << 40], dtype=np.int64)

MESSAGES = [
    Attach(5, b"s" * SECRET_BYTES),
    Frames(STREAMS, np.linspace(-1, 1, 2 * FRAME_SAMPLES, dtype=np.float32).reshape(2, FRAME_SAMPLES)),
    Ping(),
    Detach(5),
    Attached(5),
    Refused(5),
    FrameResults(
        STREAMS,
        np.array([0, 9], np.int32),
        np.array([3, 35], np.int32),
        np.arange(16, dtype=np.int16).reshape(2, 8),
        np.array([[0.1] * 4, [0.9] * 4], np.float32),
        np.array([0.25, 0.5], np.float32),
        np.array([0.75, 1.0], np.float32),
    ),
    FrameResults(STREAMS, np.zeros(2, np.int32), np.zeros(2, np.int32), np.zeros((2, 8), np.int16),
                  np.zeros((2, 0), np.float32), np.zeros(2, np.float32), np.zeros(2, np.float32)),
    Failed([5, 6], "step_failed", "the model failed"),
    LoadReport({"slots": 8, "headroom": 0.5}),
]  # fmt: skip


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message):
    wire = encode(message)
    assert int.from_bytes(wire[:LENGTH_BYTES], "big") == len(wire) - LENGTH_BYTES
    received = decode(wire[LENGTH_BYTES:])
    assert type(received) is type(message)
    for name, value in vars(message).items():
        np.testing.assert_array_equal(getattr(received, name), value)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ([1, 2], "a msgpack map, got list"),
        ({"type": "hello"}, "a known message type, got 'hello'"),
        ({"kind": "ping"}, "a known message type, got None"),
        ({"type": "attach", "stream": "5", "secret": b""}, "attach.secret: expected 16 bytes, got 0"),
        ({"type": "attach", "stream": -1, "secret": b"s" * 16}, "attach.stream: expected 0 to"),
        ({"type": "attach", "stream": 1 << 63, "secret": b"s" * 16}, "attach.stream: expected 0 to"),
        ({"type": "attach", "stream": "5", "secret": b"s" * 16}, "attach.stream: expected int, got str"),
        ({"type": "frames", "streams": b"1234567", "audio": b""}, "frames.streams: expected a multiple of 8"),
        ({"type": "frames", "streams": bytes(8), "audio": bytes(4)}, "frames.audio: expected 1 rows of 1920, got 1"),
        ({"type": "frames", "streams": bytes(8)}, "frames.audio: expected bytes, got NoneType"),
        (
            {"type": "results", "streams": bytes(8), "frames": bytes(8), "tokens": bytes(4), "codes": b"",
             "pauses": b""},
            "results: expected 1 rows, got 2 frames and 1 tokens",
        ),
        (
            {"type": "results", "streams": bytes(16), "frames": bytes(8), "tokens": bytes(8), "codes": bytes(6),
             "pauses": b""},
            "results.codes: expected 2 rows of 1, got 3",
        ),
        (
            {"type": "results", "streams": bytes(8), "frames": bytes(4), "tokens": np.int32(-1).tobytes(), "codes": b"",
             "pauses": b""},
            "results.tokens: expected numbers from 0 on",
        ),
        (
            {"type": "results", "streams": bytes(8), "frames": bytes(4), "tokens": bytes(4), "codes": b"",
             "pauses": np.float32([0.5, np.nan]).tobytes()},
            "results.pauses: expected numbers from 0 to 1",
        ),
        (
            {"type": "results", "streams": bytes(8), "frames": bytes(4), "tokens": bytes(4), "codes": b"",
             "pauses": b"", "engine_seconds": bytes(4), "probabilities": np.float32(np.nan).tobytes()},
            "results.probabilities: expected numbers from 0 to 1",
        ),
        ({"type": "failed", "streams": ["a"], "code": "", "message": ""}, "failed.streams: expected integers"),
        ({"type": "load", "values": {"slots": "many"}}, "load.values: expected finite numbers"),
        ({"type": "load", "values": {"slots": float("nan")}}, "load.values: expected finite numbers"),
        ({"type": "attached", "stream": True}, "attached.stream: expected int, got bool"),
        (
            {"type": "frames", "streams": bytes(8), "audio": np.full(FRAME_SAMPLES, np.nan, "<f4").tobytes()},
            "frames.audio: expected samples of at most 1000, got louder ones or NaN",
        ),
    ],
)  # fmt: skip
def test_a_wrong_message_is_refused_with_what_was_expected(fields, complaint):
    with pytest.raises(LinkError) as caught:
        decode(msgpack.packb(fields))
    assert complaint in str(caught.value)


@given(st.binary(max_size=200))
def test_noise_is_refused_and_nothing_else_happens(noise):
    try:
        decode(noise)
    except LinkError:
        return
    assert msgpack.unpackb(noise)["type"] == "ping"  # the only message without fields


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(
    kind=st.sampled_from(["attach", "frames", "attached", "refused", "results", "failed", "load"]),
    fields=st.dictionaries(
        st.sampled_from(["stream", "streams", "secret", "audio", "frames", "tokens", "codes", "pauses", "code",
                         "message", "values"]),
        JSON_LIKE,
    ),
)  # fmt: skip
def test_wrong_fields_are_refused_and_nothing_else_happens(kind, fields):
    try:
        message = decode(msgpack.packb({"type": kind, **fields}))
    except LinkError:
        return
    assert decode(encode(message)[LENGTH_BYTES:]) is not None
