"""The scenarios of the chaos program that take minutes: nodes that die, ingress replicas that come and go."""

import json
import subprocess
import sys

import pytest

from tests.support import PROJECT

NOTHING_LOST = ("sessions_lost", "words_lost", "words_doubled", "words_changed", "slots_leaked", "refused")


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("scenario", "seconds"),
    [
        pytest.param("node-kill", "120", id="a node with an engine, an ingress or a vault dies"),
        pytest.param("scale-ingress", "40", id="ingress replicas follow a crowd"),
    ],
)
def test_it_costs_no_word(scenario, seconds):
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.chaos", "--scenario", scenario, "--sessions", "3",
         "--seconds", seconds, "--json"],
        cwd=PROJECT, capture_output=True, text=True, timeout=1780, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    outcome = json.loads(done.stdout)
    assert {name: outcome[name] for name in NOTHING_LOST} == dict.fromkeys(NOTHING_LOST, 0), outcome
    assert outcome["problems"] == []
    assert done.returncode == 0
