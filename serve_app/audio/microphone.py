"""Live audio from this machine's microphones, by PortAudio."""

import asyncio
from collections.abc import AsyncGenerator
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serve_app.audio.resampler import Resampler
from serve_app.speech import FRAME_SECONDS, SAMPLE_RATE_HZ

KEPT_BLOCKS = int(30 / FRAME_SECONDS)
"""Blocks that wait for a listener who is held up, while its connection is made again for example."""


class MicrophoneError(Exception):
    """There is no such microphone, or it cannot be used."""


class Capture(Protocol):
    """Live audio."""

    lost_blocks: int
    """Blocks that nobody took in time."""

    def blocks(self) -> AsyncGenerator[NDArray[np.float32]]:
        """Yield blocks of about 80 ms, float32 [n], mono, 24 kHz, until `stop`. Raises `MicrophoneError`."""

    def stop(self) -> None:
        """Let the blocks end."""


class Microphone:
    """A `Capture` of an input device."""

    def __init__(self, device: str | None = None) -> None:
        """`device` is a number or a part of a name; None: the system's own choice. Raises `MicrophoneError`."""
        self._sounddevice = _sounddevice()
        if not input_devices():
            raise MicrophoneError("this machine has no audio input")
        self._device = int(device) if device and device.isdecimal() else device
        try:
            described = self._sounddevice.query_devices(self._device, "input")
        except (ValueError, self._sounddevice.PortAudioError) as error:
            raise MicrophoneError(f"device {device or 'by default'}: {error}; --list-devices tells all") from None
        self.name = str(described["name"])
        self._rate_hz = self._usable_rate(round(described["default_samplerate"]))
        self.lost_blocks = 0
        self._waiting: asyncio.Queue[NDArray[np.float32] | None] = asyncio.Queue(KEPT_BLOCKS)
        self._stopped = False

    async def blocks(self) -> AsyncGenerator[NDArray[np.float32]]:
        """Yield what is heard from now on."""
        loop = asyncio.get_running_loop()

        def heard(block: NDArray[np.float32], _frames: int, _time: Any, status: Any) -> None:
            self.lost_blocks += bool(status.input_overflow)
            loop.call_soon_threadsafe(self._keep, block[:, 0].copy())

        def finished() -> None:
            loop.call_soon_threadsafe(self._keep, None)

        resampler = Resampler(self._rate_hz)
        try:
            with self._sounddevice.InputStream(
                device=self._device,
                samplerate=self._rate_hz,
                blocksize=round(self._rate_hz * FRAME_SECONDS),
                channels=1,
                dtype="float32",
                callback=heard,
                finished_callback=finished,
            ):
                while (block := await self._waiting.get()) is not None:
                    yield resampler.push(block)
        except self._sounddevice.PortAudioError as error:
            raise MicrophoneError(f"{self.name}: {error}") from None
        if not self._stopped:
            raise MicrophoneError(f"{self.name}: the device has stopped")

    def stop(self) -> None:
        """What was heard so far still comes."""
        self._stopped = True
        self._keep(None)

    def _keep(self, block: NDArray[np.float32] | None) -> None:
        if self._waiting.full():
            self._waiting.get_nowait()
            self.lost_blocks += 1
        self._waiting.put_nowait(block)

    def _usable_rate(self, default_hz: int) -> int:
        """Our own rate where the device has it."""
        try:
            self._sounddevice.check_input_settings(
                device=self._device, channels=1, dtype="float32", samplerate=SAMPLE_RATE_HZ
            )
        except self._sounddevice.PortAudioError:
            return default_hz
        return SAMPLE_RATE_HZ


def input_devices() -> list[str]:
    """The devices that can be listened to, one line each, the system's own choice with a star."""
    sounddevice = _sounddevice()
    chosen = sounddevice.default.device[0]
    return [
        f"{'*' if number == chosen else ' '} {number:3} {device['name']} ({device['max_input_channels']} channels)"
        for number, device in enumerate(sounddevice.query_devices())
        if device["max_input_channels"]
    ]


def _sounddevice() -> ModuleType:
    try:
        import sounddevice
    except OSError:
        raise MicrophoneError(
            "the library PortAudio is missing; on Debian and Ubuntu: apt install libportaudio2"
        ) from None
    return sounddevice
