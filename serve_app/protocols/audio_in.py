"""What every dialect does with the audio it has taken out of a message."""

from serve_app.audio.stream import AudioStream
from serve_app.session.session import Session


async def feed(session: Session, audio: AudioStream, data: bytes) -> None:
    """Decode a message and feed it block by block, so that backpressure holds within it. Raises InvalidAudio."""
    for samples in audio.feed(data):
        await session.feed(samples)


async def end(session: Session, audio: AudioStream) -> None:
    """Feed what the decoder still holds and end the session. Raises InvalidAudio."""
    if len(rest := audio.finish()):
        await session.feed(rest)
    await session.end()
