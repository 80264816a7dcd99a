"""A session as bytes: what a vault keeps of it, and the session made from that again.

The small state goes as a pickle that can only be read back as the few types it is made of; audio and results, which are
most of it, as plain arrays. A pickle of another version of the program may not fit: then the session is not restored.
"""

import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_app.errors import UnknownModel, UnknownSession
from serve_app.session.core import Event, SessionCore
from serve_app.session.event_log import Entry
from serve_app.session.recorder import Heard, Recorder
from serve_app.session.tally import Tally
from serve_app.session.vault import Piece, Saved
from serve_app.speech import FRAME_SAMPLES, ModelInfo
from serve_app.transcript import Vocabulary, vocabulary_of

AUDIO, HEARD, EVENTS = range(3)
"""The records of a session, in the order of a checkpoint's pieces."""

INT16_STEPS = 32_768
"""Steps of 16-bit audio from 0 to full scale."""

_END_OF_NAME = b"\0"
_ALLOWED_MODULES = ("serve_app.", "numpy", "collections", "encodings.utf_8")
_UNREADABLE = (
    pickle.UnpicklingError, AttributeError, ImportError, TypeError, ValueError, EOFError, IndexError
)  # fmt: skip
_ALLOWED_BUILTINS = {"bytearray", "complex", "frozenset", "set", "slice"}


@dataclass
class Snapshot:
    """The small part of a session."""

    session_id: str
    model: str
    """Name of the model: tokens and codes of another one mean something else."""
    opened_at: float
    """When the session began, in seconds since the epoch: another machine may restore it."""
    core: SessionCore
    sent: int
    answered: int
    tally: Tally


class _Pickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> str | None:
        """The vocabulary is the model's, and large: it is not part of any session."""
        return "vocabulary" if isinstance(obj, Vocabulary) else None


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, vocabulary: Vocabulary | None) -> None:
        super().__init__(io.BytesIO(data))
        self._vocabulary = vocabulary

    def persistent_load(self, pid: object) -> Vocabulary:
        if self._vocabulary is None or pid != "vocabulary":
            raise pickle.UnpicklingError(f"expected the vocabulary, got {pid!r}")
        return self._vocabulary

    def find_class(self, module: str, name: str) -> Any:
        """Only what sessions consist of: a pickle must not be able to name whatever it likes."""
        if module.startswith(_ALLOWED_MODULES) or (module == "builtins" and name in _ALLOWED_BUILTINS):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"expected a part of a session, got {module}.{name}")


def dump(snapshot: Snapshot, served_as: str) -> bytes:
    """The snapshot as bytes, without the vocabulary, behind the name that clients know its model by."""
    return served_as.encode() + _END_OF_NAME + _pickled(snapshot)


def audio_piece(recorder: Recorder, since: int) -> Piece:
    """The audio sent since that frame."""
    start = max(since, recorder.audio_floor)
    frames = recorder.audio(start)
    return Piece(start, recorder.sent, recorder.audio_floor, _pack_audio(frames) if len(frames) else b"")


def heard_piece(recorder: Recorder, since: int) -> Piece:
    """The results since that frame."""
    start = max(since, recorder.heard_floor)
    tokens, codes = recorder.heard(start)
    columns = np.concatenate([tokens.astype("<i4").view("<i2").reshape(len(tokens), 2), codes], axis=1, dtype="<i2")
    return Piece(start, recorder.answered, recorder.heard_floor, columns.tobytes())


def events_piece(entries: Sequence[Entry[Any]], since: int, floor: int, stop: int) -> Piece:
    """Entries of the event log from the place `since` on."""
    return Piece(since, stop, floor, _pickled([tuple(entry) for entry in entries]) if entries else b"")


@dataclass
class Restored:
    """Everything that a session is made from again."""

    snapshot: Snapshot
    recorder: Recorder
    entries: list[Entry[Event]]
    served_as: str
    """The name that clients know its model by."""


def restore(saved: Saved, info_of: Callable[[str], ModelInfo], window_frames: int) -> Restored:
    """Read what `dump` and the pieces say; `info_of` knows the models by their names, or raises UnknownModel.

    Raises UnknownSession if another model, or another version of the program, has written it.
    """
    try:
        name, _, state = saved.state.partition(_END_OF_NAME)
        info = info_of(name.decode())
        snapshot = _Unpickler(state, vocabulary_of(info.pieces)).load()
        if not isinstance(snapshot, Snapshot):
            raise pickle.UnpicklingError(f"expected a snapshot, got {type(snapshot).__name__}")
        if snapshot.model != info.name:
            raise ValueError(f"it was recognised by the model {snapshot.model}, here is {info.name}")
        audio, heard, events = saved.records
        recorder = Recorder(info, window_frames)
        recorder.restore(
            snapshot.sent, snapshot.answered, _unpack_heard(b"".join(heard), info.codebooks), _unpack_audio(audio)
        )
        entries = [Entry(*entry) for piece in events for entry in _Unpickler(piece, None).load()]
        return Restored(snapshot, recorder, entries, name.decode())
    except (*_UNREADABLE, UnknownModel) as error:
        raise UnknownSession(f"the session cannot go on here: {error}") from error


def _pickled(value: object) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=5).dump(value)
    return buffer.getvalue()


def _pack_audio(frames: NDArray[np.float32]) -> bytes:
    """16-bit integers where that loses nothing (most clients send those), else float32; a first byte says which."""
    steps = frames * INT16_STEPS
    if np.abs(steps).max() < INT16_STEPS and np.array_equal(steps, np.rint(steps)):
        return b"i" + steps.astype("<i2").tobytes()
    return b"f" + frames.astype("<f4").tobytes()


def _unpack_audio(pieces: Sequence[bytes]) -> NDArray[np.float32]:
    unpacked = [np.zeros((0, FRAME_SAMPLES), dtype=np.float32)]
    for piece in pieces:
        kind, data = piece[:1], piece[1:]
        samples = np.frombuffer(data, "<i2") / np.float32(INT16_STEPS) if kind == b"i" else np.frombuffer(data, "<f4")
        unpacked.append(samples.reshape(-1, FRAME_SAMPLES).astype(np.float32))
    return np.concatenate(unpacked)


def _unpack_heard(data: bytes, codebooks: int) -> Heard:
    columns = np.frombuffer(data, "<i2").reshape(-1, 2 + codebooks)
    return Heard(np.ascontiguousarray(columns[:, :2]).view("<i4")[:, 0].astype(np.int32), columns[:, 2:].copy())
