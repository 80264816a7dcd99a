"""Files in chunks: decoded while they come, whatever they are and wherever they are cut."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing, suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve_app.audio.file_chunks import decode_chunks
from serve_app.errors import AudioTooLong, InvalidAudio, MessageTooLarge, SpeechError
from tests.audio_signals import chord, encoded, snr_db

FILES = [
    ("wav", "pcm_s16le", 16_000),
    ("flac", "flac", 44_100),
    ("mp3", "libmp3lame", 44_100),
    ("ogg", "libopus", 48_000),
    ("webm", "libopus", 48_000),
    ("ipod", "aac", 44_100),
]
MEBIBYTE = 2**20


async def each(chunks: Iterable[bytes | SpeechError]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        await asyncio.sleep(0)
        if isinstance(chunk, SpeechError):
            raise chunk
        yield chunk


def cut(file: bytes, size: int) -> list[bytes]:
    return [file[start : start + size] for start in range(0, len(file), size)]


async def decoded(
    chunks: Iterable[bytes | SpeechError], max_seconds: float = 60, max_bytes: int = MEBIBYTE
) -> NDArray[np.float32]:
    blocks = [block async for block in decode_chunks(each(chunks), max_seconds, max_bytes)]
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def made(container: str, codec: str, rate_hz: int) -> bytes:
    return encoded(chord(rate_hz), rate_hz, container, codec)


@pytest.mark.parametrize(("container", "codec", "rate_hz"), FILES)
@pytest.mark.parametrize("size", [100, 4_000, 10**7])
async def test_chunks_of_one_file_carry_its_signal(container, codec, rate_hz, size):
    samples = await decoded(cut(made(container, codec, rate_hz), size))
    assert snr_db(samples[:48_000], chord(24_000)) > 20


@pytest.mark.parametrize(("container", "codec", "rate_hz"), FILES)
async def test_every_chunk_may_be_a_file(container, codec, rate_hz):
    file, other = made(container, codec, rate_hz), made("wav", "pcm_s16le", 24_000)
    samples = await decoded([file, other, file])
    assert len(samples) == pytest.approx(3 * 48_000, abs=4_000)


@pytest.mark.parametrize(("container", "codec", "rate_hz"), FILES[:-1])
async def test_audio_comes_before_its_file_is_complete(container, codec, rate_hz):
    file = encoded(chord(rate_hz, 10.0), rate_hz, container, codec)
    half_is_out = asyncio.Event()

    async def halves() -> AsyncIterator[bytes]:
        for chunk in cut(file[: len(file) // 2], 1_000):
            yield chunk
        await half_is_out.wait()
        yield file[len(file) // 2 :]

    seconds = 0.0
    async with asyncio.timeout(20), aclosing(decode_chunks(halves(), 60, MEBIBYTE)) as blocks:
        async for block in blocks:
            seconds += len(block) / 24_000
            if seconds > 2.5:
                half_is_out.set()
    assert seconds == pytest.approx(10, abs=0.1)


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        ([b"good morning, everybody", b"how are you?"], InvalidAudio),
        ([b"fLaC" + bytes(5_000)], InvalidAudio),
        ([made("ipod", "aac", 44_100)[:3_000]], InvalidAudio),
        ([made("wav", "pcm_s16le", 24_000), MessageTooLarge("a chunk")], MessageTooLarge),
        ([MessageTooLarge("a chunk")], MessageTooLarge),
    ],
    ids=["no audio", "nothing decodes", "half an M4A", "too large later", "too large at once"],
)
async def test_a_mistake_is_told(chunks, error):
    with pytest.raises(error):
        await decoded(chunks)


async def test_limits():
    with pytest.raises(AudioTooLong):
        await decoded([made("flac", "flac", 24_000)], max_seconds=1)
    with pytest.raises(MessageTooLarge):
        await decoded(cut(made("ipod", "aac", 44_100), 1_000), max_bytes=5_000)


async def test_nothing_is_nothing():
    assert not len(await decoded([]))
    assert not len(await decoded([b"", b""]))


async def test_no_thread_stays_when_the_reader_leaves_while_it_waits_for_a_chunk():
    waiting = asyncio.Event()

    async def begun() -> AsyncIterator[bytes]:
        yield made("flac", "flac", 24_000)[:4_096]
        waiting.set()
        await asyncio.Event().wait()

    async def read() -> None:
        async with aclosing(decode_chunks(begun(), 60, MEBIBYTE)) as blocks:
            async for _ in blocks:
                pass

    before = threading.active_count()
    reading = asyncio.create_task(read())
    await waiting.wait()
    await asyncio.sleep(0.05)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    async with asyncio.timeout(5):
        while threading.active_count() > before:
            await asyncio.sleep(0.01)


@settings(max_examples=30)
@given(
    st.lists(st.one_of(st.binary(max_size=200), st.sampled_from([made(*file)[:3_000] for file in FILES])), max_size=4)
)
def test_any_chunks_end_in_audio_or_an_error_for_their_sender(chunks):
    async def run() -> None:
        async with asyncio.timeout(20):
            await decoded(chunks)

    with suppress(InvalidAudio, AudioTooLong, MessageTooLarge):
        asyncio.run(run())
