"""Checkpoints and what moshi makes of them, built once per run."""

import os
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from moshi_reference import (
    CASES,
    CPU,
    DEMO,
    FRAMES,
    NEAR_TIE,
    STREAMS,
    Case,
    noise,
    speech,
    transcribe,
    write_checkpoint,
)

from serve_app.model import load_checkpoint

# Before anything imports Triton: where there is no GPU, its kernels run in its interpreter.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
collect_ignore = [] if find_spec("triton") else ["test_graphs.py", "test_slot_attention.py"]  # torch's, on Linux alone


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # tiny matrices, and others work on this machine


@pytest.fixture(scope="session")
def case_named(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """Cases by name, each built once; "demo" is the demo model on its own speech, at 12 different starts."""
    built: dict[str, Case] = {}

    def get(name: str) -> Case:
        if name not in built:
            if name == "demo":
                folder, streams, said = DEMO, 8, speech()
                starts = range(0, len(said), len(said) // 11)
                audio = torch.from_numpy(np.stack([np.roll(said, -start, axis=0) for start in starts]))
            else:
                folder, streams = write_checkpoint(tmp_path_factory.mktemp("checkpoint"), *CASES[name]), STREAMS
                audio = noise(2 * STREAMS, FRAMES)
            reference = transcribe(folder, audio).clearest(streams)
            assert reference.margins.min() > NEAR_TIE
            built[name] = Case(folder, load_checkpoint(str(folder), device=CPU, dtype=torch.float32), reference)
        return built[name]

    return get


@pytest.fixture(scope="session", params=[*CASES, "demo"])
def case(request: pytest.FixtureRequest, case_named: Callable[[str], Case]) -> Case:
    """Every kind of checkpoint."""
    return case_named(request.param)


@pytest.fixture(scope="session")
def tiny(case_named: Callable[[str], Case]) -> Case:
    """The checkpoint that is most like a real one."""
    return case_named("like the real Mimi")


@pytest.fixture(scope="session")
def demo(case_named: Callable[[str], Case]) -> Case:
    """The demo model on its own speech."""
    return case_named("demo")
