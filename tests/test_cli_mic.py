"""`stt mic` as a process of its own, against the real ingress and real PortAudio: ALSA's file plugin is the microphone."""

import asyncio
import ctypes.util
import os
import pty
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from serve_app.cli.mic import loudness
from tests.support import Service, serving

needs_portaudio = pytest.mark.skipif(
    not (ctypes.util.find_library("portaudio") and Path("/usr/share/alsa/alsa.conf").exists()),
    reason="PortAudio or ALSA's configuration is missing (Debian: libportaudio2, libasound2-data)",
)

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

SAMPLE_BYTES = 4


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


def speak(fifo: Path, samples, then_hear_nothing: "asyncio.Event | None" = None) -> None:
    """Write into the FIFO at the pace at which it is read."""
    with fifo.open("wb") as microphone:
        microphone.write(samples.astype("<f4").tobytes())


@needs_portaudio
@pytest.mark.parametrize("format", ["f32", "opus"])
async def test_words_come_until_the_user_has_enough(service, clip, fifo, format):
    process = await start(fifo.parent, "--device", "clip", "--url", service.url, "--format", format)
    await asyncio.to_thread(speak, fifo, np.pad(clip.samples, (0, 48_000)))
    heard = b""
    while len(heard.split()) < 3:
        heard += await process.stdout.read(100)
    process.send_signal(signal.SIGINT)
    rest, errors = await process.communicate()
    print((heard + rest).decode(), errors.decode())
    assert (heard + rest).decode().split()[:9] == clip.words
    assert process.returncode == 0
    await service.wait_until_empty()
