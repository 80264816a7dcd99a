"""Whole audio files, of any format people send, as the samples the service works with."""

import os
import tempfile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soxr
import sphn
from numpy.typing import NDArray

from serve_app.speech import SAMPLE_RATE_HZ

MOST_STREAMED_BYTES = 2**30
"""Most that is taken from a pipe, which may be endless: three hours of uncompressed stereo."""

_PIECE_BYTES = 2**20


class AudioFileError(Exception):
    """A file cannot be read as audio; the text names the file and what is wrong with it."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(f"{path}: {problem}")
        self.path = path
        self.problem = problem


def read_audio(path: str | os.PathLike[str]) -> NDArray[np.float32]:
    """Read a WAV, FLAC, MP3, Ogg/Vorbis or Ogg/Opus file: float32 [n], mono, 24 kHz, nominally within -1 and 1.

    The contents decide about the format, not the name. Channels are averaged. Raises `AudioFileError` where the file is
    missing, is a folder, holds no audio or cannot be decoded. A pipe is read up to its end.
    """
    file = Path(path)
    if not file.exists() or file.is_file() or file.is_dir():
        return _decode(file, file)
    try:
        with file.open("rb") as stream:
            return read_stream(stream, file)
    except OSError as error:
        raise _unreadable(file, error) from error


def read_stream(stream: BinaryIO, name: Path) -> NDArray[np.float32]:
    """Read what comes through a pipe up to its end, as `read_audio` reads a file; `name` is what messages call it.

    Raises `AudioFileError`, for more than `MOST_STREAMED_BYTES` too.
    """
    try:
        with tempfile.NamedTemporaryFile(prefix="stt-") as copy:  # decoders want to seek
            while piece := stream.read(_PIECE_BYTES):
                copy.write(piece)
                if copy.tell() > MOST_STREAMED_BYTES:
                    raise AudioFileError(
                        name, f"expected at most {MOST_STREAMED_BYTES:,} bytes through a pipe, got more"
                    )
            copy.flush()
            return _decode(Path(copy.name), name)
    except OSError as error:
        raise _unreadable(name, error) from error


def _decode(file: Path, name: Path) -> NDArray[np.float32]:
    opus = _is_opus(file, name)
    try:
        channels, rate_hz = sphn.read_opus(str(file)) if opus else sphn.read(str(file))
    except (ValueError, OSError) as error:
        raise AudioFileError(
            name, f"expected a WAV, FLAC, MP3 or Ogg file, got one that does not decode ({error})"
        ) from error
    except BaseException as error:
        # A panic in the decoder's Rust code arrives as a BaseException of PyO3's own, which no module exports.
        if type(error).__name__ != "PanicException":
            raise
        raise AudioFileError(name, f"the decoder failed on it ({error})") from error
    if channels.size == 0:
        raise AudioFileError(name, "expected audio, got a file without a single sample")
    samples = channels.mean(axis=0, dtype=np.float32)
    if rate_hz != SAMPLE_RATE_HZ:
        samples = soxr.resample(samples, rate_hz, SAMPLE_RATE_HZ)
    if not np.isfinite(samples).all():
        raise AudioFileError(name, "expected finite samples, got NaN or infinite ones")
    return np.ascontiguousarray(samples, np.float32)


def _is_opus(file: Path, name: Path) -> bool:
    """Tell Ogg/Opus, which sphn decodes with a function of its own, from the rest; raises where nothing is there."""
    try:
        with file.open("rb") as stream:
            head = stream.read(512)
    except FileNotFoundError:
        raise AudioFileError(name, "no such file") from None
    except IsADirectoryError:
        raise AudioFileError(name, "expected a file, got a folder") from None
    except OSError as error:
        raise _unreadable(name, error) from error
    if not head:
        raise AudioFileError(name, "the file is empty")
    return head.startswith(b"OggS") and b"OpusHead" in head


def _unreadable(name: Path, error: OSError) -> AudioFileError:
    return AudioFileError(name, f"cannot be read ({error.strerror})")
