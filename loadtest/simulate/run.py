"""A week under one policy, and under the oracle."""

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from loadtest.simulate.fleet import STOP_S, Fleet, mean_start_s
from loadtest.simulate.policies import Policy
from loadtest.simulate.waiting import WaitingLine
from loadtest.simulate.week import STEP_S, ZONES, Week
from serve_app.autoscaling import Rules
from serve_app.gpus import Gpu, ModelCost


@dataclass(frozen=True)
class Outcome:
    """What a policy made of the week. Shares are of the sessions that came in that time."""

    gpu_hours: float
    delayed_share: float
    """Outside the outage: sessions that waited for more than two seconds, for their first slot or in a move."""
    refused_share: float
    """Outside the outage."""
    outage_delayed_share: float
    """In the outage and the time after it."""
    outage_refused_share: float
    """In the outage and the time after it."""
    wait_p99_s: float
    """Of all sessions."""
    wait_longest_s: float
    moves_per_session: float
    engines: NDArray[np.int64]
    """Running engines, per step."""
    waiting: NDArray[np.float64]
    """Sessions without a slot, per step."""


def simulate(week: Week, policy: Policy, rules: Rules, gpu: Gpu, model: ModelCost, patience_s: float) -> Outcome:
    """One week under a policy. It begins with engines for the sessions that are there already."""
    there = float(week.sessions[0])
    target = math.ceil(there / (rules.slots * rules.target_share))
    fleet = Fleet(rules.slots, target, seed=1)
    fleet.place(there)
    new, moves = WaitingLine(week, patience_s), WaitingLine(week, patience_s)
    engines, waiting = np.zeros(week.steps, dtype=np.int64), np.zeros(week.steps)
    seen: deque[float] = deque(maxlen=policy.look_back_steps)
    for step in range(week.steps):
        fleet.begin_step(step)
        if step in week.losses:
            fleet.lose_share(week.losses[step])
        if week.outage and step == week.outage.start:
            fleet.lose_zone(ZONES - 1)
        moves.arrive(step, fleet.take_displaced())
        new.arrive(step, week.arrivals[step])
        for line in (moves, new):
            line.serve(step, fleet.place(line.sessions))
        engines[step], waiting[step] = fleet.running, moves.sessions + new.sessions
        seen.append(float(fleet.sessions.sum()) + waiting[step])
        lost_slots = fleet.lost_slots(gpu, model, rules.low_headroom)
        target = policy.decide(step * STEP_S, sum(seen) / len(seen), fleet.running, target, lost_slots)
        fleet.scale(target, step, ZONES - 1 if step in week.outage else ZONES)
    delayed, refused = new.delayed + moves.delayed, new.refused + moves.refused
    waited = new.served_after
    return Outcome(
        gpu_hours=fleet.gpu_s / 3600,
        delayed_share=delayed[0] / new.arrived[0],
        refused_share=refused[0] / new.arrived[0],
        outage_delayed_share=delayed[1] / max(1.0, new.arrived[1]),
        outage_refused_share=refused[1] / max(1.0, new.arrived[1]),
        wait_p99_s=float(np.searchsorted(np.cumsum(waited), 0.99 * waited.sum())) * STEP_S,
        wait_longest_s=float(np.flatnonzero(waited).max(initial=0)) * STEP_S,
        moves_per_session=float(moves.arrived.sum() / new.arrived.sum()),
        engines=engines,
        waiting=waiting,
    )


def oracle(week: Week, slots: int) -> tuple[float, NDArray[np.int64]]:
    """GPU-hours of who knows the future, and the engines per step; see the package's docstring."""
    needed = np.ceil(week.sessions / slots).astype(np.int64)
    # An engine is kept through a lull no longer than what a stop and a start cost: the closing of a signal.
    width = math.floor((mean_start_s() + STOP_S) / STEP_S) + 1
    largest = sliding_window_view(np.pad(needed, (width - 1, 0), mode="edge"), width).max(axis=1)
    kept = sliding_window_view(np.pad(largest, (0, width - 1), mode="edge"), width).min(axis=1)
    changes = np.diff(kept)
    lost = sum(share * kept[step] for step, share in week.losses.items())
    if week.outage:
        lost += kept[week.outage.start] / ZONES
    starts = changes[changes > 0].sum() + lost
    gpu_s = kept.sum() * STEP_S + starts * mean_start_s() - changes[changes < 0].sum() * STOP_S
    return float(gpu_s / 3600), kept
