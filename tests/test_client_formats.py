"""Audio that travels as s16, at another rate or as Ogg/Opus: the words are the same, also after cuts."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from serve_app import client
from serve_app.audio.formats import parse_audio_format
from serve_app.audio.stream import AudioStream
from serve_app.client.encoding import declaration, make_encoder
from tests.support import Service, serving
from tests.test_client_resume import listen, network, speak

WAYS = [("s16", 24_000), ("s16", 16_000), ("f32", 48_000), ("opus", 24_000)]


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines) as made:
        yield made


@pytest.mark.parametrize(("format", "sample_rate"), WAYS)
@pytest.mark.parametrize("chunk", [7, 1_000, 1_920, 50_000])
def test_the_server_gets_every_sample_in_its_place(clip, format, sample_rate, chunk):
    samples = clip.samples[:60_001]
    encoder = make_encoder(format, sample_rate)
    stream = AudioStream(parse_audio_format(declaration(format, sample_rate)), clock=iter(range(10**9)).__next__)
    pieces = [encoder.encode(samples[start : start + chunk]) for start in range(0, len(samples), chunk)]
    pieces.append(encoder.finish())
    parts = [part for piece in pieces for part in stream.feed(piece)]
    heard = np.concatenate([*parts, stream.finish()])
    assert abs(len(heard) - len(samples)) <= 1
    size = sum(map(len, pieces))
    assert size < 0.1 * samples.nbytes if format == "opus" else size <= 2 * samples.nbytes
    common = min(len(heard), len(samples))
    assert np.corrcoef(heard[:common], samples[:common])[0, 1] > (0.9 if format == "opus" else 0.98)


def test_nothing_said_is_nothing_sent():
    assert all(make_encoder(*way).finish() == b"" for way in WAYS)


@pytest.mark.parametrize(("format", "sample_rate"), WAYS)
async def test_words_come_back_whatever_the_cuts(service, clip, format, sample_rate):
    async with (
        network(service) as breaking,
        client.connect(f"127.0.0.1:{breaking.port}", words=True, format=format, sample_rate=sample_rate) as stream,
    ):
        listening = asyncio.create_task(listen(stream))
        for start in range(0, len(clip.samples), 40_000):
            await speak(stream, clip.samples[start : start + 40_000], pause_s=0.02)
            await asyncio.sleep(0.2)
            breaking.cut()
        await stream.end()
        events = await listening
    assert stream.reconnects >= 3
    assert [event.text for event in events if isinstance(event, client.Word)] == clip.words
    assert events[-1].audio_seconds == pytest.approx(len(clip.samples) / 24_000, abs=0.01)
    await service.wait_until_empty()


async def test_transcribe_takes_a_format(service, clip):
    arrivals = client.transcribe(service.url, clip.samples, rtf=0, words=True, format="opus")
    assert [each.event.text async for each in arrivals if isinstance(each.event, client.Word)] == clip.words


@pytest.mark.parametrize(("format", "sample_rate"), [("mp3", 24_000), ("opus", 16_000), ("s16", 12_345)])
async def test_what_the_client_does_not_make(format, sample_rate):
    with pytest.raises(ValueError, match=r"^(format|sample_rate): expected .*, got"):
        async with client.connect("127.0.0.1:1", format=format, sample_rate=sample_rate):
            pass


@pytest.mark.parametrize("format", ["s16", "opus"])
async def test_samples_that_cannot_be_encoded(service, format):
    async with client.connect(service.url, format=format) as stream:
        with pytest.raises(ValueError, match="expected finite samples"):
            await stream.send([0.0, np.nan])
