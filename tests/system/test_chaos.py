"""The chaos program itself, on the shortest of its scenarios."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.chaos.comparing import compare
from loadtest.chaos.sessions import HeardWord

PROJECT = Path(__file__).parents[2]
SESSIONS = 4
NOTHING_LOST = ("sessions_lost", "words_lost", "words_doubled", "words_changed", "slots_leaked", "refused")


def heard(*texts: str, late_s: float = 0.0, moved_s: float = 0.0) -> list[HeardWord]:
    """Words one second apart."""
    return [HeardWord(text, n + moved_s, n + 0.5 + moved_s, n + 1 + late_s) for n, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("disturbed", "lost", "doubled", "changed"),
    [
        (heard("left", "right", "stop", "go"), 0, 0, 0),
        (heard("left", "right"), 2, 0, 0),
        ([], 4, 0, 0),
        ([*heard("left", "right"), *heard("left", "right", "stop", "go")], 0, 2, 0),
        (heard("left", "write", "stop", "go"), 0, 0, 1),
        (heard("left", "right", "stop", "go", moved_s=1.0), 0, 0, 4),
    ],
    ids=["same", "lost", "all lost", "doubled", "another word", "another time"],
)
def test_every_kind_of_damage_is_counted(disturbed, lost, doubled, changed):
    difference = compare(heard("left", "right", "stop", "go"), disturbed)
    assert (difference.lost, difference.doubled, difference.changed) == (lost, doubled, changed)


def test_words_that_come_late_are_a_pause():
    difference = compare(heard("left", "right"), heard("left", "right", late_s=1.5))
    assert difference.delays_s == pytest.approx([1.5, 1.5])


@pytest.mark.timeout(300)
def test_a_killed_process_costs_no_session_a_word():
    """Of the ingress; `test_service` kills an engine."""
    scenario = "ingress-kill"
    done = subprocess.run(
        [sys.executable, "-m", "loadtest.chaos", "--scenario", scenario, "--sessions", str(SESSIONS),
         "--seconds", "12", "--json"],
        cwd=PROJECT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    outcome = json.loads(done.stdout)
    assert {name: outcome[name] for name in NOTHING_LOST} == dict.fromkeys(NOTHING_LOST, 0), outcome
    assert outcome["scenario"] == scenario
    assert outcome["sessions"] == SESSIONS
    assert 0 <= outcome["pause_p50_s"] <= outcome["pause_p95_s"] <= outcome["pause_max_s"]
    assert done.returncode == 0, done.stderr
