"""What is integrated in a problem's place: its full weights, or the core of its compressed form with an error watch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from flowsim.errors import InputError
from flowsim.integrators import DENSE_JACOBIAN_LIMIT, Segment
from flowsim.methods import GaussLegendre, GradientDescent, Method, Projected
from flowsim.network import LinearNetwork, flatten, imbalance_change, joint_norm, unflatten
from flowsim.problem import Problem
from flowsim.reduction import CompressedNetwork, KrylovBases, first_level, regrown
from flowsim.trajectory import Trajectory

DESCENT_RTOL, DESCENT_ATOL = 1e-8, 1e-10
"""Gradient descent has no tolerances of its own: its compression error is held to the default ones of the flow."""
INVARIANT_RTOL, INVARIANT_ATOL = 1e-13, 1e-15
"""The imbalance drifts by about the compression error times the weights: for a method that keeps it to round-off."""
ALLOWANCE, ALLOWANCE_GROWTH = {3: 0.5}, 1.5
"""The first share of the tolerance that the estimate may take (by depth, else 0.1: beyond three layers the estimate may
be a few times too small), and its growth with each refinement, up to all of it."""
WORTH_COMPRESSING, WORTH_COMPRESSING_SOON = 5000, 200
"""Below this many weights a step costs the same whatever their number; implicit methods feel fewer, and two layers are
compressed at once and without error."""
LARGEST_SHARE = 0.5
"""Compression pays while the core and its surroundings have at most this share of the network's weights."""
MOST_STEPS_AT_ONCE = 6
SPEEDUP = 0.6
"""The defect falls super-linearly: with each further Krylov step the ratio of the last two is taken to fall so."""
STUCK = 0.5
"""Further Krylov steps that leave more than this share of the defect do not help: the method's own error is in it."""
LEAST_RTOL = 1e-12
"""Tighter than this, round-off in the defect decides."""
WATCHED = 32
"""The defect is taken at the ends of the flow's steps; along a segment of gradient descent on this many intervals."""


@dataclass(frozen=True)
class Refused:
    """A segment was not taken: go on from (t, state), the segment's start, with the finer model."""

    t: float
    state: np.ndarray
    finer: Model


class FullModel:
    """The network's own weights."""

    def __init__(self, problem: Problem, reason: str, error: float = 0.0) -> None:
        if not isinstance(problem.network, LinearNetwork) or not problem.network.is_dense:
            raise InputError(
                "Argument `reduce` must not be never for a network without full weights (drawn in compressed form, or"
                " with operators as layers); use auto."
            )
        self.problem, self.reason, self.error = problem, reason, error

    @property
    def initial_state(self) -> np.ndarray:
        """The weights at t = 0."""
        return self.problem.initial_state

    def watch(self, segment: Segment, count: int, end: float) -> Refused | None:
        """Nothing to watch."""
        return None

    def convert(self, finer: Model, state: np.ndarray) -> np.ndarray:
        """The same state: there is no finer model."""
        return state

    def diagnose(self, times: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, ...]:
        """L - f*, ||grad L||_F, ||D_l - D_l(0)||_F and the compression error at the states."""
        initial = self.problem.network.weights
        now = unflatten(states, self.problem.network.dims)
        changes = [W - W0 for W, W0 in zip(now, initial, strict=True)]
        drift = np.array([imbalance_change(initial, [C[k] for C in changes]) for k in range(len(states))])
        return *_loss_and_gradient(self.problem, states), drift, np.full(len(times), self.error)


