"""What every dialect does with the audio it has taken out of a message."""

import asyncio

from serve_app.audio.stream import AudioStream
from serve_app.session.session import Session


async def feed(session: Session, audio: AudioStream, data: bytes) -> None:
    """Decode a message and feed it block by block, so that backpressure holds within it. Raises InvalidAudio.

    However much audio a message becomes, everybody else gets a turn after each block.
    """
    for samples in audio.feed(data):
        if len(samples):
            await session.feed(samples)
        await asyncio.sleep(0)


async def end(session: Session, audio: AudioStream) -> None:
    """Feed what the decoder still holds and end the session. Raises InvalidAudio."""
    if len(rest := audio.finish()):
        await session.feed(rest)
    await session.end()
