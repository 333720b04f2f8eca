"""diagnose: which laws of gradient flow (or of gradient descent) a trajectory obeys, each to the level to expect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from flowsim.display import Shown, Table
from flowsim.errors import FlowsimError
from flowsim.integrators import IntegrationFailure, start
from flowsim.methods import GaussLegendre, GradientDescent, Method, Projected, Scipy
from flowsim.network import backpropagate, imbalance_change, joint_norm, unflatten
from flowsim.problem import Problem
from flowsim.simulation import resume, simulate
from flowsim.trajectory import Trajectory, UnknownLoss, as_trajectory

TIGHT = Scipy("DOP853", 1e-12, 1e-15)
MARGIN = 10.0
"""A law is broken where its residual is more than MARGIN times what an undisturbed run of the same method shows."""
LOCAL_ERRORS = 100.0
"""An error-controlled step may err by LOCAL_ERRORS times the tolerance; more is not excused by the method itself."""
ROUND_OFF = 1e-12
"""Relative to the weights (or to what a law compares): below this is round-off."""
UNREMARKABLE = 0.01
"""Errors below this share of the tolerance are never held against a method."""
PROBES = 4
NEIGHBOURS = 2
"""How many steps before and after an interval show what a method errs by there."""


@dataclass(frozen=True)
class Law:
    """One law: its residual, the level to expect, whether it holds (None: not checked, see reason), and where.

    residual and expected are the pair with the greatest quotient over the trajectory, time the t at which it occurred;
    the residual of a rate is what exceeds its bound.
    """

    name: str
    equation: str
    residual: float | None
    expected: float | None
    holds: bool | None
    time: float | None = None
    reason: str | None = None


@dataclass(frozen=True, repr=False)
class Diagnosis(Shown):
    """All laws of one trajectory.

    A record that was tampered with: the loss at the end is half of what the saved weights give.

    >>> import dataclasses
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[1.0]], [[0.5]])))
    >>> flow = fs.simulate(problem, t1=1.0, save_points=11)
    >>> forged = dataclasses.replace(flow, excess=flow.excess * [*[1.0] * 10, 0.5])
    >>> diagnosis = fs.diagnose(forged)
    >>> diagnosis.verdict, diagnosis.exit_code
    ('broken: record', 3)
    """

    laws: tuple[Law, ...]

    def __iter__(self) -> Iterator[Law]:
        return iter(self.laws)

    def __getitem__(self, name: str) -> Law:
        for law in self.laws:
            if law.name == name:
                return law
        raise KeyError(f"no law {name!r}; known: {', '.join(law.name for law in self.laws)}")

    @property
    def broken(self) -> tuple[Law, ...]:
        """The laws that do not hold."""
        return tuple(law for law in self.laws if law.holds is False)

    @property
    def exit_code(self) -> int:
        """3 where a law is broken, else 0."""
        return 3 if self.broken else 0

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.broken:
            return "broken: " + ", ".join(law.name for law in self.broken)
        unknown = sum(law.holds is None for law in self.laws)
        return "every law that was checked holds" + (f" ({unknown} not checked)" if unknown else "")

    def to_json(self) -> dict[str, Any]:
        """The object that `flowsim diagnose --json` prints."""
        return {"verdict": self.verdict, "holds": not self.broken, "laws": [asdict(law) for law in self.laws]}

    def shown(self) -> Table:
        """A row a law, the verdict below."""
        verdicts = {True: "holds", False: "BROKEN", None: "not checked"}
        rows = [
            (
                law.name,
                *("-" if x is None else f"{x:.2e}" for x in (law.residual, law.expected)),
                verdicts[law.holds],
                "-" if law.time is None else f"{law.time:.4g}",
                law.reason or law.equation,
            )
            for law in self.laws
        ]
        return Table(rows, ("law", "residual", "expected", "verdict", "at t", "equation"), foot=self.verdict)


def diagnose(trajectory: Trajectory) -> Diagnosis:
    """Check a trajectory, simulated or loaded, against every law that it should obey.

    record: the saved losses are those of the saved weights. flow: between checkpoints the weights move as a far tighter
    solve of dW_l/dt = -dL/dW_l from the first of them does (recurrence: as gradient descent does). imbalance D_l:
    D_l(t) = D_l(0); for gradient descent the drift law D_l(k+1) - D_l(k) = step_size^2 (G_l^T G_l - G_{l+1} G_{l+1}^T).
    energy: L(0) - L(t) = integral of ||grad L||_F^2. monotone loss. rates: the loss stays below every certificate that
    applies. compression: the estimated error stays within the tolerance. Where the tolerance allows errors as large as
    what a law compares, the law is not judged unless it is broken all the same.

    The level to expect is MARGIN times what an undisturbed run of the same method at the same tolerance shows on the
    same problem, but (unless its steps are fixed) never more than LOCAL_ERRORS tolerances a step; for methods that
    promise the imbalance to round-off, round-off. The run is repeated once, and integrated twice at rtol 1e-12: a few
    times the work of the run.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((2, 2))), fs.fan_in((2, 4, 2), seed=0))
    >>> flow = fs.simulate(problem, t1=1.0, save_points=11)
    >>> law = fs.diagnose(flow)["imbalance D_1"]
    >>> law.equation, law.holds, law.residual < law.expected
    ('D_1(t) = D_1(0)', True, True)
    """
    if isinstance(as_trajectory(trajectory).problem.loss, UnknownLoss):
        reason = "the file does not hold the user's own loss; pass it to load(path, loss=...)"
        return Diagnosis((Law("flow", "dW_l/dt = -dL/dW_l", None, None, None, reason=reason), _compression(trajectory)))
    case = _Case(trajectory)
    laws = [case.record(), case.motion()]
    if isinstance(trajectory.method, GradientDescent):
        laws += case.drift_laws()
    else:
        laws += [*case.imbalances(), case.energy()]
    return Diagnosis((*laws, case.monotone(), *case.rates(), _compression(trajectory)))


class _Case:
    """A trajectory, an undisturbed run of the same method beside it, and the errors of both between checkpoints."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.run, self.problem, self.method = trajectory, trajectory.simulated, trajectory.method
        self.times, self.states = trajectory.checkpoints.times, trajectory.checkpoints.states
        self.end = float(self.times[-1])
        self.descends = isinstance(self.method, GradientDescent)
        self.steps = np.histogram(trajectory.step_time[1:], self.times)[0] if self.end else np.zeros(0)
        self.again = self._repeat() if self.end else None
        self.own = self._own_errors() if self.end and not self.descends else np.zeros(0)
        self.tolerance = self._tolerance()
        compression = np.interp(self.times, trajectory.time, trajectory.error_estimate)
        self.compression = np.diff(compression)

    def _repeat(self) -> Trajectory | None:
        """The same method on the same problem from the first checkpoint, gone on with where the run was; None where it
        cannot be run again."""
        first, *later = *self.run.restarts, self.end
        try:
            again = simulate(self.problem, self.method, t1=first, save_points=self._until(first), reduce="never")
            for end in later:
                again = resume(again, t1=end, save_points=self._until(end))
        except FlowsimError:
            return None
        return again

    def _until(self, end: float) -> np.ndarray:
        return self.times[self.times <= end]

    # ------------------------------------------------------------------------------------------------------- the laws

    def record(self) -> Law:
        """The saved L - f* and ||grad L||_F against those of the checkpoints' weights."""
        kept = np.isin(self.run.time, self.times)
        W, gradients = self.problem.gradients(unflatten(self.states, self.problem.network.dims))
        norms = joint_norm(gradients)
        first, steepest = self.run.excess[0] or 1.0, norms.max() or 1.0
        gaps = [
            np.abs(self.run.excess[kept] - self.problem.excess(W)) / first,
            np.abs(self.run.gradient_norm[kept] - norms) / steepest,
        ]
        gap = np.maximum(*gaps) if len(gaps[0]) == len(W) else np.full(len(self.times), np.nan)
        return _worst("record", "saved losses and gradients are those of the saved weights", gap, ROUND_OFF, self.times)

    def motion(self) -> Law:
        """Between checkpoints: the greatest difference of any weight from a far tighter solve, or the recurrence."""
        name = "recurrence" if self.descends else "flow"
        equation = "W_l <- W_l - step_size dL/dW_l" if self.descends else "dW_l/dt = -dL/dW_l"
        if not self.end:
            return Law(name, equation, None, None, None, reason="no step was taken")
        size = np.abs(self.states).max(axis=1)[1:]
        floor = ROUND_OFF * size * np.maximum(1, self.steps if self.descends else 1) + MARGIN * self.compression
        missed, expected = self._errors(self.states), floor
        if not self.descends:
            limit = LOCAL_ERRORS * np.maximum(1, self.steps) * self.tolerance[1:]
            expected = np.minimum(MARGIN * self.own, limit) + UNREMARKABLE * self.tolerance[1:] + floor
        return _worst(name, equation, missed, expected, self.times[1:])

    def imbalances(self) -> list[Law]:
        """||D_l(t) - D_l(0)||_F / max(1, ||D_l(0)||_F) at the checkpoints."""
        norms = np.maximum(1.0, self.run.problem.network.imbalance_norms)
        drift = self._drift(self.states) / norms
        sizes = np.sqrt(np.array(self._largest_square_norms()))
        allowed = np.full(drift.shape, ROUND_OFF)
        allowed += 2 * MARGIN * np.interp(self.times, self.run.time, self.run.error_estimate)[:, None] * sizes / norms
        if not isinstance(self.method, (GaussLegendre, Projected)) and self.end:
            steps = np.append(0, np.cumsum(np.maximum(1, self.steps)))
            step = 2 * np.maximum.accumulate(self.tolerance)[:, None] * sizes / norms
            limit = LOCAL_ERRORS * steps[:, None] * step
            own = np.inf if self.again is None else self.again.imbalance_drift.max(0)
            allowed += np.minimum(MARGIN * own, limit) + UNREMARKABLE * step
        laws = zip(drift.T, allowed.T, strict=True)
        return [
            _worst(f"imbalance D_{layer}", f"D_{layer}(t) = D_{layer}(0)", missed, expected, self.times)
            for layer, (missed, expected) in enumerate(laws, start=1)
        ]

    def energy(self) -> Law:
        """|L(0) - L(t) - integral of ||grad L||_F^2| / (L(0) - f*) at all steps."""
        equation = "L(0) - L(t) = integral of ||grad L||_F^2"
        missed = np.abs(self.run.energy_residual)
        slope = self.run.gradient_norm.max() / (self.run.excess[0] or 1.0)
        step = slope * self.tolerance.max()
        limit = LOCAL_ERRORS * step * np.arange(1, len(missed) + 1)
        own = np.inf if self.again is None else np.abs(self.again.energy_residual).max()
        expected = ROUND_OFF + UNREMARKABLE * step + np.minimum(MARGIN * own, limit)
        return _worst("energy", equation, missed, expected, self.run.step_time)

    def monotone(self) -> Law:
        """The greatest rise of sqrt(L - f*) in a step, against what the method's error of a step can make of it."""
        roots = np.sqrt(np.maximum(self.run.steps.excess, 0.0))
        rises = np.append(0.0, np.maximum(np.diff(roots), 0.0))
        expected = self.noise + ROUND_OFF * roots[0]
        law = _worst("monotone loss", "sqrt(L - f*) falls from step to step", rises, expected, self.run.step_time)
        return self._judged(law, roots[0])

    def _judged(self, law: Law, size: float) -> Law:
        """The law, not checked where the tolerance allows errors of all that it compares, and none was seen."""
        noise = self.noise
        if not law.holds or noise < size or not noise:
            return law
        reason = f"at this tolerance errors of {noise:.1e} in sqrt(L - f*) are allowed, and it starts at {size:.1e}"
        return Law(law.name, law.equation, law.residual, law.expected, None, reason=f"{reason}; lower rtol")

    def rates(self) -> list[Law]:
        """By how much sqrt(L - f*) exceeds the square root of a certificate's bound, against the method's error."""
        if self.descends:
            return []
        laws = []
        for certificate in self.run.certificates:
            if certificate.applies and certificate.scope == "trajectory" and certificate.rate:
                bound = np.sqrt(certificate.bound(self.run.step_time)) * (1 + 1e-9)
                allowed = self.noise + 1e-7 * ROUND_OFF**0.5 * bound[0]
                roots = np.sqrt(np.maximum(self.run.steps.excess, 0.0))
                equation = f"sqrt(L - f*) <= sqrt of {certificate.name}'s bound, rate {certificate.rate:.4g}"
                above = np.maximum(roots - bound, 0.0)
                law = _worst(f"rate {certificate.name}", equation, above, allowed, self.run.step_time)
                laws.append(self._judged(law, roots[0]))
        return laws

    def drift_laws(self) -> list[Law]:
        """Gradient descent: D_l's change between checkpoints against the sum of its exact law, on a few vectors."""
        dims, eta = self.problem.network.dims, getattr(self.method, "step_size", 0.0)
        rng = np.random.default_rng(0)
        probes = [rng.choice((-1.0, 1.0), (h, PROBES)) for h in dims[1:-1]]
        if not self.end:
            names = [(f"drift law D_{layer}", _drift_law(layer)) for layer in range(1, len(dims) - 1)]
            return [Law(*name, None, None, None, reason="no step was taken") for name in names]
        missed = []
        for (t, before), (later, after) in pairwise(zip(self.times, self.states, strict=True)):
            weights, law = unflatten(before, dims), [np.zeros_like(V) for V in probes]
            for _ in range(round((later - t) / eta)):
                _, G = backpropagate(self.problem.stacked_loss, weights, self.problem.network.scale)
                for layer, V in enumerate(probes):
                    law[layer] += eta**2 * (G[layer].T @ (G[layer] @ V) - G[layer + 1] @ (G[layer + 1].T @ V))
                weights = [W - eta * g for W, g in zip(weights, G, strict=True)]
            change = _imbalances_on(unflatten(after, dims), probes), _imbalances_on(unflatten(before, dims), probes)
            missed.append([np.linalg.norm(a - b - s) for a, b, s in zip(*change, law, strict=True)])
        steps = np.maximum(1, self.steps)
        laws = []
        for layer, h in enumerate(dims[1:-1], start=1):
            size = self._largest_square_norms()[layer - 1] * np.sqrt(PROBES * h)
            expected = ROUND_OFF * size * steps + 2 * MARGIN * self.compression * np.sqrt(size)
            found = np.array(missed)[:, layer - 1]
            laws.append(_worst(f"drift law D_{layer}", _drift_law(layer), found, expected, self.times[1:]))
        return laws

    # ------------------------------------------------------------------------------------------------------ the levels

    def _errors(self, states: np.ndarray) -> np.ndarray:
        """max |W(t_{k+1}) - (the tight flow, or the recurrence, from W(t_k))| over all weights, for each interval."""
        method = self.method if self.descends else TIGHT
        intervals = pairwise(zip(self.times, states, strict=True))
        return np.array(
            [np.abs(_end(self.problem, method, float(t), y, float(u)) - z).max() for (t, y), (u, z) in intervals]
        )

    def _own_errors(self) -> np.ndarray:
        """Those of the undisturbed run, each the greatest within NEIGHBOURS steps: the steps of a run that was gone on
        with, or is a rounding apart, end elsewhere, and dense output is not equally accurate all along a step."""
        if self.again is None or len(self.again.checkpoints.times) != len(self.times):
            return np.full(len(self.times) - 1, np.inf)
        own, last = self._errors(self.again.checkpoints.states), len(self.times) - 2
        begun = np.searchsorted(self.again.step_time, self.times[:-1], side="right")
        ended = np.searchsorted(self.again.step_time, self.times[1:], side="left")
        first = np.searchsorted(ended, begun - NEIGHBOURS)
        beyond = np.searchsorted(begun, ended + NEIGHBOURS, side="right")
        near = [
            slice(min(a, max(k - 1, 0)), max(b, min(k + 1, last) + 1))
            for k, (a, b) in enumerate(zip(first, beyond, strict=True))
        ]
        return np.array([own[window].max() for window in near])

    def _tolerance(self) -> np.ndarray:
        """What a step may err by at each state: ||atol + rtol |W|||_2; at fixed steps, what they show."""
        if self.descends:
            return np.zeros(len(self.states))
        settings = self.method.method if isinstance(self.method, Projected) else self.method
        if settings.step_size is not None:
            shown = float(self.own.max(initial=0.0)) * np.sqrt(self.states.shape[1])
            return np.full(len(self.states), shown)
        return np.linalg.norm(settings.atol + settings.rtol * np.abs(self.states), axis=1)

    def _drift(self, states: np.ndarray) -> np.ndarray:
        compressed, dims = self.run.reduction.network, self.problem.network.dims
        if compressed is not None:
            return imbalance_change(compressed.surroundings, compressed.changes(states))
        initial = unflatten(states[0], dims)
        changes = unflatten(states - states[0], dims)
        return np.array([imbalance_change(initial, [C[k] for C in changes]) for k in range(len(states))])

    def _largest_square_norms(self) -> list[float]:
        """max(||W_l||^2, ||W_{l+1}||^2), spectral, at the first checkpoint."""
        weights = unflatten(self.states[0], self.problem.network.dims)
        norms = [float(np.linalg.norm(W, 2)) ** 2 for W in weights]
        return [max(pair) for pair in pairwise(norms)]

    @cached_property
    def noise(self) -> float:
        """What the error of a step can add to sqrt(L - f*): sqrt(S / 2) times the error, S the greatest curvature."""
        if self.descends:
            return 0.0
        return MARGIN * float(np.sqrt(0.5 * self._curvature()) * self.tolerance.max())

    def _curvature(self) -> float:
        """The greatest ||Hess L|| at a few checkpoints, by power iterations."""
        chosen = self.states[np.unique(np.linspace(0, len(self.states) - 1, 5).astype(int))]
        return max(_spectral_norm(self.problem, state) for state in chosen)


