"""The simulated week: its parts, and a day of it."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from loadtest.simulate.__main__ import app
from loadtest.simulate.fleet import Fleet, mean_start_s
from loadtest.simulate.policies import ServesDefault
from loadtest.simulate.run import oracle
from loadtest.simulate.waiting import WaitingLine
from loadtest.simulate.week import STAYING, STEP_S, Week, make_week
from serve_app.autoscaling import Rules
from serve_app.settings import AutoscalingSettings, EngineSettings


def quiet(sessions: list[float]) -> Week:
    """A week of a few steps in which so many sessions are there at once."""
    held = np.array(sessions, dtype=float)
    arrivals = held - STAYING * np.concatenate([[0.0], held[:-1]])
    arrivals[0] = held[0] * (1 - STAYING)
    return Week(arrivals, losses={}, outage=range(0), peak_sessions=round(held.max()))


def test_the_same_seed_makes_the_same_week_with_the_peak_asked_for():
    week, again, other = (make_week(50_000, 2, seed) for seed in (1, 1, 2))
    assert np.array_equal(week.arrivals, again.arrivals)
    assert not np.array_equal(week.arrivals, other.arrivals)
    assert week.sessions.max() == pytest.approx(50_000, rel=0.02)
    assert not week.outage  # that is on the sixth day
    assert make_week(1_000, 7, 1).outage


def test_the_oldest_engine_is_filled_first_and_what_is_too_much_finds_nothing():
    fleet = Fleet(slots=10, running=3, seed=1)
    assert fleet.place(14) == 14
    assert fleet.sessions.tolist() == [10, 4, 0]
    assert fleet.place(100) == 16


def test_the_newest_engine_is_stopped_first_and_its_sessions_move():
    fleet = Fleet(slots=10, running=3, seed=1)
    fleet.place(23)
    fleet.scale(2, step=0, zones=3)
    assert (fleet.running, fleet.take_displaced(), fleet.take_displaced()) == (2, 3, 0)


def test_an_engine_that_was_ordered_starts_later_and_costs_at_once():
    fleet = Fleet(slots=10, running=0, seed=1)
    fleet.scale(5, step=0, zones=3)
    assert (fleet.running, fleet.total) == (0, 5)
    for step in range(1, 31):
        fleet.begin_step(step)
        assert fleet.running == 0 or step * STEP_S >= 90
    assert fleet.running == 5
    assert fleet.gpu_s == 30 * 5 * STEP_S
    fleet.scale(6, step=30, zones=3)
    fleet.scale(5, step=30, zones=3)
    assert (fleet.running, fleet.total) == (5, 5)  # who has not started is stopped first


def test_a_lost_zone_takes_its_engines_and_their_sessions():
    fleet = Fleet(slots=10, running=6, seed=1)
    fleet.place(60)
    fleet.lose_zone(2)
    assert (fleet.running, fleet.take_displaced()) == (4, 20)
    fleet.scale(6, step=0, zones=2)
    fleet.lose_zone(2)
    assert fleet.total == 6


def test_waiting_is_counted_by_cohorts_and_ends():
    line = WaitingLine(quiet([1.0] * 10), patience_s=2 * STEP_S)
    line.arrive(0, 30)
    line.serve(0, 10)
    line.serve(1, 5)
    assert (line.sessions, line.delayed[0], line.refused[0]) == (15, 5, 0)
    line.serve(2, 0)
    assert (line.sessions, line.refused[0]) == (0, 15)
    assert line.served_after.tolist() == [10, 5, 0]


def test_the_oracle_pays_for_what_is_there_and_for_starts_and_keeps_engines_through_short_lulls():
    start_h, step_h = mean_start_s() / 3600, STEP_S / 3600
    flat, _ = oracle(quiet([10.0] * 100), slots=10)
    assert flat == pytest.approx(100 * step_h)
    short, kept = oracle(quiet([20.0] * 10 + [10.0] * 5 + [20.0] * 10), slots=10)
    assert kept.tolist() == [2] * 25
    assert short == pytest.approx(50 * step_h)
    long, dropped = oracle(quiet([20.0] * 10 + [10.0] * 50 + [20.0] * 10), slots=10)
    assert dropped.tolist() == [2] * 10 + [1] * 50 + [2] * 10
    assert long == pytest.approx(90 * step_h + start_h + 30 / 3600)


def test_serves_default_waits_as_serve_does():
    rules = Rules(**EngineSettings(slots=10, autoscaling=AutoscalingSettings(max_replicas=50)).scaling_rules)
    policy = ServesDefault(rules, 0.8)
    target, course = 2, []
    for step in range(80):
        target = policy.decide(step * STEP_S, 80.0 if step < 5 else 8.0, target, target, 0.0)
        course.append(target)
    assert course[2:4] == [2, 10]  # 30 s up
    assert course[64:66] == [10, 1]  # 600 s down


def test_a_day_of_a_small_service_ends_as_it_should():
    ran = CliRunner().invoke(app, ["--peak-sessions", "20000", "--days", "1", "--json"])
    assert ran.exit_code == 0, ran.output
    result = json.loads(ran.output)
    assert set(result) >= {"gpu_hours", "oracle_gpu_hours", "delayed_share", "refused_share", "wait_p99_s", "policies"}
    assert result["oracle_gpu_hours"] < result["gpu_hours"] < result["policies"]["fixed_at_peak"]["gpu_hours"]
    assert result["policies"]["ours"]["gpu_hours"] == result["gpu_hours"]
    assert result["refused_share"] == 0
    assert result["delayed_share"] < 0.001


def test_a_gpu_that_nobody_knows_is_said_to_be():
    assert CliRunner().invoke(app, ["--gpu", "L5"]).exit_code == 2