@dataclass
class CompressedModel:
    """The core of a compressed network, and the estimate e(t) = integral of the defect of the lifted trajectory.

    refused: where the last refused segment began and the mean defect along it; a refusal at the same place that is
    hardly smaller shows that more Krylov steps do not help.
    """

    whole: Problem
    network: CompressedNetwork
    rtol: float
    atol: float
    may_give_up: bool
    refinements: int = 0
    refused: tuple[float, float] = (-1.0, np.inf)
    times: list[np.ndarray] = field(default_factory=lambda: [np.zeros(1)])
    errors: list[np.ndarray] = field(default_factory=lambda: [np.zeros(1)])

    def __post_init__(self) -> None:
        self.problem = self.network.problem(self.whole.loss)
        self.reason = "compressed: " + ("exact" if self.network.exact else f"{self.network.steps} Krylov steps")

    @property
    def initial_state(self) -> np.ndarray:
        """The core's weights at t = 0."""
        return self.problem.initial_state

    def watch(self, segment: Segment, count: int, end: float) -> Refused | None:
        """Add the defect along the segment to the estimate, or refuse the segment where that exceeds the tolerance."""
        if self.network.exact:
            return None
        nodes = np.append(segment.times[:count], end)
        if segment.discrete:
            nodes = nodes[np.unique(np.linspace(0, count, WATCHED + 1).astype(int))]
        states = segment.evaluate(nodes)
        increments = self._integral(self.network, nodes, states)
        errors = self.errors[-1][-1] + increments
        allowed = self._allowance * self._tolerance(states)
        if (errors > allowed)[1:].any():
            t, rate = self.refused
            stuck = t == nodes[0] and float(increments[-1]) > STUCK * rate * float(nodes[-1] - nodes[0])
            if self.may_give_up or not stuck:
                finer = self._finer(nodes, states, float(increments[-1]), float(allowed[-1]), stuck)
                return Refused(float(nodes[0]), states[0], finer)
        self.times.append(nodes[1:])
        self.errors.append(errors[1:])
        return None

    def diagnose(self, times: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, ...]:
        """L - f*, ||grad L||_F, ||D_l - D_l(0)||_F and the estimate e at the states of the core."""
        drift = imbalance_change(self.network.surroundings, self.network.changes(states))
        error = np.interp(times, np.concatenate(self.times), np.concatenate(self.errors))
        return *_loss_and_gradient(self.problem, states), drift, error

    def convert(self, finer: Model, state: np.ndarray) -> np.ndarray:
        """A state of this core as a state of a finer model."""
        if isinstance(finer, CompressedModel):
            return self.network.embed(finer.network, state)
        weights = self.whole.network.weights
        return flatten([self.network.lift(state, layer, W) for layer, W in enumerate(weights, start=1)])

    @property
    def _allowance(self) -> float:
        first = 1.0 if self.rtol < LEAST_RTOL else ALLOWANCE.get(self.network.depth, 0.1)
        return min(1.0, first * ALLOWANCE_GROWTH**self.refinements)

    def _tolerance(self, states: np.ndarray) -> np.ndarray:
        return self.rtol * np.linalg.norm(states - self.initial_state, axis=1) + self.atol

    def _integral(self, network: CompressedNetwork, nodes: np.ndarray, states: np.ndarray) -> np.ndarray:
        """The integral of the defect up to each node, by the trapezoidal rule."""
        with np.errstate(over="ignore", invalid="ignore"):
            defects = network.defect(self.whole.stacked_loss, states)
            return np.append(0.0, np.cumsum(0.5 * np.diff(nodes) * (defects[1:] + defects[:-1])))

    def _finer(self, nodes: np.ndarray, states: np.ndarray, increment: float, allowed: float, stuck: bool) -> Model:
        """More steps: as many as the decay from one step fewer to these suggests, at least one."""
        rate = increment / float(nodes[-1] - nodes[0])
        fewer = self.network.with_steps(self.network.steps - 1)
        before = self._integral(fewer, nodes, self.network.restrict(fewer, states))[-1]
        ratio = min(max(increment / before, 1e-3), 0.3) if before > 0 and np.isfinite(before) else 0.3
        more = 1
        increment *= ratio
        while more < MOST_STEPS_AT_ONCE and increment > 0.1 * allowed:
            ratio *= SPEEDUP
            increment *= ratio
            more += 1
        network = self.network.with_steps(self.network.steps + more)
        if self.may_give_up and (stuck or not pays(network)):
            why = f"{self.network.steps} Krylov steps are no better than fewer" if stuck else _why_not(network)
            return FullModel(self.whole, f"full weights from t = {nodes[0]:.3g}: {why}", self.errors[-1][-1])
        return replace(self, network=network, refinements=self.refinements + 1, refused=(float(nodes[0]), rate))


Model = FullModel | CompressedModel


def choose_model(problem: Problem, method: Method, reduce: str) -> Model:
    """What to integrate for simulate's `reduce`. Raises InputError where that is impossible."""
    network = problem.network
    if reduce == "never":
        return FullModel(problem, "full weights, as asked")
    may_give_up = reduce == "auto" and isinstance(network, LinearNetwork) and network.is_dense
    may_give_up = may_give_up and (not method.kind.dense_jacobian or network.size <= DENSE_JACOBIAN_LIMIT)
    least = WORTH_COMPRESSING if method.kind.explicit and network.depth > 2 else WORTH_COMPRESSING_SOON
    if may_give_up and network.size < least:
        return FullModel(problem, f"full weights: {network.size} are too few for compression to pay")
    if isinstance(network, LinearNetwork):
        level = first_level(network.depth)
        compressed = CompressedNetwork(KrylovBases(network.weights), level, network.scale, network.origin)
        if may_give_up and not pays(compressed):
            return FullModel(problem, f"full weights: {_why_not(compressed)}")
    else:
        compressed = network
    return CompressedModel(problem, compressed, *tolerances(method), may_give_up)


def continued(run: Trajectory) -> tuple[Model, np.ndarray]:
    """What went on being integrated at a trajectory's end, and its checkpoints' states there.

    Raises InputError where the width was compressed in bases that cannot grow any more.
    """
    network, states = run.reduction.network, run.checkpoints.states
    if network is None:
        return FullModel(run.problem, run.reduction.reason, float(run.error_estimate[-1])), states
    whole = run.problem.network
    growing, states = regrown(network, whole, states)
    may_give_up = isinstance(whole, LinearNetwork) and whole.is_dense
    model = CompressedModel(run.problem, growing, *tolerances(run.method), may_give_up)
    model.times, model.errors = [run.time], [run.error_estimate]
    return model, states


def tolerances(method: Method) -> tuple[float, float]:
    """(rtol, atol) of the compression error: the method's own, unless it promises invariants kept to round-off."""
    if isinstance(method, GradientDescent):
        return DESCENT_RTOL, DESCENT_ATOL
    if isinstance(method, (GaussLegendre, Projected)):
        return INVARIANT_RTOL, INVARIANT_ATOL
    return max(method.rtol, LEAST_RTOL), method.atol


def pays(network: CompressedNetwork) -> bool:
    """Whether the core and what the error estimate needs around it are small beside the network."""
    limit = LARGEST_SHARE * network.size
    return _weights(network.widths) <= limit and sum(M.size for M in network.surroundings) <= limit


def _weights(widths: tuple[int, ...]) -> int:
    return sum(rows * columns for rows, columns in pairwise(widths))


def _why_not(network: CompressedNetwork) -> str:
    return f"compressed widths {network.widths[1:-1]} are too near the widths {network.dims[1:-1]} to pay"


def _loss_and_gradient(problem: Problem, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    W, gradients = problem.gradients(unflatten(states, problem.network.dims))
    return problem.excess(W), joint_norm(gradients)
