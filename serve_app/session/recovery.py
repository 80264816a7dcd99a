"""Notices a decoder that is ill: it says nothing although somebody speaks, or the same again and again.

Both happen to Kyutai's models now and then in long sessions (delayed-streams-modeling, issues 146 and 175). A decoder
that starts again from a short history is well.
"""

from collections import deque
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from serve_app.settings import ModelSettings
from serve_app.speech import END_OF_PADDING_TOKEN, FRAMES_PER_SECOND, PADDING_TOKEN, FrameResult

SPEECH_LEVEL_DB = -40.0
"""Frames louder than this (RMS, against full scale) count as speech."""

LONGEST_PHRASE_TOKENS = 16
"""Repetitions of longer phrases are not looked for."""

PATIENCE_FACTOR = 2.0
"""After a restart that brought no word, the next one waits longer by this much: it may be music after all."""

Illness: TypeAlias = Literal["silent", "repeating"]


class Recovery:
    """Watches one stream; tell it of every frame and of every result, in order."""

    def __init__(self, model: ModelSettings) -> None:
        """The model's settings say after how much of it a decoder is ill; None: never."""
        silent_s = model.restart_when_silent_seconds
        self._silent_limit = None if silent_s is None else round(silent_s * FRAMES_PER_SECOND)
        self._repeats_limit = model.restart_when_repeated
        self._patience = 1.0
        self._speech = 0  # frames since the last text
        self._is_speech: deque[bool] = deque()  # of frames without a result yet
        self._tokens: deque[int] = deque(maxlen=LONGEST_PHRASE_TOKENS * (self._repeats_limit or 0))

    def sent(self, frames: NDArray[np.float32]) -> None:
        """Frames, float32 [n, FRAME_SAMPLES], go to the engine."""
        if self._silent_limit is not None:
            power = np.square(frames).mean(axis=1)
            self._is_speech.extend((power > 10 ** (SPEECH_LEVEL_DB / 10)).tolist())

    def heard(self, result: FrameResult) -> Illness | None:
        """The next frame's result; what is wrong with the decoder, said once for each restart that it needs."""
        is_text = result.token not in (PADDING_TOKEN, END_OF_PADDING_TOKEN)
        if self._silent_limit is not None and self._is_speech:
            if self._is_speech.popleft():
                self._speech += 1
            if is_text:
                self._speech, self._patience = 0, 1.0
            elif self._speech >= self._silent_limit * self._patience:
                self._speech, self._patience = 0, self._patience * PATIENCE_FACTOR
                return "silent"
        if self._repeats_limit is not None and is_text:
            self._tokens.append(result.token)
            if self._repeats():
                self._tokens.clear()
                return "repeating"
        return None

    def _repeats(self) -> bool:
        """Whether the latest tokens are one phrase, said as often as the limit."""
        latest = list(reversed(self._tokens))
        for phrase in range(1, LONGEST_PHRASE_TOKENS + 1):
            span = phrase * (self._repeats_limit or 0)
            if span > len(latest):
                return False
            if latest[: span - phrase] == latest[phrase:span]:
                return True
        return False
