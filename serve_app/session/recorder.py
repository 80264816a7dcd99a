"""What a session must remember to be re-created on another engine; small, bounded, always up to date."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from serve_app.speech import FRAME_SAMPLES, FrameResult, History, ModelInfo

CODEC_WARMTH = 2
"""Multiples of the codec's context that its audio must span for every code after a move to be the same.

With one, 0.2 % of the tokens change and no word; with none, 1.4 % and still no word (measured on the demo model).
"""


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
        self._codebooks = info.codebooks
        self.sent = 0
        """Frames sent so far."""
        self.answered = 0
        """Frames answered so far."""

    def add_frames(self, frames: NDArray[np.float32]) -> None:
        """Remember frames, float32 [n, FRAME_SAMPLES], that are being sent; at most a window may be unanswered."""
        self._audio[self._places(self.sent, self.sent + len(frames))] = frames
        self.sent += len(frames)

    def add_result(self, result: FrameResult) -> None:
        """Remember the next result."""
        self._results.append((result.token, result.codes))
        self.answered += 1

    @property
    def unanswered(self) -> NDArray[np.float32]:
        """The frames that were sent and have no result: a copy, float32 [n, FRAME_SAMPLES]."""
        return self._audio[self._places(self.answered, self.sent)]

    def history(self) -> History:
        """All that re-creates the stream as it was after its last result."""
        count = len(self._results)
        tokens = np.fromiter((token for token, _ in self._results), dtype=np.int32, count=count)
        codes = np.zeros((count, self._codebooks), dtype=np.int16)
        for row, (_, frame_codes) in enumerate(self._results):
            codes[row] = frame_codes
        audio = self._audio[self._places(max(0, self.answered - self._warm_frames), self.answered)]
        return History(next_frame=self.answered, tokens=tokens, codes=codes, audio=audio)

    def _places(self, start: int, stop: int) -> NDArray[np.int64]:
        return np.arange(start, stop) % len(self._audio)
