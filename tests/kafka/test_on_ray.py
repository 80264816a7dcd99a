"""The bridge as a deployment of the application on Ray, as `python -m loadtest.kafka` measures it."""

import json
import subprocess
import sys

import pytest

from tests.support import PROJECT


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("jars")
def test_a_backlog_is_worked_off_while_somebody_speaks():
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.kafka", "--devices", "3", "--seconds", "8", "--sessions", "1", "--json"],
        cwd=PROJECT, capture_output=True, text=True, timeout=880, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4_000:]
    result = json.loads(done.stdout)
    assert (result["devices"], result["missing"], result["doubled"]) == (3, 0, 0)
    assert result["chunks"] >= 3 * 5
    assert result["audio_s_per_s"] > 0
    assert result["live_meanwhile"]["failures"] == result["live_afterwards"]["failures"] == 0
