"""Whole audio files of the formats people have, decoded piece by piece."""

import io
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import BinaryIO, Protocol

import av
import numpy as np
from numpy.typing import NDArray

from serve_app.audio.containers import FLAC, HEAD_BYTES, MP4, SUPPORTED, WAV, Container, recognise
from serve_app.audio.downmix import downmix
from serve_app.audio.resampler import Resampler
from serve_app.audio.wav_header import is_length_wrong
from serve_app.errors import AudioTooLong, InvalidAudio
from serve_app.speech import MAX_AMPLITUDE, SAMPLE_RATE_HZ

BLOCK_SAMPLES = SAMPLE_RATE_HZ
"""Samples of one block that `decode_upload` yields; the last one is shorter."""

SAMPLE_RATES_HZ = (1_000, 768_000)
"""Rates that files may have. What is beyond is a header that lies."""

TELLING = (FLAC, MP4)
"""Kinds of files whose header tells how long they are. Others guess, or are as large as they are long."""

LENIENCE_SECONDS = 1.0
"""What a header may count besides the audio: what an encoder puts around it."""

MAX_CHANNELS = 32
MAX_BAD_PACKETS = 1_000
"""So many packets in a row that do not decode are not looked through for one that does."""


def decode_upload(file: bytes | BinaryIO, max_seconds: float) -> Iterator[NDArray[np.float32]]:
    """Decode a WAV, FLAC, MP3, Ogg, WebM or M4A file; yield blocks of float32 [n], mono, 24 kHz, a second each.

    The contents decide about the format. Channels are averaged; of several tracks the best one counts. Of a damaged
    file comes what decodes, and a WAV file's samples count, whatever its header says of their number. Memory is bounded
    whatever comes: a file object (which must be able to seek) is read piece by piece. It is blocking work: run it in a
    thread.

    Raises InvalidAudio for what is no audio file, does not decode at all or holds NaN, infinite or absurd samples, and
    AudioTooLong as soon as `max_seconds` are passed, or at once where the header says so.
    """
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    container, options = _recognised(source)
    yield from decode_container(source, container, max_seconds, BLOCK_SAMPLES, options)


def decode_native(file: bytes, max_seconds: float) -> Iterator[tuple[NDArray[np.float32], int]]:
    """What `decode_upload` does, at the file's own sample rate: pieces float32 [n], mono, each with its rate in Hz.

    A file without a single sample is no error here: nothing comes.
    """
    source = io.BytesIO(file)
    container, options = _recognised(source)
    left_s = max_seconds
    for samples, rate_hz in _decoded(source, container, max_seconds, options):
        left_s -= len(samples) / rate_hz
        if left_s < 0:
            raise AudioTooLong(f"expected at most {max_seconds:g} s of audio, got more")
        yield _checked(samples), rate_hz


def _recognised(source: BinaryIO) -> tuple[Container, dict[str, str]]:
    """What the file is, and how to read it."""
    container = recognise_file(source.read(HEAD_BYTES))
    source.seek(0)
    return container, {"ignore_length": "1"} if container is WAV and is_length_wrong(source) else {}


def recognise_file(head: bytes) -> Container:
    """What a file that begins with these bytes is. Raises InvalidAudio for what is no audio file."""
    if not head:
        raise InvalidAudio("expected an audio file, got an empty one")
    container = recognise(head)
    if container is None:
        raise InvalidAudio(f"expected a {SUPPORTED} file, got one that begins with {head[:16]!r}")
    return container


