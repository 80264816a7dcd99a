"""The rules of autoscaling, alone and as Serve's controller runs them."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.serve.config import AutoscalingPolicy

from serve_app.app import number_of_engines, number_of_ingresses
from serve_app.autoscaling import Policy, Rules, Scaler, Situation, lost_slots, replicas_needed
from serve_app.settings import EngineSettings, IngressAutoscalingSettings, IngressSettings, from_args

RULES = Rules(
    slots=10,
    min_replicas=0,
    max_replicas=10,
    target_share=0.8,
    steady_share=0.95,
    buffer_replicas=0,
    low_headroom=0.15,
    lead_seconds=60,
    scaledown_window_seconds=60,
)


def rules(**changes) -> Rules:
    return Rules(**{**RULES.__dict__, **changes})


any_rules = st.builds(
    lambda low, more, target, steady, **others: rules(
        min_replicas=low, max_replicas=low + more, target_share=target, steady_share=max(target, steady), **others
    ),
    st.integers(0, 5),
    st.integers(1, 100),
    st.floats(0.1, 1),
    st.floats(0.1, 1),
    slots=st.integers(1, 500),
    buffer_replicas=st.integers(0, 3),
    scaledown_window_seconds=st.floats(0, 600),
)
loads = st.integers(0, 20_000)


@pytest.mark.parametrize(
    ("sessions", "needed"), [(0, 0), (1, 1), (8, 1), (9, 2), (16, 2), (17, 3), (79, 10), (80, 10), (1000, 10)]
)
def test_four_of_five_slots_are_filled_up_to_the_maximum(sessions, needed):
    assert replicas_needed(RULES, 10, sessions) == needed


def test_two_stay_warm_and_one_is_ready_for_bursts():
    """Seed 002: min 2, buffer 1, ten sessions of twelve slots."""
    warm = rules(slots=12, min_replicas=2, buffer_replicas=1, target_share=10 / 12)
    assert [replicas_needed(warm, 12, sessions) for sessions in (0, 1, 10, 11, 20, 21)] == [2, 2, 2, 3, 3, 4]


def test_a_big_fleet_needs_less_room_unless_sessions_rise():
    big = rules(max_replicas=10_000)
    assert replicas_needed(big, 10, 8_000) == pytest.approx(8_000 / 9.5, rel=0.01)
    assert replicas_needed(big, 10, 8_000, rise=1_000) == 900
    assert replicas_needed(big, 10, 8_000, rise=100_000) == 1_000  # target_share is the most room there is


def test_slots_without_headroom_are_no_slots():
    slots, used = {"a": 10.0, "b": 10.0, "c": 10.0}, {"a": 4.0, "b": 4.0, "c": 0.0}
    headroom = {"a": 0.1, "b": 0.5, "c": 0.0}  # c has nobody: whatever slowed it down, it was not its sessions
    assert lost_slots(RULES, slots, used, headroom) == 6
    assert lost_slots(RULES, {}, {"gone": 1.0}, headroom) == 0
    assert replicas_needed(RULES, 10, 8) == 1
    assert replicas_needed(RULES, 10, 8, lost_slots=2) == 2


@given(any_rules, loads, loads, loads, st.integers(0, 2_000))
def test_more_load_never_needs_fewer_engines_and_bounds_hold(applied, sessions, more, rise, lost):
    needed = replicas_needed(applied, applied.slots, sessions, rise, lost)
    assert applied.min_replicas <= needed <= applied.max_replicas
    assert needed <= replicas_needed(applied, applied.slots, sessions + more, rise, lost)
    assert needed <= replicas_needed(applied, applied.slots, sessions, rise + more, lost)
    assert needed <= replicas_needed(applied, applied.slots, sessions, rise, lost + more)


@given(any_rules, st.integers(1, 20_000), loads)
def test_whoever_is_there_has_a_slot_and_the_buffer_is_kept(applied, sessions, rise):
    needed = replicas_needed(applied, applied.slots, sessions, rise)
    if needed < applied.max_replicas:
        assert (needed - applied.buffer_replicas) * applied.slots >= sessions


@given(any_rules, st.lists(st.tuples(st.floats(0.1, 30), st.integers(0, 2_000)), max_size=50), st.integers(0, 50))
def test_the_number_rises_at_once_and_falls_only_after_a_whole_window(applied, course, first):
    scaler = Scaler(applied)
    now_s, number = 0.0, first
    needed: list[tuple[float, int]] = []
    for seconds, sessions in course:
        now_s += seconds
        needed.append((now_s, replicas_needed(applied, applied.slots, sessions)))
        number = scaler.decide(Situation(now_s, sessions, number, applied.slots))
        lately = [least for at_s, least in needed if at_s >= now_s - applied.scaledown_window_seconds]
        assert max(lately) <= number <= applied.max_replicas
        assert number >= applied.min_replicas


def decide(scaler: Scaler, course: list[tuple[float, float]], replicas: int) -> list[int]:
    numbers = []
    for now_s, sessions in course:
        replicas = scaler.decide(Situation(now_s, sessions, replicas, 10))
        numbers.append(replicas)
    return numbers


def test_to_zero_after_the_window_and_back_at_once():
    course = [(0, 1), (10, 0), (59, 0), (60, 0), (71, 0), (80, 20)]
    assert decide(Scaler(RULES), course, 1) == [1, 1, 1, 1, 0, 3]


def test_load_that_swings_faster_than_the_window_moves_nothing():
    course = [(10.0 * step, 30.0 if step % 3 else 5.0) for step in range(60)]
    assert len(set(decide(Scaler(RULES), course, 4)[10:])) == 1


def test_after_a_deploy_what_runs_has_the_benefit_of_the_doubt():
    assert decide(Scaler(RULES), [(0, 8), (30, 8), (59, 8), (61, 8)], 7) == [7, 7, 7, 1]
    assert decide(Scaler(RULES), [(0, 8)], 700) == [10]


def context(now_s: float, requests: float, target: int, reports=None):
    return SimpleNamespace(
        current_time=now_s, total_num_requests=requests, target_num_replicas=target, aggregated_metrics=reports
    )


def test_the_policy_takes_capacity_from_the_reports():
    policy = Policy(**RULES.__dict__)
    assert policy(context(0, 16, 2)) == (2, {})
    smaller = {"slots": {"a": 4, "b": 4}, "slots_used": {"a": 4, "b": 4}, "headroom": {"a": 0.5, "b": 0.5}}
    assert policy(context(0.5, 16, 2, smaller)) == (2, {})  # too early to look again
    assert policy(context(1.1, 16, 2, smaller)) == (5, {})


def test_ingresses_follow_their_connections():
    scaling = IngressAutoscalingSettings(max_replicas=4, target_connections=100, scaledown_window_seconds=60)
    policy = Policy(**scaling.scaling_rules)
    course = [(0, 0, 1), (2, 100, 1), (4, 101, 2), (6, 1_050, 4), (60, 1, 4), (67, 120, 2), (200, 0, 1)]
    replicas = 1
    for now_s, connections, expected in course:
        replicas, _ = policy(context(now_s, connections, replicas))
        assert replicas == expected, now_s


def test_looking_whether_an_engine_is_there_wakes_none():
    assert Policy(**RULES.__dict__)(context(0, 0.4, 0)) == (0, {})


def test_serve_gets_what_the_settings_say():
    assert number_of_engines(EngineSettings(replicas=3)) == {"num_replicas": 3}
    engine = from_args({"engine": {"slots": 24, "autoscaling": {"min_replicas": 1, "max_replicas": 4}}}, {}).engine
    config = number_of_engines(engine)["autoscaling_config"]
    assert (config.min_replicas, config.max_replicas, config.initial_replicas) == (1, 4, None)
    assert (config.upscale_delay_s, config.downscale_delay_s) == (0, 0)
    policy = config.policy.get_policy()(**config.policy.policy_kwargs)
    assert policy(context(0, 24, 1)) == (2, {})
    assert number_of_ingresses(IngressSettings(replicas=3)) == {"num_replicas": 3}
    ingress = from_args({"ingress": {"autoscaling": {"max_replicas": 4, "target_connections": 5}}}, {}).ingress
    config = number_of_ingresses(ingress)["autoscaling_config"]
    assert (config.min_replicas, config.max_replicas) == (1, 4)
    policy = config.policy.get_policy()(**config.policy.policy_kwargs)
    assert policy(context(0, 6, 1)) == (2, {})


def test_serves_controller_needs_nothing_of_ours_to_run_the_policy(tmp_path):
    pickled = tmp_path / "policy"
    pickled.write_bytes(AutoscalingPolicy(policy_function=Policy).get_serialized_policy_def())
    program = f"""
import sys
from ray import cloudpickle
from types import SimpleNamespace
policy = cloudpickle.loads(open({str(pickled)!r}, "rb").read())(**{RULES.__dict__!r})
context = SimpleNamespace(current_time=0, total_num_requests=9, target_num_replicas=0, aggregated_metrics=None)
assert "serve_app" not in sys.modules
print(policy(context)[0])
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={}, capture_output=True, text=True, check=False
    )
    assert ran.stdout.strip() == "2", ran.stderr
