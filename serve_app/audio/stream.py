"""Audio as clients stream it: any declared format, and Ogg/Opus recognised without being declared."""

import time
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serve_app.audio.formats import OPUS, AudioFormat
from serve_app.audio.ogg import PAGE_START
from serve_app.audio.opus import OpusDecoder
from serve_app.audio.pace import PaceCheck
from serve_app.audio.pcm import PcmDecoder

PIECE_BYTES = 8_192
"""Decoders are fed at most this much at once, so that what comes out of raw bytes at once is bounded as well."""

BUSY_SECONDS = 0.1
"""A message that takes us longer than this was held up by us, so its sender's pace says nothing."""


class Decoder(Protocol):
    """Bytes of one stream to samples. One that has raised is not used any more."""

    @property
    def is_raw(self) -> bool:
        """So many bytes are so many seconds."""

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[NDArray[np.float32]]:
        """Take bytes; yield the samples that are ready, float32 [n] at 24 kHz, mono, in bounded blocks; n may be 0.

        Nothing is decoded ahead. Raises InvalidAudio.
        """

    def finish(self) -> NDArray[np.float32]:
        """Say that no more bytes come; the rest, float32 [n]. Raises InvalidAudio where the end is cut off."""


def make_decoder(audio_format: AudioFormat) -> Decoder:
    """The decoder for what was declared; raw formats may turn out to be Ogg/Opus."""
    return OpusDecoder() if audio_format.encoding == OPUS else _RecognisingDecoder(audio_format)


class AudioStream:
    """One client's audio: decodes it, watches its pace. A new one may take over after a cut; see the decoders."""

    def __init__(self, audio_format: AudioFormat, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells seconds, and only rises."""
        self._decoder = make_decoder(audio_format)
        self._pace = PaceCheck(audio_format)
        self._clock = clock

    def feed(self, message: bytes | bytearray | memoryview) -> Iterator[NDArray[np.float32]]:
        """Take a message of any size; yield its samples in bounded blocks, float32 [n] at 24 kHz, mono; n may be 0.

        Nothing is decoded ahead: the caller may take its time with each block, and should give others a turn between
        two of them. Raises InvalidAudio, saying what the audio looks like.
        """
        came_at = self._clock()
        view = memoryview(message)
        for start in range(0, len(view), PIECE_BYTES):
            yield from self._decoder.feed(view[start : start + PIECE_BYTES])
        if not self._decoder.is_raw:
            return
        self._pace.check(len(message), came_at)
        if self._clock() - came_at > BUSY_SECONDS:
            self._pace.reset()

    def finish(self) -> NDArray[np.float32]:
        """Say that no more comes; the rest, float32 [n], and nothing when called again. Raises InvalidAudio."""
        return self._decoder.finish()


class _RecognisingDecoder:
    """Raw audio, unless the first bytes are those of an Ogg stream."""

    def __init__(self, audio_format: AudioFormat) -> None:
        self._format = audio_format
        self._head = b""
        self._decoder: OpusDecoder | PcmDecoder | None = None

    @property
    def is_raw(self) -> bool:
        """It has not turned out to be Ogg/Opus."""
        return self._decoder is None or self._decoder.is_raw

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[NDArray[np.float32]]:
        if self._decoder is None:
            self._head += data
            if PAGE_START.startswith(self._head):
                return  # could still be both
            data, self._head = self._head, b""
            self._decoder = OpusDecoder() if data.startswith(PAGE_START) else PcmDecoder(self._format)
        if isinstance(self._decoder, OpusDecoder):
            yield from self._decoder.feed(data)
        else:
            yield self._decoder.feed(data)

    def finish(self) -> NDArray[np.float32]:
        if self._decoder is None:
            self._decoder = PcmDecoder(self._format)
            head = self._decoder.feed(self._head)
            return np.concatenate((head, self._decoder.finish()))
        return self._decoder.finish()
