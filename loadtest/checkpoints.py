"""What it costs to keep sessions safe: CPU and bytes of a session's checkpoints, and the memory that a vault needs.

    python -m loadtest.checkpoints

Real sessions, checkpoints and a real vault in one process, in simulated time; the engine answers at once and costs
nothing. What it leaves out is the way of the bytes from one process to the other, through Ray.
"""

import asyncio
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from serve_app.link.client import StreamListener
from serve_app.session.admission import Admission, Returning
from serve_app.session.models import ServedModel
from serve_app.session.session import Marks, Session
from serve_app.session.vault import Checkpoint, Vault
from serve_app.settings import ModelSettings, SessionSettings
from serve_app.speech import SAMPLE_RATE_HZ, FrameResult, History, ModelInfo
from serve_app.telemetry import IngressMetrics

SESSIONS = 8
SECONDS = 90
"""Long enough for every record to reach its full length."""

WORD_EVERY_FRAMES = 5
"""A word each 0.4 s: somebody who talks quickly and without a pause."""

KYUTAI = ModelInfo(
    "kyutai", ("▁word",), 6, 0, context_frames=750, codec_context_frames=125, codebooks=32, pause_heads=4
)
DEMO = ModelInfo("demo", ("▁word",), 6, 0, context_frames=100, codec_context_frames=25, codebooks=8, pause_heads=4)


@dataclass(frozen=True)
class Cost:
    """Of one session."""

    ingress_ms: float
    """CPU per second of audio, to make the checkpoints."""
    vault_ms: float
    """CPU per second of audio, to take them in."""
    bytes_per_second: float
    vault_bytes: float


class _Stream:
    """Answers every frame at once (implements `serve_app.session.engines.EngineStream`)."""

    def __init__(self, info: ModelInfo, listener: StreamListener) -> None:
        self._listener = listener
        self._codes = np.random.default_rng(0).integers(0, 2_048, (64, info.codebooks)).astype(np.int16)
        self._pauses = np.zeros(info.pause_heads, np.float32)
        self._frame = 0

    def send(self, frames: NDArray[np.float32]) -> None:
        for _ in frames:
            token = 0 if self._frame % WORD_EVERY_FRAMES == 0 else 3
            codes = self._codes[self._frame % len(self._codes)]
            self._listener.on_result(FrameResult(self._frame, token, self._pauses, codes))
            self._frame += 1

    def close(self) -> None:
        pass


class _Engines:
    """Implements `serve_app.session.engines.Engines`."""

    def __init__(self, info: ModelInfo) -> None:
        self.info = info
        self.leases = 0

    async def open(
        self, session_id: str, listener: StreamListener, history: History | None = None, *, patient: bool = True
    ) -> _Stream:
        return _Stream(self.info, listener)


async def measure(info: ModelInfo, *, float32: bool) -> Cost:
    """The cost of a session of this model whose client sends 16-bit audio, or true float32."""
    rng = np.random.default_rng(0)
    samples = rng.normal(0.0, 0.1, SAMPLE_RATE_HZ).astype(np.float32)
    if not float32:
        samples = np.rint(samples * 32_768).astype(np.float32) / np.float32(32_768)
    metrics, returning = IngressMetrics(CollectorRegistry()), Returning()
    settings = ModelSettings(source="demo")
    model = ServedModel("demo", settings, _Engines(info), returning, Admission(SESSIONS, returning))
    sessions = [Session(str(number), model, SessionSettings(), metrics) for number in range(SESSIONS)]
    vault, marks = Vault(60.0, 2**34), [Marks()] * SESSIONS
    ingress_s = vault_s = saved_bytes = 0.0
    readers = [asyncio.create_task(_read(session)) for session in sessions]
    for session in sessions:
        await session.open()
    for _ in range(SECONDS):
        for session in sessions:
            await session.feed(samples)
        await asyncio.sleep(0)  # for the readers
        started_at = time.process_time()
        made = [session.checkpoint(mark) for session, mark in zip(sessions, marks, strict=True)]
        marks = [session.marks for session in sessions]
        made_at = time.process_time()
        checkpoints = [Checkpoint(str(n), (), "", state, pieces) for n, (state, pieces) in enumerate(made)]
        vault.save(checkpoints, [], [])
        vault_s += time.process_time() - made_at
        ingress_s += made_at - started_at
        saved_bytes += sum(len(state) + sum(len(piece.data) for piece in pieces) for state, pieces in made)
    vault_bytes = vault.save([], [], []).size_bytes
    for session in sessions:
        await session.close()
    for reader in readers:
        reader.cancel()
    await asyncio.gather(*readers, return_exceptions=True)
    count = SESSIONS * SECONDS
    return Cost(1_000 * ingress_s / count, 1_000 * vault_s / count, saved_bytes / count, vault_bytes / SESSIONS)


async def _read(session: Session) -> None:
    async for _ in session.events():
        pass


def main() -> None:
    """Print the table."""
    table = Table("model", "audio", "ingress ms/s", "vault ms/s", "kB/s", "vault MB/session", box=None)
    for info in (DEMO, KYUTAI):
        for float32 in (False, True):
            cost = asyncio.run(measure(info, float32=float32))
            table.add_row(
                info.name,
                "float32" if float32 else "16 bit",
                f"{cost.ingress_ms:.2f}",
                f"{cost.vault_ms:.2f}",
                f"{cost.bytes_per_second / 1_000:.0f}",
                f"{cost.vault_bytes / 1e6:.2f}",
            )
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
