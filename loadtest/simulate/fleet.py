"""The engines of a simulated service: in cohorts and arrays, placed in by the router's own rules."""

from itertools import count

import numpy as np
from numpy.typing import NDArray

from loadtest.simulate.week import STAYING, STEP_S, ZONES
from serve_app.gpus import Gpu, ModelCost
from serve_app.ingress.placement import Placement
from serve_app.speech import FRAME_SECONDS

START_S = (90.0, 210.0)
"""From the order of an engine to its first session."""

STOP_S = 30.0
"""What a stopped engine still costs."""

ORDER_STEPS = 6
"""The router's order is asked for anew once a minute; an engine that came since counts as the newest."""


def mean_start_s() -> float:
    """Mean time from the order of an engine to its first session."""
    return sum(START_S) / 2


class Fleet:
    """Engines that start, run, stop and get lost, and the sessions on them."""

    def __init__(self, slots: int, running: int, seed: int) -> None:
        """`running` engines are there, empty."""
        self.slots = slots
        self.sessions = np.zeros(0)
        """Sessions of each running engine, in the router's order."""
        self.gpu_s = 0.0
        """GPU-seconds so far."""
        self._displaced = 0.0
        self._zones = np.zeros(0, dtype=np.int8)
        self._names: list[str] = []
        self._numbers = count()
        self._placement = Placement()
        self._changed = False
        self._starting: list[tuple[int, int]] = []  # step of readiness, zone; in the order of their orders
        self._draw = np.random.default_rng(seed)
        self._join([index % ZONES for index in range(running)])

    @property
    def running(self) -> int:
        """Engines with sessions, or ready for them."""
        return len(self.sessions)

    @property
    def total(self) -> int:
        """Engines that run or start."""
        return self.running + len(self._starting)

    def begin_step(self, step: int) -> None:
        """Who is ready joins; sessions end; everything that is there costs."""
        ready = [zone for at, zone in self._starting if at <= step]
        if ready:
            self._starting = [(at, zone) for at, zone in self._starting if at > step]
            self._join(ready)
        if self._changed and step % ORDER_STEPS == 0:
            self._sort()
        self.sessions *= STAYING
        self.gpu_s += self.total * STEP_S

    def place(self, sessions: float) -> float:
        """Fill free slots in the router's order; returns how many found one."""
        free = self.slots - self.sessions
        before = np.cumsum(free) - free
        taken = np.clip(sessions - before, 0.0, free)
        self.sessions += taken
        return float(taken.sum())

    def take_displaced(self) -> float:
        """Sessions whose engines were stopped or lost since the last call: they need another slot."""
        displaced, self._displaced = self._displaced, 0.0
        return displaced

    def lost_slots(self, gpu: Gpu, model: ModelCost, low_headroom: float) -> float:
        """Free slots of engines whose derived step time leaves no headroom; see `serve_app.autoscaling.lost_slots`."""
        headroom = 1 - gpu.step_seconds(model, self.sessions) / FRAME_SECONDS
        lost = (headroom < low_headroom) & (self.sessions >= 1)
        return float((self.slots - self.sessions)[lost].sum())

    def scale(self, target: int, step: int, zones: int) -> None:
        """Order or stop engines; of `ZONES` zones the first `zones` have some."""
        if target > self.total:
            missing = target - self.total
            delays = self._draw.uniform(*START_S, missing) / STEP_S
            # Into the zones that have the fewest.
            there = np.bincount(self._zones, minlength=ZONES) + np.bincount(
                [zone for _, zone in self._starting], minlength=ZONES
            )
            for delay in delays:
                zone = int(np.argmin(there[:zones]))
                there[zone] += 1
                self._starting.append((step + round(delay), zone))
        elif target < self.total:
            surplus = self.total - target
            cancelled = min(surplus, len(self._starting))  # Serve stops those first that have not started yet
            if cancelled:
                del self._starting[-cancelled:]
            self.gpu_s += surplus * STOP_S
            self._lose(np.arange(self.running) >= self.running - (surplus - cancelled))

    def lose_share(self, share: float) -> None:
        """Spot loss: so many of the running engines vanish."""
        lost = np.zeros(self.running, dtype=bool)
        lost[self._draw.permutation(self.running)[: round(share * self.running)]] = True
        self._lose(lost)

    def lose_zone(self, zone: int) -> None:
        """Everything in the zone vanishes."""
        self._starting = [(at, its) for at, its in self._starting if its != zone]
        self._lose(self._zones == zone)

    def _join(self, zones: list[int]) -> None:
        self._changed = True
        self.sessions = np.concatenate([self.sessions, np.zeros(len(zones))])
        self._zones = np.concatenate([self._zones, np.array(zones, dtype=np.int8)])
        self._names += [f"engine-{next(self._numbers)}" for _ in zones]

    def _lose(self, lost: NDArray[np.bool_]) -> None:
        if not lost.any():
            return
        self._changed = True
        self._displaced += float(self.sessions[lost].sum())
        self.sessions, self._zones = self.sessions[~lost], self._zones[~lost]
        self._names = [name for name, gone in zip(self._names, lost, strict=True) if not gone]

    def _sort(self) -> None:
        self._changed = False
        self._placement.update(self._names)
        ordered = [name for rank in self._placement.ranks(self._names, lambda _: None) for name in rank]
        if ordered != self._names:
            places = {name: place for place, name in enumerate(self._names)}
            order = [places[name] for name in ordered]
            self.sessions, self._zones, self._names = self.sessions[order], self._zones[order], ordered
