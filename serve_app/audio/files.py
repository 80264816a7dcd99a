"""Whole audio files on disk as the samples the service works with."""

import math
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve_app.audio.upload import decode_upload
from serve_app.errors import InvalidAudio


class AudioFileError(Exception):
    """A file cannot be read as audio; the text names the file and what is wrong with it."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


def read_audio(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Read a WAV, FLAC, MP3, Ogg, WebM or M4A file: float32 [n], mono, 24 kHz, nominally within -1 and 1.

    The contents decide about the format, not the name. Channels are averaged. Raises `AudioFileError` where the file is
    missing, is a folder, holds no audio or cannot be decoded.
    """
    file = Path(path)
    try:
        with file.open("rb") as stream:
            return np.concatenate(list(decode_upload(stream, max_seconds=math.inf)))
    except FileNotFoundError:
        raise AudioFileError(file, "no such file") from None
    except IsADirectoryError:
        raise AudioFileError(file, "expected a file, got a folder") from None
    except OSError as error:
        raise AudioFileError(file, f"cannot be read ({error.strerror})") from error
    except InvalidAudio as error:
        raise AudioFileError(file, error.message) from error
