"""Engines that follow the sessions, on a real Serve; `python -m loadtest.scaling` goes further and draws it."""

import json
import subprocess
import sys

import pytest

from tests.support import PROJECT


@pytest.mark.timeout(400)
def test_from_no_engine_to_two_and_back_nobody_is_refused_or_dropped():
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.scaling", "--engines", "2", "--seconds", "24", "--json"],
        cwd=PROJECT, capture_output=True, text=True, timeout=380, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert result["problems"] == []
    engines = [look["engines"] for look in result["course"]]
    assert (engines[0], max(engines), engines[-1]) == (0, 2, 0)
    assert result["sessions"] == 8
    assert result["words"] > 60
    assert done.returncode == 0
