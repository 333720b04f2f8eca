"""What a simulation returns: a status, the loss and the invariants at the saved times, the weights at any time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsim.checks import as_count
from flowsim.citations import citation
from flowsim.display import Shown, Table
from flowsim.errors import InputError
from flowsim.integrators import start
from flowsim.losses import UnknownLoss, minimum_of
from flowsim.methods import GradientDescent, Method, step_tolerance
from flowsim.network import LinearNetwork, product, unflatten
from flowsim.problem import Problem
from flowsim.rates import Certificates, certify
from flowsim.reduction import CompressedNetwork
from flowsim.trajectory import words
from flowsim.trajectory.resolution import rate_seen, resolved_until, rounding_of
from flowsim.values import Value, guarded, sealed

if TYPE_CHECKING:
    import xarray

REMEDIES = {
    "completed": "The end time was reached.",
    "converged": "The stopping level was reached.",
    "diverged": "The state grew without bound or the steps failed; lower step_size, or rtol where there is one.",
    "step_limit": "The step limit was reached before the end time; raise max_steps, loosen rtol or lower t1.",
    "wall_limit": "The wall-clock limit was reached before the end time; raise wall_limit or use a cheaper method.",
    "interrupted": "The run was interrupted; the result up to there is kept.",
}
"""status -> what it means and what to do."""

CHEAP_FROM = 10**6
"""From this many weights on certificates are those of a few products with the hidden layers."""
EXIT_CODES = {"completed": 0, "converged": 0, "diverged": 3, "step_limit": 3, "wall_limit": 3, "interrupted": 130}


@dataclass(frozen=True)
class Checkpoints:
    """States kept at some of the saved times, the first and the last among them."""

    times: np.ndarray
    states: np.ndarray

    def __post_init__(self) -> None:
        _guard(self)


@dataclass(frozen=True)
class Steps:
    """What is known after every accepted step: time, L - f*, and the integral of ||grad L||_F^2 since t = 0."""

    time: np.ndarray
    excess: np.ndarray
    dissipated: np.ndarray

    def __post_init__(self) -> None:
        _guard(self)


def _guard(record: Any) -> None:
    """Let nobody write to the arrays of a record."""
    for name, value in vars(record).items():
        if isinstance(value, np.ndarray):
            vars(record)[name] = guarded(value)


def as_trajectory(value: Any) -> Trajectory:
    """The value if it is a Trajectory. Raises InputError."""
    if not isinstance(value, Trajectory):
        raise InputError(
            f"Argument `trajectory` must be a Trajectory, but it is of type {type(value).__name__}; simulate returns"
            " one, load reads one from its file."
        )
    return value


@dataclass(frozen=True)
class Reduction:
    """How the width was compressed: the compressed network (None where the full weights were integrated), the estimate
    of ||W_full(t) - W(t)||_F over all layers at the saved times, and the reason for the choice."""

    network: CompressedNetwork | None
    error: np.ndarray
    reason: str

    def __post_init__(self) -> None:
        _guard(self)


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory(Value, Shown):
    """A simulated gradient flow or gradient descent: a frozen value, whose arrays are read-only.

    time (S): saved times; excess (S): L - f* (L where f* is unknown); gradient_norm (S): ||grad L||_F;
    imbalance_change (S, L-1): ||D_l(t) - D_l(0)||_F; steps: the record of every step; reduction: whether and how the
    width was compressed, with the error estimate;
    stats: steps, rhs_evaluations, rejected_steps, jacobians, seconds, compile_seconds (apart); restarts: the times at
    which it was gone on with (`resume`). Times are in the
    flow's own unit, 1 / [loss per squared weight]; for gradient descent t = k step_size.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.fan_out((5, 60, 80, 1), seed=0))
    >>> flow = fs.simulate(problem, t1=0.05)
    >>> weights = flow.weights_at(0.02)  # between two saved times: integrated again from the last one
    >>> np.allclose(flow.product_at(0.02), np.linalg.multi_dot(weights))
    True
    >>> bool(flow.imbalance_drift.max() < 1e-6), bool(abs(flow.energy_residual).max() < 1e-6)
    (True, True)
    """

    problem: Problem
    method: Method
    status: str
    detail: str
    time: np.ndarray
    excess: np.ndarray
    gradient_norm: np.ndarray
    imbalance_change: np.ndarray
    steps: Steps
    checkpoints: Checkpoints
    reduction: Reduction
    stats: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    restarts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _guard(self)

    @property
    def loss(self) -> np.ndarray:
        """L at the saved times."""
        return (minimum_of(self.problem.loss) or 0.0) + self.excess

    @property
    def step_time(self) -> np.ndarray:
        """The ends of all accepted steps, 0 included."""
        return self.steps.time

    @property
    def step_loss(self) -> np.ndarray:
        """L at step_time."""
        return (minimum_of(self.problem.loss) or 0.0) + self.steps.excess

    @cached_property
    def imbalance_drift(self) -> np.ndarray:
        """(S, L-1): ||D_l(t) - D_l(0)||_F / max(1, ||D_l(0)||_F)."""
        return sealed(self.imbalance_change / np.maximum(1.0, self.problem.network.imbalance_norms))

    @property
    def error_estimate(self) -> np.ndarray:
        """The estimated compression error of the weights at the saved times; 0 where the full weights were used."""
        return self.reduction.error

    @property
    def weights_change(self) -> float:
        """||W(t) - W(0)||_F over all layers at the end."""
        return float(np.linalg.norm(self.checkpoints.states[-1] - self.checkpoints.states[0]))

    @property
    def energy_residual(self) -> np.ndarray:
        """(L(0) - L(t) - integral of ||grad L||_F^2) / (L(0) - f*) at step_time: 0 for the exact flow.

        For gradient descent the integral is the sum of step_size ||grad L||_F^2: the residual is of order step_size.
        """
        excess, dissipated = self.steps.excess, self.steps.dissipated
        return (excess[0] - excess - dissipated) / (excess[0] or 1.0)

    @property
    def message(self) -> str:
        """What the status means and what to do."""
        return " ".join(part for part in (REMEDIES[self.status], self.detail) if part)

    @property
    def exit_code(self) -> int:
        """0 completed or converged, 3 a failure or a limit, 130 interrupted."""
        return EXIT_CODES[self.status]

    def weights_at(self, t: float) -> list[np.ndarray]:
        """[W_1, ..., W_L] at time t: a checkpoint where there is one, else integrated again from the last one before t.

        Raises InputError when t lies outside the simulated interval, or when the loss was not saved with a loaded
        trajectory and t is not a checkpoint.
        """
        compressed, state = self.reduction.network, self._state_at(float(t))
        if compressed is None:
            return unflatten(state, self.problem.network.dims)
        weights = self.problem.network.weights
        return [compressed.lift(state, layer, W) for layer, W in enumerate(weights, start=1)]

    def layer_at(self, t: float, layer: int) -> Any:
        """W_l(t) alone, l = layer = 1 .. L. Raises InputError as weights_at."""
        compressed, state = self.reduction.network, self._state_at(float(t))
        if not 1 <= as_count(layer, "layer") <= self.problem.network.depth:
            raise InputError(f"Argument `layer` must be at most {self.problem.network.depth}, but it is {layer}.")
        if compressed is None:
            return unflatten(state, self.problem.network.dims)[layer - 1]
        return compressed.lift(state, layer, self.problem.network.weights[layer - 1])

    def network_at(self, t: float) -> LinearNetwork:
        """The network at time t, with its full weights; its origin: the time, the method, and whose weights moved."""
        network = self.problem.network
        origin = {"time": float(t), "method": str(self.method), "started_from": network.origin}
        return LinearNetwork(tuple(self.weights_at(t)), network.scale, origin)

    @property
    def simulated(self) -> Problem:
        """The problem that was integrated: the compressed network's core where the width was compressed."""
        compressed = self.reduction.network
        return self.problem if compressed is None else compressed.problem(self.problem.loss)

    def core_at(self, t: float) -> LinearNetwork:
        """The network that was integrated, at time t: small where the width was compressed, of the same product."""
        network = self.simulated.network
        return network.with_weights(unflatten(self._state_at(float(t)), network.dims))

    def product_at(self, t: float) -> np.ndarray:
        """W(t) = scale W_1(t) ... W_L(t), as integrated."""
        return self.core_at(t).product

    @cached_property
    def products(self) -> np.ndarray:
        """(C, n, m): W(t) at checkpoints.times, as integrated."""
        network = self.simulated.network
        return sealed(product(unflatten(self.checkpoints.states, network.dims), network.scale))

    @cached_property
    def singular_values(self) -> np.ndarray:
        """(C, min(n, m)): the singular values of W(t), descending, at checkpoints.times."""
        return sealed(np.linalg.svd(self.products, compute_uv=False))

    def _state_at(self, t: float) -> np.ndarray:
        end = float(self.time[-1])
        if not 0.0 <= t <= end * (1 + 1e-12):
            raise InputError(f"Argument `t` must lie in [0, {end:g}], the simulated interval, but it is {t:g}.")
        times = self.checkpoints.times
        index = max(int(np.searchsorted(times, t, side="right")) - 1, 0)
        if t == times[index] or t >= end:
            return self.checkpoints.states[index]
        if isinstance(self.problem.loss, UnknownLoss):
            raise InputError(
                f"Argument `t` must be one of the {len(times)} checkpoints, but it is {t:g}: the file does not hold the"
                " user's own loss; pass it to load(path, loss=...)."
            )
        integrator = start(self.simulated, self.method, float(times[index]), self.checkpoints.states[index], end)
        while True:
            segment = integrator.advance()
            if segment.times[-1] >= t:
                return segment.evaluate(np.array([t]))[0]

    @cached_property
    def dataset(self) -> xarray.Dataset:
        """All of it as an xarray Dataset with long names; `step_*` variables are known at every step."""
        from flowsim.trajectory.dataset import dataset_of

        return dataset_of(self)

    @cached_property
    def resolved_until(self) -> float | None:
        """Until when L - f* is that of the flow, not round-off and error; None where it is to the end."""
        steps, end = self.steps, self.checkpoints.states[-1]
        tolerance = step_tolerance(self.method, float(np.linalg.norm(end)), len(end))
        record = steps.time, steps.excess, steps.dissipated, float(self.gradient_norm[-1])
        return resolved_until(*record, tolerance, rounding_of(self.problem.loss))

    @property
    def rate_seen(self) -> float | None:
        """log((L(0) - f*) / (L(t) - f*)) / t, t the end, or resolved_until: the mean rate; None where nothing fell."""
        return rate_seen(self.step_time, self.steps.excess, self.resolved_until)

    @cached_property
    def certificates(self) -> Certificates:
        """All certificates of the problem, cheap for a wide network; of the network alone where there is no loss."""
        problem = self.problem
        subject = problem.network if isinstance(problem.loss, UnknownLoss) else problem
        return certify(subject, cheap=problem.network.size > CHEAP_FROM)

    @property
    def nbytes(self) -> int:
        """The memory that the record takes, the problem's weights apart."""
        arrays = [self.time, self.excess, self.gradient_norm, self.imbalance_change, self.error_estimate]
        arrays += [*vars(self.steps).values(), *vars(self.checkpoints).values()]
        return sum(array.nbytes for array in arrays)

    def shown(self) -> Table:
        """What there is to say of the run, in a few lines."""
        step = np.diff(self.step_time)
        sizes = f"steps {step.min():.3g} to {step.max():.3g}" if len(step) else "no step"
        unknown = isinstance(self.problem.loss, UnknownLoss)
        certified, end = words.certified(self.certificates.best, unknown), words.number(float(self.time[-1]))
        first, known = words.number(float(self.loss[0])), minimum_of(self.problem.loss) is not None
        fallen = f" (L - f* to {words.ratio(self)} of its start)" if known else f" ({words.ratio(self)})"
        flow = " of the flow" if isinstance(self.method, GradientDescent) else ""
        return Table(
            [
                ("status", f"{self.status}: {self.message}"),
                ("network", f"dims {self.problem.network.dims}, {self.problem.network.size} weights"),
                ("width", f"{self.reduction.reason}{self._compression()}"),
                ("method", str(self.method)),
                (
                    "work",
                    f"{self.stats['steps']} steps, {self.stats['rhs_evaluations']} right-hand sides, {sizes},"
                    f" {self.stats['seconds']:.3g} s, {self.nbytes / 2**20:.3g} MiB",
                ),
                ("loss", f"{first} to {words.final_loss(self, unknown)} at t = {end}{fallen}"),
                ("rate", f"seen {words.mean_rate(self)}; certified{flow} {certified}"),
                (
                    "drift",
                    f"imbalance {words.number(float(self.imbalance_drift.max()))}, energy{flow}"
                    f" {np.abs(self.energy_residual).max():.3g}",
                ),
            ]
        )

    def _compression(self) -> str:
        compressed = self.reduction.network
        if compressed is None:
            return ""
        return f", widths {compressed.core.dims[1:-1]}, estimated error {words.compression_error(self)}"

    def citation(self) -> str:
        """What to cite for this run, as BibTeX: the paper, flowsim, the method's library and formula."""
        return citation(self.method)

    def save(self, path: str | Path) -> None:
        """Write NetCDF: the dataset, the checkpoints, the loss, and the configuration as one JSON attribute.

        The file is written beside and renamed. Raises InputError when the place cannot be written.
        """
        from flowsim.trajectory.netcdf import write

        write(self, path)