def decode_container(
    source: "Readable",
    container: Container,
    max_seconds: float,
    block_samples: int,
    options: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[NDArray[np.float32]]:
    """What `decode_upload` does, for a file of a known kind in blocks of any size; `options` are for its demuxer."""
    left = max_seconds * SAMPLE_RATE_HZ  # may be infinite
    block = _Block(block_samples)
    for samples in _resampled(_decoded(source, container, max_seconds, options)):
        left -= len(samples)
        if left < 0:
            raise AudioTooLong(f"expected at most {max_seconds:g} s of audio, got more")
        yield from block.push(_checked(samples))
    if not block.total:
        raise InvalidAudio(f"expected audio, got {container.name} without a single sample that decodes")
    yield from block.rest()


class Readable(Protocol):
    """A file, or as much of one as demuxers need that read it from its beginning to its end."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most so many; none at the end."""


class _Block:
    """Collects samples into blocks."""

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._parts: list[NDArray[np.float32]] = []
        self._waiting = 0
        self.total = 0

    def push(self, samples: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
        self.total += len(samples)
        while self._waiting + len(samples) >= self._samples:
            room = self._samples - self._waiting
            self._parts.append(samples[:room])
            samples = samples[room:]
            yield from self.rest()
        self._parts.append(samples)
        self._waiting += len(samples)

    def rest(self) -> Iterator[NDArray[np.float32]]:
        parts, self._parts, self._waiting = self._parts, [], 0
        if any(len(part) for part in parts):
            yield np.concatenate(parts)


def _decoded(
    source: Readable, container: Container, max_seconds: float, options: Mapping[str, str]
) -> Iterator[tuple[NDArray[np.float32], int]]:
    """Pieces of mono, float32 [n], each with its sample rate."""
    try:
        # The demuxer is named: left to guess, FFmpeg also reads playlists, which make it open files and addresses.
        with av.open(source, "r", format=container.demuxer, options={"protocol_whitelist": "", **options}) as file:
            track = file.streams.best("audio")
            if track is None:
                raise InvalidAudio(f"expected audio, got {container.name} without a track of it")
            if not isinstance(track, av.AudioStream):
                raise TypeError(f"expected an audio track, got {type(track)}")
            if track.codec_context is None:
                raise InvalidAudio(f"expected samples of a usual kind, got {container.name} with something else in it")
            if container in TELLING and track.duration and track.time_base:
                seconds = float(track.duration * track.time_base)
                if seconds > max_seconds + LENIENCE_SECONDS:
                    raise AudioTooLong(f"expected at most {max_seconds:g} s of audio, got {seconds:.0f} s")
            track.codec_context.thread_count = 1
            to_float = av.AudioResampler(format="flt")
            for frame in _frames(file, track):
                yield _mono(frame, to_float), frame.sample_rate
    except InvalidAudio:
        raise
    except (av.FFmpegError, ValueError, OverflowError) as error:
        raise InvalidAudio(f"expected a {SUPPORTED} file, got {container.name} that does not decode") from error


def _frames(file: av.container.InputContainer, track: av.AudioStream) -> Iterator[av.AudioFrame]:
    """What decodes of a track; damage is passed over, and where the file breaks off is its end."""
    packets = file.demux(track)
    bad = 0
    while bad < MAX_BAD_PACKETS:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError:
            packet = None  # nothing more to read; what the codec still holds comes out
        try:
            for frame in track.codec_context.decode(packet):
                bad = 0
                yield frame
        except av.EOFError:
            return
        except av.FFmpegError:
            bad += 1
        if packet is None:
            return


def _mono(frame: av.AudioFrame, to_float: av.AudioResampler) -> NDArray[np.float32]:
    channels = frame.layout.nb_channels
    if not 1 <= channels <= MAX_CHANNELS:
        raise InvalidAudio(f"expected 1 to {MAX_CHANNELS} channels, got {channels}")
    if not SAMPLE_RATES_HZ[0] <= frame.sample_rate <= SAMPLE_RATES_HZ[1]:
        raise InvalidAudio(
            f"expected a sample rate of {SAMPLE_RATES_HZ[0]} to {SAMPLE_RATES_HZ[1]} Hz, got {frame.sample_rate} Hz"
        )
    frame.pts = None
    pieces = [piece.to_ndarray().reshape(-1) for piece in to_float.resample(frame)]
    return downmix(np.concatenate(pieces), channels) if pieces else np.zeros(0, dtype=np.float32)


def _resampled(pieces: Iterator[tuple[NDArray[np.float32], int]]) -> Iterator[NDArray[np.float32]]:
    """The pieces at 24 kHz; a file's rate may change on its way."""
    rate_hz, resampler = 0, Resampler(SAMPLE_RATE_HZ)
    for samples, piece_rate_hz in pieces:
        if piece_rate_hz != rate_hz:
            yield resampler.finish()
            rate_hz, resampler = piece_rate_hz, Resampler(piece_rate_hz)
        yield resampler.push(samples)
    yield resampler.finish()


def _checked(samples: NDArray[np.float32]) -> NDArray[np.float32]:
    if not (np.abs(samples) <= MAX_AMPLITUDE).all():  # also NaN
        raise InvalidAudio("expected finite samples between -1 and 1, got NaN, infinite or absurdly large ones")
    return samples
