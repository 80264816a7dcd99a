"""The chaos program itself, on the shortest of its scenarios."""

import json
import subprocess
import sys

import pytest
from conftest import PROJECT

SESSIONS = 4
NOTHING_LOST = ("sessions_lost", "words_lost", "words_doubled", "words_changed", "slots_leaked", "refused")


@pytest.mark.timeout(300)
def test_a_killed_engine_costs_no_session_a_word():
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.chaos", "--scenario", "engine-kill", "--sessions", str(SESSIONS),
         "--seconds", "12", "--json"],
        cwd=PROJECT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    outcome = json.loads(done.stdout)
    assert {name: outcome[name] for name in NOTHING_LOST} == dict.fromkeys(NOTHING_LOST, 0), outcome
    assert outcome["scenario"] == "engine-kill"
    assert outcome["sessions"] == SESSIONS
    assert 0 <= outcome["pause_p50_s"] <= outcome["pause_p95_s"] <= outcome["pause_max_s"]
    assert done.returncode == 0, done.stderr
