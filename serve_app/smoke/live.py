"""Dialects that are spoken in real time: the clip goes out as a microphone would send it, words come meanwhile."""

import math
from contextlib import suppress

from serve_app.client import Format
from serve_app.client.address import DEFAULT_PATH
from serve_app.measuring.dialects import WIRES
from serve_app.measuring.hearing import Hearing
from serve_app.measuring.speaking import STREAM, Manner, Outcome, hold
from serve_app.smoke.heard import Heard, Said, Unexpected
from serve_app.smoke.target import Target
from serve_app.speech import FRAME_SECONDS, SAMPLE_RATE_HZ


async def speak(
    target: Target,
    said: Said,
    dialect: str = STREAM,
    *,
    format: Format | None = None,
    sample_rate: int = SAMPLE_RATE_HZ,
) -> Heard:
    """Hold a session as load tests do, in the `Manner` that is asked for. Raises what `hold` does, and `Unexpected`."""
    manner = Manner(
        target.socket_address(DEFAULT_PATH if dialect == STREAM else WIRES[dialect].path),
        dialect,
        format,
        most_wer=math.inf,
        api_key=target.api_key,
        headers=target.headers,
        sample_rate=sample_rate,
    )
    outcome, hearing = Outcome(said.clip.file, said.clip.seconds), Hearing()
    await hold(said.clip, manner, outcome, hearing)
    if outcome.failure is not None:
        raise Unexpected(f"{outcome.failure}; heard {hearing.text!r}")
    begins_s = next((word.start_s for word in hearing.words if not math.isnan(word.start_s)), None)
    first_word_s = begins_s if said.first_word_s is None else said.first_word_s
    return Heard(hearing.text, _delay_s(hearing.first_text_at_s, outcome, first_word_s), begins_s)


def _delay_s(arrived_s: float | None, outcome: Outcome, first_word_s: float | None) -> float | None:
    """From the moment the start of the first word was sent to the first text."""
    if arrived_s is None or first_word_s is None:
        return None
    chunk = int(first_word_s / FRAME_SECONDS)
    with suppress(IndexError):  # it begins at the very end
        return arrived_s - (chunk + 1) * FRAME_SECONDS - outcome.late_s[chunk]
    return None
