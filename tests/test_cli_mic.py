"""`stt mic` as a process of its own, the real ingress, real PortAudio; the microphone is ALSA's file plugin."""

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from serve_app.audio.microphone import input_devices
from serve_app.cli.mic import loudness
from tests.support import PROJECT, Service, serving
from tests.system_packages import require_library

CONFIG = """
</usr/share/alsa/alsa.conf>
pcm.clip {
  type file
  slave.pcm "null"
  file "/dev/null"
  infile "%s"
  format "raw"
  hint { show on description "A clip" }
}
"""
"""A device that hears what is written into a FIFO, when it is written."""


@pytest.fixture(scope="module")
def portaudio() -> None:
    require_library("portaudio", "libportaudio2")


@pytest.fixture
async def service(engines) -> AsyncIterator[Service]:
    async with serving(engines) as made:
        yield made


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "speech"
    os.mkfifo(path)
    (tmp_path / "asound.conf").write_text(CONFIG % path)
    return path


async def start(fifo_folder: Path, *arguments: str, output: int = asyncio.subprocess.PIPE, **environment: str):
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "serve_app.cli.main", "mic", *arguments,
        env={**os.environ, "ALSA_CONFIG_PATH": str(fifo_folder / "asound.conf"), "TERM": "xterm", **environment},
        stdout=output, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


@contextlib.asynccontextmanager
async def speaking(fifo: Path, service: Service, samples) -> AsyncIterator[None]:
    """Speak twice as fast as people do once the service listens; then be silent."""
    pieces = (samples[start : start + 1_920].astype("<f4").tobytes() for start in range(0, len(samples), 1_920))
    pipe = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)

    async def speak() -> None:
        while not service.engines.slots_used():
            await asyncio.sleep(0.01)
        while True:
            with contextlib.suppress(BlockingIOError):
                os.write(pipe, next(pieces, bytes(1_920 * 4)))
            await asyncio.sleep(0.04)

    task = asyncio.create_task(speak())
    try:
        yield
    finally:
        task.cancel()
        os.close(pipe)


@pytest.mark.usefixtures("portaudio")
@pytest.mark.parametrize("format", ["f32", "opus"])
async def test_words_come_until_the_user_has_enough(service, clip, fifo, format):
    async with speaking(fifo, service, clip.samples):
        process = await start(fifo.parent, "--device", "clip", "--url", service.url, "--format", format)
        heard = b""
        while len(heard.split()) < 9:
            heard += await process.stdout.read(100)
            assert process.returncode is None
        process.send_signal(signal.SIGINT)
        rest, errors = await process.communicate()
    assert (heard + rest).decode().split() == clip.words
    assert (process.returncode, errors.decode()) == (0, "stt: listening to clip; Ctrl-C ends it\n")
    await service.wait_until_empty()


@pytest.mark.usefixtures("portaudio")
async def test_the_rest_of_the_words_comes_after_the_end(service, clip, fifo):
    samples = np.concatenate((clip.samples[: int(clip.times[2][1] * 24_000)], np.zeros(2_400, np.float32)))
    async with speaking(fifo, service, samples):
        process = await start(fifo.parent, "--device", "0", "--url", service.url)
        heard = await process.stdout.read(1)
        process.send_signal(signal.SIGTERM)
        rest, _ = await process.communicate()
    assert (heard + rest).decode().split()[0] == clip.words[0]
    assert process.returncode == 0


@pytest.mark.usefixtures("portaudio")
async def test_on_a_terminal_there_is_a_meter_and_then_only_the_text(service, clip, fifo):
    ours, theirs = os.openpty()
    shown = bytearray()
    loop = asyncio.get_running_loop()
    loop.add_reader(ours, lambda: shown.extend(os.read(ours, 65_536)))
    try:
        async with speaking(fifo, service, clip.samples):
            process = await start(fifo.parent, "--device", "clip", "--url", service.url, output=theirs)
            while clip.words[-1].encode() not in shown or b"\xe2\x96\x88" not in shown:
                await asyncio.sleep(0.05)
                assert process.returncode is None
            process.send_signal(signal.SIGINT)
            await process.communicate()
    finally:
        loop.remove_reader(ours)
    assert process.returncode == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode()).split("\r\n")
    assert any(line.strip().startswith(" ".join(clip.words[:2])) for line in lines)
    os.close(ours)
    os.close(theirs)


@pytest.mark.usefixtures("portaudio")
async def test_devices_are_listed(fifo):
    pipe = os.open(fifo, os.O_RDWR)  # or PortAudio would wait for somebody who speaks
    try:
        output, _ = await (await start(fifo.parent, "--list-devices")).communicate()
        assert re.search(rb"^[ *]   0 clip \(\d+ channels\)$", output, re.MULTILINE)
        for device in ("nonsense", "77"):
            process = await start(fifo.parent, "--device", device)
            _, errors = await process.communicate()
            assert (process.returncode, len(errors.splitlines())) == (2, 1)
            assert errors.startswith(f"stt: device {device}: ".encode())
    finally:
        os.close(pipe)


@pytest.mark.usefixtures("portaudio")
async def test_a_machine_without_a_microphone(tmp_path):
    if input_devices():
        pytest.skip("this machine has one")
    (tmp_path / "asound.conf").write_text("</usr/share/alsa/alsa.conf>")
    process = await start(tmp_path)
    assert await process.communicate() == (b"", b"stt: this machine has no audio input\n")
    assert process.returncode == 2


async def test_a_machine_without_portaudio(tmp_path):
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    process = await start(tmp_path, PYTHONPATH=f"{tmp_path}:{PROJECT}")
    assert await process.communicate() == (
        b"",
        b"stt: the library PortAudio is missing; on Debian and Ubuntu: apt install libportaudio2\n",
    )
    assert process.returncode == 2


def test_the_meter():
    assert loudness(np.zeros(0, np.float32)) == loudness(np.zeros(9, np.float32)) == 0
    assert loudness(np.ones(9, np.float32)) == 1
    assert 0.4 < loudness(np.full(9, 0.03, np.float32)) < 0.6
