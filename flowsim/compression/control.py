"""What is integrated in a problem's place: its full weights, or the core of its compressed form with an error watch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from flowsim.compression.bases import KrylovBases
from flowsim.compression.core import CompressedNetwork, first_level
from flowsim.compression.regrown import regrown
from flowsim.dynamics import Motion
from flowsim.errors import InputError
from flowsim.methods.base import LEAST_COMPRESSION_RTOL, Method
from flowsim.methods.steps import DENSE_JACOBIAN_LIMIT, Segment
from flowsim.network import (
    LinearNetwork,
    Network,
    flatten,
    gradient_factors,
    imbalance_change,
    joint_norm,
    unflatten,
)
from flowsim.network.moved import probed_drift
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


EXACT, LEAST_EXACT = 8.0, 5e7
"""Where the change of every D_l takes LEAST_EXACT operations and as much as EXACT gradients, it is estimated from
PROBES random vectors of signs (Hutchinson): with a standard error of at most (2 PROBES)^(-1/2) of itself, 18 %."""
PROBES = 16


def estimates_drift(network: Network) -> bool:
    """Whether runs of the full weights estimate the change of D_l."""
    h = network.dims
    exact = sum(2 * h[k] ** 2 * (h[k - 1] + h[k + 1]) for k in range(1, len(h) - 1))
    return exact > max(LEAST_EXACT, EXACT * 6 * min(h[0], h[-1]) * network.size)


class FullModel:
    """The network's own weights."""

    def __init__(self, whole: Motion, method: Method, reason: str, error: float = 0.0) -> None:
        problem = whole.problem
        if not isinstance(problem.network, LinearNetwork) or not problem.network.is_dense:
            raise InputError(
                "Argument `reduce` must not be never for a network without full weights (drawn in compressed form, or"
                " with operators as layers); use auto."
            )
        self.whole, self.motion, self.method, self.reason, self.error = whole, whole, method, reason, error
        self.probes: list[np.ndarray] | None = None
        if estimates_drift(problem.network):
            rng = np.random.default_rng(0)
            self.probes = [rng.choice((-1.0, 1.0), (h, PROBES)) for h in problem.network.dims[1:-1]]

    @property
    def problem(self) -> Problem:
        """The problem that is integrated."""
        return self.motion.problem

    def watch(self, segment: Segment, count: int, end: float) -> Refused | None:
        """Nothing to watch."""
        return None

    def convert(self, finer: Model, t: float, state: np.ndarray) -> np.ndarray:
        """The same state: there is no finer model."""
        return state

    @property
    def takes_layers(self) -> bool:
        """Whether diagnose_layers serves."""
        return self.probes is not None

    def diagnose_layers(self, times: np.ndarray, layers: Sequence[Any]) -> tuple[np.ndarray, ...]:
        """As diagnose, of gradient flow without decay, at layers that are applied and not formed, a stack each."""
        problem = self.problem
        start = unflatten(problem.initial_state, problem.network.dims)
        W, factors = gradient_factors(problem.stacked_loss, layers, problem.network.scale)
        square = sum(_square_of_product(left, right) for left, right in factors)
        assert self.probes is not None
        drift = probed_drift(start, layers, self.probes)
        return problem.excess(W), np.sqrt(square), drift, np.full(len(times), self.error)

    def diagnose(self, times: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, ...]:
        """L - f*, ||grad L||_F, ||D_l - q^2 D_l(0)||_F and the compression error at the states, weights alone."""
        kept = self.method.remaining(self.motion, times)[0]
        drift = imbalance_changes(self.problem, None, states, kept, self.probes)
        return *_loss_and_gradient(self.problem, states), drift, np.full(len(times), self.error)


