"""Stream samples as a microphone would, and say when everything happened."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serve_app.client.encoding import Format
from serve_app.client.events import Event, Ready
from serve_app.client.sending import stop_sending
from serve_app.client.stream import Stream, connect
from serve_app.speech import FRAME_SAMPLES, FRAME_SECONDS, SAMPLE_RATE_HZ


@dataclass(frozen=True)
class Arrival:
    """An event and when it came."""

    event: Event
    at_s: float
    """Seconds since the clock of the audio started: at `rtf` 1 the sample at second t is spoken at t."""


@dataclass
class Pace:
    """How the sending went, chunk by chunk (80 ms each); filled while it goes on."""

    sent_at_s: list[float] = field(default_factory=list)
    """When each chunk was handed to the network, in the clock of `Arrival.at_s`."""

    lateness_s: list[float] = field(default_factory=list)
    """How much later than planned that was; without a plan (`rtf` 0), how long the server let the chunk wait."""

    def when_sent_s(self, audio_s: float) -> float:
        """When the sample at `audio_s` was sent, in the clock of `Arrival.at_s`; IndexError if it was not yet."""
        return self.sent_at_s[int(audio_s / FRAME_SECONDS)]


async def transcribe(
    url: str,
    samples: NDArray[np.float32],
    *,
    rtf: float = 1.0,
    words: bool = False,
    pauses: bool = False,
    model: str | None = None,
    api_key: str | None = None,
    headers: Mapping[str, str] | None = None,
    wait_s: float = 0.0,
    format: Format = "f32",
    sample_rate: int = SAMPLE_RATE_HZ,
    open_timeout_s: float = 10.0,
    timeout_s: float = 30.0,
    pace: Pace | None = None,
) -> AsyncGenerator[Arrival]:
    """Send samples (float32 [n], mono, 24 kHz) in chunks of 80 ms and yield what comes back, up to `Done`.

    `rtf` is the speed: 1 is real time, 3 three times faster, 0 as fast as the server takes it. `pace` is filled with
    how the sending went; the other arguments are those of `connect`. Raises what `connect` and `Stream` raise.
    """
    if not rtf >= 0:
        raise ValueError(f"rtf: expected 0 or more, got {rtf}")
    if samples.ndim != 1:
        raise ValueError(f"samples: expected one dimension, got {samples.ndim}")
    pace = Pace() if pace is None else pace
    async with connect(
        url,
        api_key=api_key,
        headers=headers,
        words=words,
        pauses=pauses,
        model=model,
        wait_s=wait_s,
        format=format,
        sample_rate=sample_rate,
        open_timeout_s=open_timeout_s,
        timeout_s=timeout_s,
    ) as stream:
        first: Event | None = None
        while not isinstance(first, Ready):  # before which comes the place in line, if any
            yield Arrival(first := await anext(stream), 0.0)
        origin = time.monotonic()
        sending = asyncio.create_task(_send(stream, samples, rtf, pace, origin))
        try:
            async for event in stream:
                yield Arrival(event, time.monotonic() - origin)
        finally:
            await stop_sending(sending)


async def _send(stream: Stream, samples: NDArray[np.float32], rtf: float, pace: Pace, origin: float) -> None:
    """Send all samples by the plan: chunk k leaves once it has been "spoken", at (k + 1) * 80 ms / rtf."""
    for number, start in enumerate(range(0, len(samples), FRAME_SAMPLES), 1):
        due = origin + number * FRAME_SECONDS / rtf if rtf else time.monotonic()
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await stream.send(samples[start : start + FRAME_SAMPLES])
        now = time.monotonic()
        pace.sent_at_s.append(now - origin)
        pace.lateness_s.append(now - due)
    await stream.end()
