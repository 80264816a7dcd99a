"""What is freed is given back, in a process of its own: the setting is for good."""

import subprocess
import sys

import pytest

USE_AND_FREE = """
import sys
import psutil
from serve_app.ingress.memory import return_freed_memory

if sys.argv[1] == "set":
    return_freed_memory()
process = psutil.Process()
block = bytes(256 * 1024)
bytearray(1 << 20)  # freed at once: glibc raises its threshold
blocks, kept = [], []
before = process.memory_info().rss
for _ in range(400):
    blocks.append(b"x" * len(block))
    kept.append(bytes(2000))
used = process.memory_info().rss - before
blocks.clear()
print(used >> 20, (process.memory_info().rss - before) >> 20)
"""


def used_and_left_mib(how: str) -> tuple[int, int]:
    output = subprocess.run(
        [sys.executable, "-c", USE_AND_FREE, how], capture_output=True, text=True, check=True
    ).stdout
    used, left = map(int, output.split())
    return used, left


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_blocks_between_small_objects_are_given_back():
    used, left = used_and_left_mib("set")
    assert used >= 99
    assert left < 10
    assert used_and_left_mib("leave")[1] > 50  # or this test shows nothing
