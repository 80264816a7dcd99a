"""What a session needs of the engines: somebody who opens streams. The ingress has one on Ray, tests one without."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serve_app.link.client import StreamListener
from serve_app.speech import History, ModelInfo


class EngineStream(Protocol):
    """A slot on some engine, held until `close`."""

    def send(self, frames: NDArray[np.float32]) -> None:
        """Send frames, float32 [n, FRAME_SAMPLES]; at most a window of them may be without a result."""

    def close(self) -> None:
        """Give the slot back."""


class Engines(Protocol):
    """Opens streams on whichever engine has room."""

    @property
    def info(self) -> ModelInfo:
        """Facts about the model that they serve."""

    async def open(
        self, session_id: str, listener: StreamListener, history: History | None = None, *, patient: bool = True
    ) -> EngineStream:
        """Take a slot for a new stream, or for one that continues after its `history`.

        Raises AtCapacity, within a second or so, if there is no slot, and EngineLost if that fails. Who is `patient`
        waits longer while more engines are being started.
        """


class EnginePool(Engines, Protocol):
    """Engines as an ingress replica holds them: for many sessions, from its start to its end."""

    @property
    def is_ready(self) -> bool:
        """Whether an engine with a loaded model is there."""

    @property
    def is_full(self) -> bool:
        """Whether whoever asks now would be refused."""

    @property
    def can_grow(self) -> bool:
        """Whether more engines may come: `open` then waits for those."""

    @property
    def leases(self) -> int:
        """Slots that are held now."""

    def loads(self) -> Mapping[str, Mapping[str, float]]:
        """The latest load report of each connected engine, by name."""

    async def wait_until_known(self) -> None:
        """Wait for `info`, as a session waits for a slot, where engines may still come."""

    def start(self) -> None:
        """Start looking for engines."""

    async def stop(self) -> None:
        """Let all engines go."""
