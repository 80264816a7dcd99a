"""What a session must remember to be re-created on another engine; small, bounded, always up to date."""

from collections import deque
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from serve_app.speech import FRAME_SAMPLES, FrameResult, History, ModelInfo

CODEC_WARMTH = 2
"""Multiples of the codec's context that its audio must span for every code after a move to be the same.

With one, 0.2 % of the tokens change and no word; with none, 1.4 % and still no word (measured on the demo model).
"""


class Heard(NamedTuple):
    """Results of consecutive frames."""

    tokens: NDArray[np.int32]
    """Text tokens, int32 [n]."""
    codes: NDArray[np.int16]
    """Audio codes, int16 [n, codebooks]."""


class Recorder:
    """The recent past of one stream: audio of frames sent, tokens and codes of frames answered.

    Rings of fixed size: the decoder's context of tokens and codes, `CODEC_WARMTH` codec contexts of answered audio, and
    a window of audio that waits for its results.
    """

    def __init__(self, info: ModelInfo, window_frames: int) -> None:
        # One token more than the context: the oldest only says what was fed to the frame after it.
        self._results: deque[tuple[int, NDArray[np.int16]]] = deque(maxlen=info.context_frames + 1)
        self._warm_frames = CODEC_WARMTH * info.codec_context_frames
        self._audio = np.zeros((self._warm_frames + window_frames, FRAME_SAMPLES), dtype=np.float32)
        self.codebooks = info.codebooks
        """Codes per frame."""
        self.sent = 0
        """Frames sent so far."""
        self.answered = 0
        """Frames answered so far."""

    def restore(self, sent: int, answered: int, heard: Heard, audio: NDArray[np.float32]) -> None:
        """Become another recorder: `audio` are the latest frames that it sent, `heard` the latest results.

        Both may reach further back than is needed. Raises ValueError for what cannot be one recorder's.
        """
        window = len(self._audio) - self._warm_frames
        if not 0 <= sent - answered <= min(window, len(audio)) or not len(heard.tokens) == len(heard.codes) <= answered:
            raise ValueError(
                f"expected at most {window} unanswered frames, their audio, and results of frames answered, "
                f"got {sent} sent, {answered} answered, audio of {len(audio)}, results of {len(heard.tokens)}"
            )
        latest = audio[-len(self._audio) :]
        self._audio[self._places(sent - len(latest), sent)] = latest
        self._results.extend(zip(heard.tokens.tolist(), heard.codes, strict=True))
        self.sent, self.answered = sent, answered

    def add_frames(self, frames: NDArray[np.float32]) -> None:
        """Remember frames, float32 [n, FRAME_SAMPLES], that are being sent; at most a window may be unanswered."""
        self._audio[self._places(self.sent, self.sent + len(frames))] = frames
        self.sent += len(frames)

    def add_result(self, result: FrameResult) -> None:
        """Remember the next result."""
        self._results.append((result.token, result.codes))
        self.answered += 1

    def forget(self, frames: int) -> None:
        """Keep the latest results of only so many frames: what was said before is not to be leant on any more."""
        for _ in range(len(self._results) - frames):
            self._results.popleft()

    @property
    def audio_floor(self) -> int:
        """The first frame whose audio is needed."""
        return max(0, self.answered - self._warm_frames)

    @property
    def heard_floor(self) -> int:
        """The first frame whose result is needed."""
        return self.answered - len(self._results)

    def audio(self, start: int) -> NDArray[np.float32]:
        """The frames from this one to the last that was sent: a copy, float32 [n, FRAME_SAMPLES]."""
        return self._audio[self._places(max(start, self.audio_floor), self.sent)]

    def heard(self, start: int) -> Heard:
        """The results from this frame's to the last."""
        results = list(islice(self._results, max(0, start - self.heard_floor), None))
        count = len(results)
        tokens = np.fromiter((token for token, _ in results), dtype=np.int32, count=count)
        codes = np.zeros((count, self.codebooks), dtype=np.int16)
        for row, (_, frame_codes) in enumerate(results):
            codes[row] = frame_codes
        return Heard(tokens, codes)

    @property
    def unanswered(self) -> NDArray[np.float32]:
        """The frames that were sent and have no result: a copy, float32 [n, FRAME_SAMPLES]."""
        return self.audio(self.answered)

    def history(self) -> History:
        """All that re-creates the stream as it was after its last result."""
        tokens, codes = self.heard(self.heard_floor)
        audio = self._audio[self._places(self.audio_floor, self.answered)]
        return History(next_frame=self.answered, tokens=tokens, codes=codes, audio=audio)

    def _places(self, start: int, stop: int) -> NDArray[np.int64]:
        return np.arange(start, stop) % len(self._audio)
