"""What is integrated in a problem's place: its full weights, or the core of its compressed form with an error watch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from flowsim.compression.bases import KrylovBases
from flowsim.compression.core import CompressedNetwork, first_level
from flowsim.compression.regrown import regrown
from flowsim.errors import InputError
from flowsim.methods.base import LEAST_COMPRESSION_RTOL, Method
from flowsim.methods.steps import DENSE_JACOBIAN_LIMIT, Segment
from flowsim.network import LinearNetwork, flatten, imbalance_change, joint_norm, unflatten
from flowsim.problem import Problem

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
WATCHED = 32
"""The defect is taken at the ends of the flow's steps; along a segment of gradient descent on this many intervals, with
momentum, which may swing, on WATCHED / (1 - momentum)."""


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
        drift = imbalance_changes(self.problem, None, states)
        return *_loss_and_gradient(self.problem, states), drift, np.full(len(times), self.error)


@dataclass
class CompressedModel:
    """The core of a compressed network, and the estimate e(t) = integral of the defect of the lifted trajectory.

    gain: how much further than for the flow a wrong gradient moves the weights.
    refused: where the last refused segment began and the mean defect along it; a refusal at the same place that is
    hardly smaller shows that more Krylov steps do not help.
    """

    whole: Problem
    network: CompressedNetwork
    rtol: float
    atol: float
    may_give_up: bool
    gain: float = 1.0
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
            nodes = nodes[np.unique(np.linspace(0, count, round(WATCHED * self.gain) + 1).astype(int))]
        whole = segment.evaluate(nodes)
        states = whole[:, : self.problem.network.size]
        increments = self._integral(self.network, nodes, states)
        errors = self.errors[-1][-1] + increments
        allowed = self._allowance * self._tolerance(states)
        if (errors > allowed)[1:].any():
            t, rate = self.refused
            stuck = t == nodes[0] and float(increments[-1]) > STUCK * rate * float(nodes[-1] - nodes[0])
            if self.may_give_up or not stuck:
                finer = self._finer(nodes, states, float(increments[-1]), float(allowed[-1]), stuck)
                return Refused(float(nodes[0]), whole[0], finer)
        self.times.append(nodes[1:])
        self.errors.append(errors[1:])
        return None

    def diagnose(self, times: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, ...]:
        """L - f*, ||grad L||_F, ||D_l - D_l(0)||_F and the estimate e at the states of the core."""
        drift = imbalance_changes(self.problem, self.network, states)
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
        first = 1.0 if self.rtol < LEAST_COMPRESSION_RTOL else ALLOWANCE.get(self.network.depth, 0.1)
        return min(1.0, first * ALLOWANCE_GROWTH**self.refinements)

    def _tolerance(self, states: np.ndarray) -> np.ndarray:
        return self.rtol * np.linalg.norm(states - self.initial_state, axis=1) + self.atol

    def _integral(self, network: CompressedNetwork, nodes: np.ndarray, states: np.ndarray) -> np.ndarray:
        """The integral of the defect up to each node, by the trapezoidal rule."""
        with np.errstate(over="ignore", invalid="ignore"):
            defects = network.defect(self.whole.stacked_loss, states)
            return self.gain * np.append(0.0, np.cumsum(0.5 * np.diff(nodes) * (defects[1:] + defects[:-1])))

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
        assert isinstance(network, CompressedNetwork)
        compressed = network
    return CompressedModel(problem, compressed, *method.compression_tolerances, may_give_up, method.gain)


def resumed_model(
    problem: Problem,
    method: Method,
    compressed: CompressedNetwork | None,
    reason: str,
    record: tuple[np.ndarray, np.ndarray],
    states: np.ndarray,
) -> tuple[Model, np.ndarray]:
    """What goes on being integrated at the end of a run, and the run's states (S, size) in its coordinates.

    compressed, reason: the run's; record: its saved times with the error estimate at these. Raises InputError where the
    width was compressed in bases that cannot grow any more.
    """
    times, errors = record
    if compressed is None:
        return FullModel(problem, reason, float(errors[-1])), states
    whole = problem.network
    growing, states = regrown(compressed, whole, states)
    may_give_up = isinstance(whole, LinearNetwork) and whole.is_dense
    model = CompressedModel(problem, growing, *method.compression_tolerances, may_give_up, method.gain)
    model.times, model.errors = [times], [errors]
    return model, states


def pays(network: CompressedNetwork) -> bool:
    """Whether the core and what the error estimate needs around it are small beside the network."""
    limit = LARGEST_SHARE * network.size
    return _weights(network.widths) <= limit and sum(M.size for M in network.surroundings) <= limit


def _weights(widths: tuple[int, ...]) -> int:
    return sum(rows * columns for rows, columns in pairwise(widths))


def _why_not(network: CompressedNetwork) -> str:
    return f"compressed widths {network.widths[1:-1]} are too near the widths {network.dims[1:-1]} to pay"


def imbalance_changes(problem: Problem, compressed: CompressedNetwork | None, states: np.ndarray) -> np.ndarray:
    """(S, L-1): ||D_l - D_l(0)||_F at states (S, size) of what was integrated in a problem's place: its own weights, or
    the core of its compressed form."""
    if compressed is not None:
        return imbalance_change(compressed.surroundings, compressed.changes(states))
    initial = problem.initial_state
    start, changes = unflatten(initial, problem.network.dims), unflatten(states - initial, problem.network.dims)
    return np.array([imbalance_change(start, [C[k] for C in changes]) for k in range(len(states))])


def _loss_and_gradient(problem: Problem, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    W, gradients = problem.gradients(unflatten(states, problem.network.dims))
    return problem.excess(W), joint_norm(gradients)
