"""Whole audio files, on disk or through a pipe, as the samples the service works with."""

import math
import os
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from serve_app.audio.upload import decode_upload
from serve_app.errors import InvalidAudio

MOST_STREAMED_BYTES = 2**30
"""Most that is taken from a pipe, which may be endless: three hours of uncompressed stereo."""

_PIECE_BYTES = 2**20


class AudioFileError(Exception):
    """A file cannot be read as audio; the text names the file and what is wrong with it."""

    def __init__(self, path: Path | str, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


def read_audio(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Read a WAV, FLAC, MP3, Ogg, WebM or M4A file: float32 [n], mono, 24 kHz, nominally within -1 and 1.

    The contents decide about the format, not the name. Channels are averaged. Raises `AudioFileError` where the file is
    missing, is a folder, holds no audio or cannot be decoded. A pipe is read up to its end.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            return _decode(stream, file) if file.is_file() else read_stream(stream, file)
    except FileNotFoundError:
        raise AudioFileError(file, "no such file") from None
    except IsADirectoryError:
        raise AudioFileError(file, "expected a file, got a folder") from None
    except OSError as error:
        raise AudioFileError(file, f"cannot be read ({error.strerror})") from error


def read_stream(stream: BinaryIO, name: Path | str) -> NDArray[np.float32]:
    """Read what comes through a pipe up to its end, as `read_audio` reads a file; `name` is what messages call it.

    Raises `AudioFileError`, for more than `MOST_STREAMED_BYTES` too.
    """
    try:
        with tempfile.TemporaryFile(prefix="stt-") as copy:  # decoders want to seek
            while piece := stream.read(_PIECE_BYTES):
                copy.write(piece)
                if copy.tell() > MOST_STREAMED_BYTES:
                    raise AudioFileError(
                        name, f"expected at most {MOST_STREAMED_BYTES:,} bytes through a pipe, got more"
                    )
            copy.seek(0)
            return _decode(copy, name)
    except OSError as error:
        raise AudioFileError(name, f"cannot be read ({error.strerror})") from error


def _decode(stream: BinaryIO, name: Path | str) -> NDArray[np.float32]:
    try:
        return np.concatenate(list(decode_upload(stream, max_seconds=math.inf)))
    except InvalidAudio as error:
        raise AudioFileError(name, error.message) from error
