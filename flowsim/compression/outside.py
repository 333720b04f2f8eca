"""The weights that a core does not hold: what weight decay does to them counts in norms and energies."""

from __future__ import annotations

import numpy as np

from flowsim.dynamics import Motion
from flowsim.methods.base import Method
from flowsim.network import LinearNetwork
from flowsim.problem import Problem


class Outside:
    """The weights of a network outside of its core, q(t) times their start: nothing moves them but weight decay.

    square: ||W(0)||_F^2 over all layers less that of the core; 0 where nothing decays, and where the full weights are
    not there, of a network that was drawn in compressed form: then norms and energies are those of the core.
    """

    def __init__(self, whole: Motion, method: Method, core: Problem) -> None:
        self.whole, self.method, network = whole, method, whole.problem.network
        self.known = isinstance(network, LinearNetwork) and network.is_dense
        counts = self.known and whole.problem.weight_decay > 0
        self.square = max(square_norm(whole.problem) - square_norm(core), 0.0) if counts else 0.0

    @property
    def counts(self) -> bool:
        """Whether there is anything to count."""
        return self.square > 0 and self.whole.problem.weight_decay > 0

    def gradient(self, times: np.ndarray | float) -> np.ndarray:
        """The norm of their gradient at the times, x q ||.||_F."""
        if not self.counts:
            return np.zeros(np.shape(times))
        q, _ = self.method.remaining(self.whole, np.asarray(times, float))
        return np.asarray(self.whole.problem.weight_decay * np.abs(q) * self.square**0.5)

    def energy(self, times: np.ndarray) -> np.ndarray:
        """That of decay, and of their motion where the dynamics has momentum."""
        if not self.counts:
            return np.zeros(np.shape(times))
        q, slope = self.method.remaining(self.whole, times)
        moving = slope**2 if self.whole.dynamics.second_order else 0.0
        return np.asarray(0.5 * self.square * (self.whole.problem.weight_decay * q**2 + moving))


def square_norm(problem: Problem) -> float:
    """||W(0)||_F^2 over all layers."""
    start = problem.initial_state
    return float(start @ start)
