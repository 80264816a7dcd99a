"""Programs on the service's own Ray cluster: by handle, and by queues. Each is a process of its own."""

import asyncio
import contextlib
import os
import subprocess
import sys
import textwrap

import httpx
import pytest

from serve_app import client
from serve_app.cli.figures import Scrape
from tests.audio_signals import encoded
from tests.support import PROJECT, Clip
from tests.test_protocols_doc import RAY_EXAMPLES

from .conftest import SLOTS, RunningService

pytestmark = pytest.mark.timeout(200)

PRELUDE = """
import asyncio, contextlib, sys, time, wave
import numpy as np
import ray
from ray import serve
from ray.util.queue import Queue
from serve_app import client, errors
from serve_app.client import on_ray

handle = serve.get_app_handle("stt")
path = sys.argv[1]


def pcm(samples=1_920):
    with wave.open(path) as file:
        while chunk := file.readframes(samples):
            yield chunk


async def paced(seconds_each, chunks):
    for chunk in chunks:
        yield chunk
        await asyncio.sleep(seconds_each)
"""


class Program:
    """A program that uses the service, and the lines that it prints."""

    def __init__(self, service: RunningService, body: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", body, *map(str, arguments)],
            stdout=subprocess.PIPE, text=True, cwd=PROJECT, env={**os.environ, **service.ray_environment},
        )  # fmt: skip

    async def line(self) -> str:
        assert self.process.stdout
        return (await asyncio.to_thread(self.process.stdout.readline)).rstrip("\n")

    async def output(self) -> list[str]:
        """What is left, up to its end, which is a good one."""
        output, _ = await asyncio.to_thread(self.process.communicate, timeout=90)
        assert self.process.returncode == 0, output
        return output.splitlines()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def program(service: RunningService, clip: Clip, body: str, *arguments: object) -> Program:
    return Program(service, PRELUDE + textwrap.dedent(body), clip.path, *arguments)


def outcomes(service: RunningService) -> dict[str, int]:
    """How many sessions have ended in which way so far."""
    scrape = Scrape(httpx.get(f"{service.base}/metrics", timeout=10).text, at=0.0)
    return {outcome: int(count) for outcome, count in scrape.by("outcome", "stt_sessions_total").items()}


@contextlib.asynccontextmanager
async def ended_as(service: RunningService, *expected: str):
    """The sessions of the block end in these ways, and give their slots back."""
    await service.wait_until_empty()
    before = outcomes(service)
    yield
    await service.wait_until_empty()
    after = outcomes(service)
    assert {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)} == {
        name: expected.count(name) for name in expected
    }


@pytest.mark.parametrize(("title", "body", "printed"), RAY_EXAMPLES, ids=[title for title, *_ in RAY_EXAMPLES])
async def test_an_example_of_the_documentation(service, title, body, printed):
    assert (await Program(service, body).output())[-1:] == printed.splitlines()[-1:]
    await service.wait_until_empty()


async def test_words_by_handle_two_at_once(service, clip):
    body = """
    async def one(audio, **query):
        return [event async for event in on_ray.transcribe(
            handle, audio, format="s16", words=True, pauses=True, wait_s=30, **query
        )]


    async def main():
        samples = np.frombuffer(b"".join(pcm()), "<i2")
        stereo = np.repeat(samples, 2).tobytes()
        for events in await asyncio.gather(one(paced(0.02, pcm())), one([stereo], channels=2, sample_rate=24_000)):
            ready, *rest, done = [event for event in events if not isinstance(event, client.Status)]
            assert isinstance(ready, client.Ready) and isinstance(done, client.Done), events
            assert sum(isinstance(event, client.Pauses) for event in rest) >= done.audio_seconds // 0.08, rest
            assert abs(done.audio_seconds - len(samples) / 24_000) < 0.1, done
            print(*(event.text for event in rest if isinstance(event, client.Word)))


    asyncio.run(main())
    """
    async with ended_as(service, "done", "done"):
        assert await program(service, clip, body).output() == [" ".join(clip.words)] * 2


async def test_text_by_queue_two_at_once_in_files_of_any_format(service, clip, tmp_path):
    mp3 = tmp_path / "clip"
    mp3.write_bytes(encoded(clip.samples, 24_000, "mp3", "libmp3lame"))
    body = """
    def start(path, size):
        data = open(path, "rb").read()
        audio, transcription = Queue(), Queue()
        for begin in range(0, len(data), size):
            audio.put(data[begin : begin + size])
        audio.put(None)
        return handle.transcribe_queue.remote(audio, transcription, wait_s=30), audio, transcription


    # the example's 24,000 bytes, and files of which each is a chunk
    for response, _, transcription in [start(sys.argv[2], 24_000), start(path, 10**7)]:
        text = ""
        while (piece := transcription.get()) is not None:
            text += piece
        response.result()
        print(text)
    """
    async with ended_as(service, "done", "done"):
        assert await program(service, clip, body, mp3).output() == [" " + " ".join(clip.words)] * 2


