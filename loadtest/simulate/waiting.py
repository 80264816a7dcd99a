"""Sessions that wait for a slot, and what becomes of them."""

import math
from collections import deque

import numpy as np

from loadtest.simulate.week import STEP_S, Week

DELAYED_S = 2.0
"""Whoever waits longer has been delayed."""


class WaitingLine:
    """First come, first served, in cohorts: one per step. The counts are pairs: outside the outage, and in it."""

    def __init__(self, week: Week, patience_s: float) -> None:
        """Who has waited for `patience_s` is refused."""
        self._disturbed = week.disturbed
        self._patience_steps = max(1, math.floor(patience_s / STEP_S))
        self._cohorts: deque[list[float]] = deque()  # step of arrival, sessions
        self.served_after = np.zeros(self._patience_steps + 1)
        """Sessions by the steps that they waited."""
        self.arrived = np.zeros(2)
        self.delayed = np.zeros(2)
        self.refused = np.zeros(2)

    @property
    def sessions(self) -> float:
        """Sessions that wait now."""
        return sum(sessions for _, sessions in self._cohorts)

    def arrive(self, step: int, sessions: float) -> None:
        """They come in this step."""
        if sessions > 0:
            self._cohorts.append([step, sessions])
            self.arrived[self._when(step)] += sessions

    def serve(self, step: int, places: float) -> None:
        """So many get a slot; then whoever has waited too long is refused."""
        while self._cohorts and places > 0:
            came, sessions = self._cohorts[0]
            served = min(sessions, places)
            places -= served
            waited = step - int(came)
            self.served_after[waited] += served
            if waited * STEP_S > DELAYED_S:
                self.delayed[self._when(came)] += served
            if served < sessions:
                self._cohorts[0][1] -= served
            else:
                self._cohorts.popleft()
        while self._cohorts and step - self._cohorts[0][0] >= self._patience_steps:
            came, sessions = self._cohorts.popleft()
            self.refused[self._when(came)] += sessions

    def _when(self, step: float) -> int:
        return int(step in self._disturbed)
