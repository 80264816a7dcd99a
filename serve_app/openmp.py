"""How torch's threads on a CPU wait for one another."""

import os


def wait_without_spinning() -> None:
    """Let them sleep while they wait: other programs want the same cores, which a thread that spins holds for nothing.

    To be called before torch is first imported, which reads it once.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