async def test_a_program_that_stops_early_frees_its_slot_at_once(service, clip):
    body = """
    async def main():
        events = on_ray.transcribe(handle, paced(0.08, pcm()), format="s16", wait_s=30)
        async with contextlib.aclosing(events):
            async for event in events:
                print(type(event).__name__, flush=True)
                if isinstance(event, client.Token):
                    break
        print("left", flush=True)
        await asyncio.sleep(60)


    asyncio.run(main())
    """
    async with ended_as(service, "left"):
        running = program(service, clip, body)
        while await running.line() != "left":
            pass
        await service.wait_until_empty()
    running.kill()


@pytest.mark.parametrize("way", ["handle", "queue"])
async def test_a_program_that_is_killed_frees_its_slot_at_once(service, clip, way):
    body = """
    async def by_handle():
        async for event in on_ray.transcribe(handle, paced(0.08, pcm()), format="s16", wait_s=30):
            if isinstance(event, client.Token):
                print("talking", flush=True)


    def by_queue():
        audio, transcription = Queue(), Queue()
        response = handle.transcribe_queue.remote(audio, transcription, wait_s=30)
        audio.put(open(path, "rb").read())
        transcription.get()
        print("talking", flush=True)
        time.sleep(60)


    asyncio.run(by_handle()) if sys.argv[2] == "handle" else by_queue()
    """
    async with ended_as(service, "left"):
        running = program(service, clip, body, way)
        assert await running.line() == "talking"
        running.kill()


async def test_mistakes_are_errors_of_the_ways_own_kind(service, clip):
    body = """
    async def refused(audio, **query):
        try:
            async for event in on_ray.transcribe(handle, audio, wait_s=30, **query):
                pass
        except client.ServerError as error:
            print(error.code)


    def queue_refused(*chunks, wait_s=30.0):
        audio, transcription = Queue(), Queue()
        for chunk in (*chunks, None):
            audio.put(chunk)
        response = handle.transcribe_queue.remote(audio, transcription, wait_s)
        assert transcription.get() is None
        try:
            response.result()
        except errors.SpeechError as error:
            print(error.code)


    async def breaks():
        yield bytes(7_680)
        raise ZeroDivisionError("of the program itself")


    async def main():
        await refused([np.array([np.nan], "<f4").tobytes()])
        await refused([bytes(7_680)], format="mp3")
        try:
            await refused(breaks())
        except ZeroDivisionError as error:
            print(error)


    asyncio.run(main())
    queue_refused(b"good morning")
    queue_refused("good morning")
    queue_refused(b"", wait_s=1_000)
    """
    async with ended_as(service, "invalid_audio", "left", "invalid_audio", "invalid_message"):
        assert await program(service, clip, body).output() == [
            "invalid_audio", "invalid_message", "of the program itself",
            "invalid_audio", "invalid_message", "invalid_message",
        ]  # fmt: skip


async def test_no_slot_is_at_capacity_and_a_wait_is_worth_it(service, clip):
    body = """
    async def one(**query):
        events = on_ray.transcribe(handle, pcm(), format="s16", words=True, **query)
        return " ".join([event.text async for event in events if isinstance(event, client.Word)])


    async def main():
        try:
            await one()
        except client.ServerError as error:
            print(error.code, error.retry_after_s)
        response = handle.transcribe_queue.remote(Queue(), Queue())
        try:
            await response
        except errors.AtCapacity as error:
            print(error.code)
        waiting = asyncio.create_task(one(wait_s=60))
        await asyncio.sleep(1)
        print("waits", flush=True)
        print(await waiting)


    asyncio.run(main())
    """
    await service.wait_until_empty()
    async with contextlib.AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(client.connect(service.url)) for _ in range(SLOTS)]
        for stream in streams:
            assert isinstance(await anext(stream), client.Ready)
        running = program(service, clip, body)
        feeding = asyncio.create_task(keep_alive(streams))
        assert [await running.line() for _ in range(3)] == ["at_capacity 5.0", "at_capacity", "waits"]
        feeding.cancel()
    assert await running.output() == [" ".join(clip.words)]
    await service.wait_until_empty()


async def keep_alive(streams: list[client.Stream]) -> None:
    """Silence in real time: the service ends sessions without audio."""
    while True:
        for stream in streams:
            await stream.send([0.0] * 12_000)
        await asyncio.sleep(0.5)
