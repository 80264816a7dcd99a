"""Well-behaved sessions: what each one says, and what it hears."""

import asyncio
import random
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serve_app import client
from serve_app.samples import Clip, choose_clips
from serve_app.speech import SAMPLE_RATE_HZ

STAGGER_SECONDS = 2.0
"""Sessions start within this time, at random, as speakers do."""

PATIENCE_SECONDS = 120.0
"""How much longer than its audio a session may take before it counts as lost."""


@dataclass(frozen=True)
class Script:
    """What one session says."""

    samples: NDArray[np.float32]
    start_s: float
    """When it begins, seconds after the first one may."""


@dataclass(frozen=True)
class HeardWord:
    """A word and when it came; all times in seconds of the session's audio clock."""

    text: str
    start_s: float
    end_s: float
    at_s: float


@dataclass
class Heard:
    """What one session heard, filled while it goes on."""

    words: list[HeardWord] = field(default_factory=list)
    migrations_s: list[float] = field(default_factory=list)
    """How long the service said that the session was between two engines, one value for each move."""
    error: str | None = "it has not ended"
    """Why the session was lost; None if it reached its regular end."""
    refused: bool = False
    """It never began: the service said that it is full."""
    over: bool = False


def write_scripts(sessions: int, seconds: float) -> list[Script]:
    """Several clips in a row for each session, each session in another order; the same for the same numbers."""
    clips = choose_clips()
    draw = random.Random(sessions)
    return [
        Script(_concatenated(clips, number, seconds), draw.uniform(0, STAGGER_SECONDS)) for number in range(sessions)
    ]


def _concatenated(clips: list[Clip], first: int, seconds: float) -> NDArray[np.float32]:
    chosen: list[NDArray[np.float32]] = []
    number = first
    while sum(map(len, chosen)) < seconds * SAMPLE_RATE_HZ:
        chosen.append(clips[number % len(clips)].samples)
        number += 1
    return np.concatenate(chosen)[: round(seconds * SAMPLE_RATE_HZ)]


async def speak(url: str, script: Script, heard: Heard) -> None:
    """Hold one session in real time. Never raises but for a cancellation: `heard.error` says what went wrong."""
    seconds = len(script.samples) / SAMPLE_RATE_HZ
    await asyncio.sleep(script.start_s)
    try:
        async with asyncio.timeout(seconds + PATIENCE_SECONDS):
            await _listen(url, script, heard, seconds)
    except client.ServerError as error:
        heard.refused = error.code == "at_capacity" and not heard.words
        heard.error = str(error)
    except client.ClientError as error:
        heard.error = f"{type(error).__name__}: {error}"
    except TimeoutError:
        heard.error = f"not over {PATIENCE_SECONDS:g} s after its audio"
    finally:
        heard.over = True


async def _listen(url: str, script: Script, heard: Heard, seconds: float) -> None:
    left_at: float | None = None
    async for arrival in client.transcribe(url, script.samples, words=True):
        match arrival.event:
            case client.Word(text=text, start=start, end=end):
                heard.words.append(HeardWord(text, start, end, arrival.at_s))
            case client.Status(state="migrating"):
                left_at = time.monotonic()
            case client.Status(state="live") if left_at is not None:
                heard.migrations_s.append(time.monotonic() - left_at)
                left_at = None
            case client.Done(audio_seconds=audio_seconds):
                lost_audio = abs(audio_seconds - seconds) > 0.01
                said = f"{seconds:.2f} s of audio were sent, {audio_seconds:.2f} s arrived"
                heard.error = said if lost_audio else None