@dataclass
class CompressedModel:
    """The core of a compressed network, and the estimate e(t) = integral of the defect of the lifted trajectory.

    refused: where the last refused segment began and the mean defect along it; a refusal at the same place that is
    hardly smaller shows that more Krylov steps do not help.
    """

    whole: Motion
    method: Method
    network: CompressedNetwork
    may_give_up: bool
    end: float = np.inf
    refinements: int = 0
    refused: tuple[float, float] = (-1.0, np.inf)
    times: list[np.ndarray] = field(default_factory=lambda: [np.zeros(1)])
    errors: list[np.ndarray] = field(default_factory=lambda: [np.zeros(1)])

    def __post_init__(self) -> None:
        self.rtol, self.atol = self.method.compression_tolerances
        self.reason = "compressed: " + ("exact" if self.network.exact else f"{self.network.steps} Krylov steps")

    @cached_property
    def motion(self) -> Motion:
        """What is integrated: the core's problem under the dynamics."""
        core = self.network.problem(self.whole.problem.loss, self.whole.problem.weight_decay)
        return Motion(core, self.whole.dynamics)

    @property
    def problem(self) -> Problem:
        """The problem that is integrated: the core's."""
        return self.motion.problem

    def kept(self, times: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """(q, q') at the times: what decay leaves of the weights that the loss does not reach."""
        return self.method.remaining(self.whole, np.asarray(times))

    def watch(self, segment: Segment, count: int, end: float) -> Refused | None:
        """Add the defect along the segment to the estimate, or refuse the segment where that exceeds the tolerance."""
        if self.network.exact:
            return None
        nodes = np.append(segment.times[:count], end)
        if segment.discrete:
            nodes = nodes[np.unique(np.linspace(0, count, round(WATCHED * self.method.gain) + 1).astype(int))]
        whole = segment.evaluate(nodes)
        states = whole[:, : self.problem.network.size]
        increments = self._integral(self.network, nodes, states)
        errors = self.errors[-1][-1] + increments
        allowed = self.allowed(np.linalg.norm(states - self.problem.initial_state, axis=1))
        if (errors > allowed)[1:].any():
            t, rate = self.refused
            stuck = t == nodes[0] and float(increments[-1]) > STUCK * rate * float(nodes[-1] - nodes[0])
            if self.may_give_up or not stuck:
                fewer = self.network.with_steps(self.network.steps - 1)
                before = self._integral(fewer, nodes, self.network.restrict(fewer, states))[-1]
                finer = self._finer(nodes, float(increments[-1]), float(before), float(allowed[-1]), stuck)
                return Refused(float(nodes[0]), whole[0], finer)
        self.times.append(nodes[1:])
        self.errors.append(errors[1:])
        return None

    def diagnose(self, times: np.ndarray, states: np.ndarray) -> tuple[np.ndarray, ...]:
        """L - f*, ||grad L||_F, ||D_l - q^2 D_l(0)||_F and the estimate e at states of the core, weights alone."""
        drift = imbalance_changes(self.problem, self.network, states, self.kept(times)[0])
        error = np.interp(times, np.concatenate(self.times), np.concatenate(self.errors))
        return *_loss_and_gradient(self.problem, states), drift, error

    def convert(self, finer: Model, t: float, state: np.ndarray) -> np.ndarray:
        """A state of this core at time t as a state of a finer model: its weights, and what is kept beside them."""
        size = self.problem.network.size
        parts = [state[start : start + size] for start in range(0, len(state), size)]
        kept = (float(share) for share in self.kept(t))
        return np.concatenate([self._convert(finer, part, share) for part, share in zip(parts, kept, strict=False)])

    def _convert(self, finer: Model, part: np.ndarray, kept: float) -> np.ndarray:
        if isinstance(finer, CompressedModel):
            return self.network.embed(finer.network, part, kept)
        weights = self.whole.problem.network.weights
        return flatten([self.network.lift(part, layer, W, kept) for layer, W in enumerate(weights, start=1)])

    @property
    def _allowance(self) -> float:
        first = 1.0 if self.rtol < LEAST_COMPRESSION_RTOL else ALLOWANCE.get(self.network.depth, 0.1)
        return min(1.0, first * ALLOWANCE_GROWTH**self.refinements)

    def allowed(self, moved: np.ndarray) -> np.ndarray:
        """The error that the weights may have where they have moved as far as that."""
        return self._allowance * (self.rtol * moved + self.atol)

    def _integral(self, network: CompressedNetwork, nodes: np.ndarray, states: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", invalid="ignore"):
            defects = network.defect(self.whole.problem.stacked_loss, states, self.kept(nodes)[0])
            return self.estimate(nodes, defects)

    def estimate(self, nodes: np.ndarray, defects: np.ndarray) -> np.ndarray:
        """The integral of the defect (..., K) up to each node (..., K), by the trapezoidal rule."""
        with np.errstate(over="ignore", invalid="ignore"):
            reaching = defects * self.whole.dynamics.reach(nodes, self.end)
            areas = 0.5 * np.diff(nodes) * (reaching[..., 1:] + reaching[..., :-1])
            return self.method.gain * np.concatenate([np.zeros((*areas.shape[:-1], 1)), areas.cumsum(-1)], axis=-1)

    def finer(self, nodes: np.ndarray, defects: np.ndarray, fewer: np.ndarray, moved: float) -> Model:
        """What `watch` gives in this model's place for a first segment that it refuses, from the defects at the nodes
        (K), the `fewer` with one Krylov step less, and how far the weights are moved in the end."""
        increment, before = (float(self.estimate(nodes, found)[-1]) for found in (defects, fewer))
        return self._finer(nodes, increment, before, float(self.allowed(np.array(moved))), False)

    def _finer(self, nodes: np.ndarray, increment: float, before: float, allowed: float, stuck: bool) -> Model:
        """More steps: as many as the decay from one step fewer, of which the estimate is `before`, suggests, at least
        one."""
        rate = increment / float(nodes[-1] - nodes[0])
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
            return FullModel(
                self.whole, self.method, f"full weights from t = {nodes[0]:.3g}: {why}", self.errors[-1][-1]
            )
        return replace(self, network=network, refinements=self.refinements + 1, refused=(float(nodes[0]), rate))


Model = FullModel | CompressedModel


def choose_model(motion: Motion, method: Method, reduce: str, end: float = np.inf) -> Model:
    """What to integrate for simulate's `reduce`, until the time `end`. Raises InputError where that is impossible."""
    network = motion.problem.network
    if reduce == "never":
        return FullModel(motion, method, "full weights, as asked")
    may_give_up = reduce == "auto" and isinstance(network, LinearNetwork) and network.is_dense
    if not motion.dynamics.compresses(network.depth):
        why = f"{motion.dynamics.name} is not known to keep to the bases of networks of {network.depth} layers"
        if not may_give_up:
            raise InputError(f"Argument `reduce` must be never, and the network have full weights: {why}.")
        return FullModel(motion, method, f"full weights: {why}")
    may_give_up = may_give_up and (not method.kind.dense_jacobian or network.size <= DENSE_JACOBIAN_LIMIT)
    least = WORTH_COMPRESSING if method.kind.explicit and network.depth > 2 else WORTH_COMPRESSING_SOON
    if may_give_up and network.size < least:
        return FullModel(motion, method, f"full weights: {network.size} are too few for compression to pay")
    if isinstance(network, LinearNetwork):
        level = first_level(network.depth)
        compressed = CompressedNetwork(KrylovBases(network.weights), level, network.scale, network.origin)
        if method.stochastic and not compressed.exact:
            why = "steps of batches or with noise are known to keep to the bases where these are complete alone"
            if may_give_up:
                return FullModel(motion, method, f"full weights: {why}")
            raise InputError(f"Argument `reduce` must be never for {method.name} with batches or noise: {why}.")
        if may_give_up and not pays(compressed):
            return FullModel(motion, method, f"full weights: {_why_not(compressed)}")
    else:
        assert isinstance(network, CompressedNetwork)
        compressed = network
        if method.stochastic and not compressed.exact:
            raise InputError(
                f"Argument `method` must not have batches or noise for a network of {network.depth} layers that was"
                " drawn in compressed form: the error of its compression would not be known."
            )
    return CompressedModel(motion, method, compressed, may_give_up, end)


def resumed_model(
    motion: Motion,
    method: Method,
    compressed: CompressedNetwork | None,
    reason: str,
    record: tuple[np.ndarray, np.ndarray],
    states: np.ndarray,
    end: float,
) -> tuple[Model, np.ndarray]:
    """What goes on being integrated at the end of a run, and the run's states (S, size) in its coordinates.

    compressed, reason: the run's; record: its saved times with the error estimate at these; end: the new one. Raises
    InputError where the width was compressed in bases that cannot grow any more.
    """
    times, errors = record
    if compressed is None:
        return FullModel(motion, method, reason, float(errors[-1])), states
    whole = motion.problem.network
    growing, states = regrown(compressed, whole, states)
    may_give_up = isinstance(whole, LinearNetwork) and whole.is_dense
    model = CompressedModel(motion, method, growing, may_give_up, end)
    model.times, model.errors = [times], [errors * _further(motion, float(times[-1]), end)]
    return model, states


def _further(motion: Motion, t: float, end: float) -> float:
    """How much further a gradient of half way to t has moved the weights at the end than at t."""
    if not t:
        return 1.0
    middle = np.array(0.5 * t)
    return float(motion.dynamics.reach(middle, end) / motion.dynamics.reach(middle, t))


def pays(network: CompressedNetwork) -> bool:
    """Whether the core and what the error estimate needs around it are small beside the network."""
    limit = LARGEST_SHARE * network.size
    return _weights(network.widths) <= limit and sum(M.size for M in network.surroundings) <= limit


def _weights(widths: tuple[int, ...]) -> int:
    return sum(rows * columns for rows, columns in pairwise(widths))


def _why_not(network: CompressedNetwork) -> str:
    return f"compressed widths {network.widths[1:-1]} are too near the widths {network.dims[1:-1]} to pay"


def imbalance_changes(
    problem: Problem,
    compressed: CompressedNetwork | None,
    states: np.ndarray,
    kept: np.ndarray | float = 1.0,
    probes: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """(S, L-1): ||D_l - q^2 D_l(0)||_F at states (S, size) of what was integrated in a problem's place: its own
    weights, or the core of its compressed form; kept: q at their times, 1 without weight decay; probes: of
    network.imbalance_change."""
    kept = np.broadcast_to(kept, len(states))
    decays = bool((kept != 1.0).any())
    if compressed is not None:
        start, changes = list(compressed.surroundings), compressed.changes(states, kept)
    else:
        initial, dims = problem.initial_state, problem.network.dims
        left = np.multiply.outer(kept, initial) if decays else initial
        start, changes = unflatten(initial, dims), unflatten(states - left, dims)
    return np.array(
        [
            imbalance_change([q * W for W in start] if decays else start, [C[k] for C in changes], probes)
            for k, q in enumerate(kept)
        ]
    )


def _square_of_product(left: np.ndarray | None, right: np.ndarray | None) -> np.ndarray:
    """||left right||_F^2 = <left^T left, right right^T> of stacks, of small matrices; None is the identity."""
    if left is None or right is None:
        whole = right if left is None else left
        assert whole is not None
        return np.einsum("...ij,...ij->...", whole, whole)
    return np.einsum("...ij,...ij->...", left.mT @ left, right @ right.mT)


def _loss_and_gradient(problem: Problem, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    W, gradients = problem.gradients(unflatten(states, problem.network.dims))
    return problem.excess(W), joint_norm(gradients)
