"""The soak program itself: a minute of churn; `make soak` is the hour."""

import json
import subprocess
import sys

import pytest

from loadtest.soak import growth
from tests.support import PROJECT


def test_what_grows_for_ever_is_told_from_what_settles():
    rising = [{"memory_bytes": 1_000 * number} for number in range(30)]
    settling = [{"memory_bytes": 1_000 * min(number, 8)} for number in range(30)]
    assert growth(rising)["memory_bytes"] >= 9_000
    assert growth(settling)["memory_bytes"] == 0


@pytest.mark.timeout(300)
def test_churn_leaves_nothing_behind():
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.soak", "--minutes", "1.2", "--sessions", "6", "--json"],
        cwd=PROJECT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    result = json.loads(done.stdout)
    assert result["problems"] == []
    assert result["slots_leaked"] == 0
    assert result["outcomes"]["done"] > 5
    assert result["words"] > 30
    assert done.returncode == 0
