"""The flow solved again, far tighter than the run: its weights at any time, its distance from the run."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np

from flowsim.laws.observed.eigenvalues import Certain, norm_of_T, sensitivity, uncertainty
from flowsim.network import unflatten
from flowsim.runs.tight import Deadline, Tight, distance
from flowsim.runs.trajectory import Trajectory

LOOKED_AT = 9
"""Checkpoints at which the sensitivity of J to the weights is computed; the greatest counts."""


class Path:
    """The tight flow from the run's start, asked for its lambda_min(T) at times that it solves for from the last one
    known before; what lies before a panel's start is forgotten. Raises WallLimit when the deadline has passed."""

    def __init__(self, run: Trajectory, deadline: Deadline) -> None:
        self.run, self.tight, self.deadline = run, Tight(run), deadline
        self.network = run.simulated.network
        self.certain = Certain(self.network.scale)
        self.times, self.states = [0.0], [run.checkpoints.states[0]]
        self.values: dict[float, float] = {}
        self.least = np.inf
        self.saved = [self.least_eigenvalue(0.0)]
        self.distances = [self.distance(0.0, self.states[0])]

    def state(self, t: float) -> np.ndarray:
        """The weights at t, as one vector."""
        place = bisect_right(self.times, t) - 1
        if self.times[place] < t:
            state = self.tight.end(self.times[place], self.states[place], t, self.deadline)
            self.times.insert(place + 1, t)
            self.states.insert(place + 1, state)
            return state
        return self.states[place]

    def weights(self, state: np.ndarray) -> list[np.ndarray]:
        """The layers: of a compressed network those of its lifted core, as far as T and the defect reach."""
        compressed = self.run.reduction.network
        if compressed is None or compressed.exact:
            return unflatten(state, self.network.dims)
        return compressed.lifted(state)

    def least_eigenvalue(self, t: float) -> float:
        """lambda_min(T(t)), as far as it is certain."""
        if t not in self.values:
            self.values[t] = self.certain(self.weights(self.state(t)))
            self.least = min(self.least, self.values[t])
        return self.values[t]

    def passed(self, times: np.ndarray, end: float) -> None:
        """Note lambda_min(T) at these saved times, and the distance from the run at those that are checkpoints."""
        kept = self.run.checkpoints
        for t in times.tolist():
            self.saved.append(self.least_eigenvalue(t))
            place = int(np.searchsorted(kept.times, t))
            if place < len(kept.times) and kept.times[place] == t:
                self.distances.append(self.distance(t, kept.states[place]))
        self._forget(end)

    def distance(self, t: float, state: np.ndarray) -> float:
        """||W_tight(t) - W(t)||_F of a state of the run."""
        return distance(self.state(t), state)

    def _forget(self, t: float) -> None:
        """Nothing before t will be asked for."""
        place = bisect_right(self.times, t) - 1
        self.times, self.states = self.times[place:], self.states[place:]
        self.values = {time: value for time, value in self.values.items() if time >= t}

    def sensitivity(self, radius: float) -> float:
        """How much J changes with the weights within that distance of the run: the greatest at a few checkpoints."""
        states = self.run.checkpoints.states
        chosen = np.unique(np.linspace(0, len(states) - 1, LOOKED_AT).astype(int))
        return max(sensitivity(self.weights(state), self.network.scale, radius) for state in states[chosen])

    def rounding(self, norm: float) -> float:
        """How uncertain a computed lambda_min(T) is where ||T|| <= norm."""
        dims = self.network.dims
        return uncertainty(dims[0] * dims[-1], max(dims), norm)

    def typical(self) -> tuple[float, float, float]:
        """The mean and the greatest lambda_min(T), and a bound on ||T||, at a few checkpoints of the run."""
        kept = self.run.checkpoints
        chosen = np.unique(np.linspace(0, len(kept.times) - 1, LOOKED_AT).astype(int))
        weights = [self.weights(state) for state in kept.states[chosen]]
        values = np.array([self.certain(layers) for layers in weights])
        mean = float(np.trapezoid(values, kept.times[chosen])) / float(kept.times[-1])
        return mean, float(values.max()), max(norm_of_T(layers, self.network.scale) for layers in weights)
