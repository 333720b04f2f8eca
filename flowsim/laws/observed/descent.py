"""lambda_min(T) along the steps of gradient descent, and what it proves of the loss, step by step.

With kappa and q as in rates/descent.py, a step takes f - f* to at most f - f* - eta kappa q^2. Where kappa > 0, q^2 >=
lambda_min(T) ||E||^2, so f - f* shrinks by 1 - eta kappa gamma lambda_min(T) under A1, and 1 / (f - f*) grows by
eta kappa gamma^2 lambda_min(T) under A1'; where it is not, a step may raise f, by eta |kappa| q^2 at most.

Between two places at which lambda_min(T), |T| and the Lipschitz constant H of J are computed, sigma_min(J) and |J|
change by H times the distance at most: they are computed anew when that may have cost SHARE of sigma_min(J).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import log1p, sqrt

import numpy as np

from flowsim.laws.observed.eigenvalues import Certain, norm_of_T, sensitivity
from flowsim.losses import LossConstants, excess
from flowsim.network import unflatten
from flowsim.rates.descent import kappa
from flowsim.runs.tight import ROUND_OFF, Deadline
from flowsim.runs.trajectory import Trajectory

SHARE = 2e-3
AHEAD = 4.0
"""H is taken so many steps further than sigma_min(J) is used."""


class Steps:
    """The steps of a run of descent, taken again from its start, in the form that it was simulated in."""

    def __init__(self, run: Trajectory, constants: LossConstants, deadline: Deadline) -> None:
        self.run, self.problem, self.deadline = run, run.simulated, deadline
        self.eta, self.count = float(run.method.settings.step_size), len(run.steps.time) - 1
        self.K, self.gamma = float(constants.K or 0.0), float(constants.gamma or 0.0)
        self.quadratic = constants.dominance == "quadratic"
        self.certain = Certain(self.problem.network.scale)

    def __iter__(self) -> Iterator[tuple[float, float, float]]:
        """(lambda_min(T), the exponent, what of it is certain) at k = 0 .. count.

        The exponent is what the integral of lambda_min(T) is for a flow. Certain is what is left where the weights are
        as far from the exact ones as rounding and the compression may have taken them. Raises WallLimit.
        """
        state = self.run.checkpoints.states[0]
        there, exponent, certain = _Place(self, state, 0.0), 0.0, 0.0
        apart = np.interp(self.eta * np.arange(self.count + 1), self.run.time, self.run.error_estimate)
        for k in range(self.count + 1):
            self.deadline.look()
            step = self.eta * self.problem.velocity(state)
            length = float(np.linalg.norm(step))
            if k == 0 or not there.covers(state, length):
                there = _Place(self, state, length)
            off = float(apart[k]) + ROUND_OFF * float(np.linalg.norm(state))
            (least, norm), (sure, _) = there.at(state), there.at(state, off)
            yield least, exponent, certain
            gained = self._gain(state, norm, there.H, length)
            exponent, certain, state = exponent + gained(least), certain + gained(sure), state + step

    def _gain(self, state: np.ndarray, norm: float, H: float, length: float) -> Callable[[float], float]:
        """lambda_min(T) -> what a step of that length adds to the exponent."""
        W, loss, gamma, q = self.problem.products(state), self.problem.loss, self.gamma, length / self.eta
        kept = kappa(self.eta, self.K, norm, H, float(np.linalg.norm(loss.gradient(W))))
        if kept > 0 and self.quadratic:
            return lambda least: -log1p(-min(gamma * self.eta * kept * least, 1 - ROUND_OFF)) / gamma
        if kept > 0:
            return lambda least: self.eta * kept * least
        above, raised = float(excess(loss, W)), -self.eta * kept * q**2
        if not above > 0:
            return lambda least: 0.0
        lost = log1p(raised / above) / gamma if self.quadratic else raised / (above * (above + raised)) / gamma**2
        return lambda least: -lost


class _Place:
    """sigma_min(J), |J| and H, where the state is and `reach` around it."""

    def __init__(self, steps: Steps, state: np.ndarray, length: float) -> None:
        network, self.state = steps.problem.network, state
        weights = unflatten(state, network.dims)
        self.sigma = sqrt(steps.certain(weights))
        self.norm = sqrt(norm_of_T(weights, network.scale))
        first = sensitivity(weights, network.scale, AHEAD * length)
        self.reach = SHARE * self.sigma / first if first else 0.0
        self.sure = self.reach + AHEAD * length
        self.H = sensitivity(weights, network.scale, self.sure)

    def covers(self, state: np.ndarray, length: float) -> bool:
        """Whether the state is near enough, and the next one too."""
        away = float(np.linalg.norm(state - self.state))
        return away <= self.reach and away + length <= self.sure

    def at(self, state: np.ndarray, off: float = 0.0) -> tuple[float, float]:
        """(lambda_min(T) at least, |T| at most) at a state that is covered, or so far off it."""
        change = self.H * (float(np.linalg.norm(state - self.state)) + off)
        return max(self.sigma - change, 0.0) ** 2, (self.norm + change) ** 2