def _drift_law(layer: int) -> str:
    return f"D_{layer}(k+1) - D_{layer}(k) = step_size^2 (G^T G - G' G'^T)"


def _end(problem: Problem, method: Method, t: float, state: np.ndarray, t1: float) -> np.ndarray:
    """The state at t1 of the method from (t, state); NaN where it fails."""
    try:
        integrator = start(problem, method, t, state, t1)
        while integrator.t < integrator.t1:
            segment = integrator.advance()
        return segment.evaluate(segment.times[-1:])[0]
    except IntegrationFailure:
        return np.full(len(state), np.nan)


def _spectral_norm(problem: Problem, state: np.ndarray, iterations: int = 20) -> float:
    direction, value = np.random.default_rng(0).standard_normal(len(state)), 0.0
    for _ in range(iterations):
        direction = problem.jacobian_product(state, direction / (np.linalg.norm(direction) or 1.0))
        value = float(np.linalg.norm(direction))
    return value


def _imbalances_on(weights: Sequence[np.ndarray], probes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """D_l V_l without h x h matrices."""
    pairs = zip(weights, weights[1:], probes, strict=False)
    return [W.T @ (W @ V) - U @ (U.T @ V) for W, U, V in pairs]


def _worst(name: str, equation: str, residuals: np.ndarray, expected: Any, times: np.ndarray) -> Law:
    """The law with the pair of the greatest quotient; broken where a residual exceeds its level or is not a number."""
    levels = np.broadcast_to(expected, residuals.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        quotients = np.where(residuals <= levels, np.where(levels > 0, residuals / levels, 0.0), np.inf)
        ranks = np.where(np.isinf(quotients), residuals, -1.0) if np.isinf(quotients).any() else quotients
    place = int(np.argmax(np.nan_to_num(ranks, nan=np.inf)))
    holds = bool((residuals <= levels).all())
    return Law(name, equation, float(residuals[place]), float(levels[place]), holds, float(times[place]))


def _compression(trajectory: Trajectory) -> Law:
    """The estimated error of the weights against rtol ||W(t) - W(0)||_F + atol."""
    name, equation = "compression", "estimated error <= rtol ||W(t) - W(0)||_F + atol"
    if trajectory.reduction.network is None and not trajectory.error_estimate.any():
        return Law(name, equation, None, None, None, reason="the full weights were integrated")
    rtol, atol = getattr(trajectory.method, "rtol", 1e-8), getattr(trajectory.method, "atol", 1e-10)
    return _worst(
        name, equation, trajectory.error_estimate[-1:], rtol * trajectory.weights_change + atol, trajectory.time[-1:]
    )
