"""From sessions to the numbers of a report."""

import csv
import json

import pytest

from loadtest.report import Run, summarise, write
from loadtest.steps import Moment, largest_within_budget, measure_all, steps_of
from serve_app.measuring.speaking import Outcome


def moments(*users: int) -> list[Moment]:
    """Ten seconds of each."""
    at = [(second, wanted, stage) for stage, wanted in enumerate(users) for second in range(10)]
    seen = {"engine": {"cpu_cores": 0.5, "memory_bytes": 2.0**20}}
    return [
        Moment(100.0 + 10 * stage + second, wanted, wanted, stage, seen, {"headroom": 0.5})
        for second, wanted, stage in at
    ]  # fmt: skip


def outcome(ended_at: float, delay_s: float, *, errors: int = 0, failure: str | None = None, late_s: float = 0.0):
    return Outcome(
        "a.wav", 5.0, ended_at, 6.0, 0.01, 0.02, 0.6, [(ended_at - 1, delay_s), (ended_at, delay_s)], None, 0.2,
        [late_s], 10, errors, failure,
    )  # fmt: skip


def test_a_step_is_a_time_with_one_number_of_users():
    steps = steps_of(moments(2, 0, 4))
    assert [(step.users, step.begins_at, step.ends_at) for step in steps] == [(2, 100, 110), (4, 120, 129)]
    assert steps_of([]) == []


def test_words_and_sessions_belong_to_the_step_in_which_they_came():
    run = [outcome(105, 0.2), outcome(110, 0.4), outcome(140, 2.0, errors=1, failure="wrong words: a.wav")]
    first, second = measure_all(moments(2, 4), run, budget_s=1.0)
    assert (first["users"], first["sessions"], first["failures"], first["wer"]) == (2, 1, 0, 0.0)
    assert first["word_delay_s"]["p50"] == pytest.approx(0.2)
    assert first["within_budget"]
    assert (second["users"], second["sessions"], second["failures"], second["wer"]) == (4, 2, 1, 0.05)
    assert second["word_delay_s"]["p99"] == pytest.approx(2.0)
    assert not second["within_budget"]
    assert second["end_s"]["p50"] == pytest.approx(0.2)
    assert second["flush_s"]["p50"] is None


def test_the_knee_is_the_last_number_of_users_before_the_first_bad_step():
    def step(users: int, good: bool) -> dict:
        return {"users": users, "within_budget": good}

    assert largest_within_budget([step(8, True), step(16, True), step(32, False), step(64, True)]) == 16
    assert largest_within_budget([step(8, True), step(8, False)]) is None
    assert largest_within_budget([]) is None


def test_a_late_generator_is_named():
    report = summarise(Run("it", 1.0, moments(2), [outcome(105, 0.2, late_s=0.3)]))
    assert report["steps"][0]["generator_late_p99_s"] == pytest.approx(0.3)
    assert any("The generator was the bottleneck with 2 users" in line for line in report["verdict"])


def test_the_report_stands_for_itself(tmp_path):
    run = Run("<stream>", 1.0, moments(2, 4), [outcome(105, 0.2), outcome(115, 2.0, failure="at_capacity: full")])
    page = tmp_path / "run.html"
    write(run, page)
    html = page.read_text()
    assert "&lt;stream&gt;" in html
    assert "<svg" in html
    assert "at_capacity: full" in html
    assert "http://" not in html.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    numbers = json.loads(page.with_suffix(".json").read_text())
    assert numbers["largest_users_within_budget"] == 2
    assert numbers["reasons"] == {"at_capacity: full": 1}
    assert numbers["steps"][0]["resources"] == {"engine": {"cpu_cores": 0.5, "memory_bytes": 2.0**20}}
    rows = list(csv.DictReader(page.with_suffix(".csv").open()))
    assert [(row["users"], row["word_delay_s_p50"]) for row in rows] == [("2", "0.2"), ("4", "2.0")]
    assert page.with_suffix(".svg").read_text().startswith("<?xml")
