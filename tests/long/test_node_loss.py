"""Several Ray nodes on this machine, three of them killed one after the other while sessions speak."""

import json
import subprocess
import sys

import pytest

from tests.support import PROJECT

NOTHING_LOST = ("sessions_lost", "words_lost", "words_doubled", "words_changed", "slots_leaked", "refused")


@pytest.mark.timeout(1800)
def test_a_node_with_an_engine_an_ingress_or_a_vault_may_die_and_costs_no_word():
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.chaos", "--scenario", "node-kill", "--sessions", "4", "--json"],
        cwd=PROJECT, capture_output=True, text=True, timeout=1780, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    outcome = json.loads(done.stdout)
    assert {name: outcome[name] for name in NOTHING_LOST} == dict.fromkeys(NOTHING_LOST, 0), outcome
    assert outcome["problems"] == []
    assert done.returncode == 0
