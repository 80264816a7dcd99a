"""What sessions cost: the arithmetic, and `stt plan`."""

import json

import pytest
from typer.testing import CliRunner, Result

from serve_app.cli.main import app
from serve_app.gpus import Gpus
from serve_app.plan import plan
from serve_app.settings import read_gpus

MODEL = "stt-1b-en_fr"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments])


def test_engines_are_filled_to_the_autoscalers_share():
    (l4,) = plan(read_gpus(), MODEL, 500, ["L4"])
    cold, warm = l4.options
    assert l4.slots == 98
    assert cold.replicas == 7  # 500 / (98 × 0.8) = 6.4
    assert (warm.replicas, warm.idle_replicas, cold.idle_replicas) == (8, 2, 0)
    assert cold.dollars_per_hour == pytest.approx(7 * 0.80)
    assert cold.dollars_per_session_hour == pytest.approx(7 * 0.80 / 500)
    assert (cold.idle_dollars_per_hour, warm.idle_dollars_per_hour) == (0, pytest.approx(1.60))


def test_the_cheapest_comes_first_and_unpriced_ones_last():
    plans = plan(read_gpus(), MODEL, 5_000, ["H200", "T4", "H100", "L40S"])
    costs = [one.options[0].dollars_per_hour for one in plans]
    assert costs[:-1] == sorted(costs[:-1])
    assert (plans[-1].gpu, costs[-1]) == ("H200", None)


def test_no_crowd_is_too_large():
    (t4,) = plan(read_gpus(), "stt-2.6b-en", 1_000_000, ["T4"])
    assert t4.options[0].replicas > 200_000


def test_a_model_that_does_not_fit_is_said_to():
    table = {
        "models": {"big": {"weights_gigabytes": 100.0, "session_megabytes": 1.0}},
        "gpus": {"small": {"memory_gigabytes": 10.0, "bandwidth_gigabytes_per_second": 100.0, "capacity": {}}},
    }
    (none,) = plan(Gpus.model_validate(table), "big", 5, ["small"])
    assert (none.slots, none.options) == (0, ())
    assert "does not fit" in none.why


def test_what_is_printed_can_be_read_by_people_and_programs():
    told = run("--sessions", "500", "--gpu", "L4,L40S,H100", "--model", "kyutai/stt-1b-en_fr")
    assert told.exit_code == 0
    assert "derived" in told.output
    assert "L40S is the cheapest" in told.output
    asked = json.loads(run("--sessions", "500", "--json").output)
    assert {one["gpu"] for one in asked["plans"]} == set(read_gpus().gpus)
    assert asked["plans"][0]["basis"] == "derived"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "L5"), "expected one of T4, L4, A10G"),
        (("--model", "demo"), "expected one of stt-1b-en_fr, stt-2.6b-en, got 'demo'"),
        (("--sessions", "0"), "Invalid value for '--sessions'"),
    ],
)
def test_what_cannot_be_planned_is_said(arguments, message):
    result = run("--sessions", "5", *arguments)
    assert result.exit_code == 2
    assert message in result.output
