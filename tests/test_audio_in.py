"""What a dialect takes out of a message, on its way into a session with a real engine behind it."""

import asyncio
import itertools

import pytest

from serve_app.audio.formats import AudioFormat
from serve_app.audio.stream import AudioStream
from serve_app.protocols import audio_in
from serve_app.session.session import Session
from tests.audio_signals import opus_bomb
from tests.test_session import collect, opened

TURN_SECONDS = 2.0
"""Most audio that may be taken from one client without anybody else's turn."""


@pytest.mark.parametrize("encoding", ["opus", "f32", "s16"])
async def test_silence_that_is_long_in_few_bytes_lets_everybody_else_have_their_turn(engines, encoding):
    async with opened(engines, window_frames=10_000) as session:
        turns: list[float] = []
        other = asyncio.create_task(_somebody_else(session, turns))
        reading = asyncio.create_task(collect(session))
        audio = AudioStream(AudioFormat(encoding))
        await audio_in.feed(session, audio, opus_bomb(60))
        other.cancel()
        reading.cancel()
        await asyncio.gather(other, reading, return_exceptions=True)
        assert session.audio_seconds > 55
        assert (
            max(later - sooner for sooner, later in itertools.pairwise([0.0, *turns, session.audio_seconds]))
            < TURN_SECONDS
        )


async def test_such_a_message_waits_for_room_like_any_other(engines):
    async with opened(engines, window_frames=25) as session:
        feeding = asyncio.create_task(audio_in.feed(session, AudioStream(AudioFormat()), opus_bomb(600)))
        reading = asyncio.create_task(collect(session))
        for _ in range(50):
            await asyncio.sleep(0)
            sent = session.marks.sent * 0.08
            assert session.audio_seconds - sent < TURN_SECONDS
            assert sent - session.marks.answered * 0.08 <= 25 * 0.08
        assert not feeding.done()
        feeding.cancel()
        reading.cancel()
        await asyncio.gather(feeding, reading, return_exceptions=True)


async def _somebody_else(session: Session, turns: list[float]) -> None:
    while True:
        turns.append(session.audio_seconds)
        await asyncio.sleep(0)
