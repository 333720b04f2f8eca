"""What a simulation returns: a status, the loss and the invariants at the saved times, the weights at any time."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsim.checks import as_count
from flowsim.errors import InputError
from flowsim.integrators import start
from flowsim.losses import LeastSquares, SquaredLoss, minimum_of
from flowsim.methods import Diffrax, GradientDescent, Method, Scipy
from flowsim.network import LinearNetwork, unflatten
from flowsim.problem import Problem
from flowsim.reduction import CompressedNetwork, FixedBases

if TYPE_CHECKING:
    import xarray

LARGEST_KEPT = 2**30
"""Initial weights of more bytes than this (1 GiB) are not kept in a file beside the compressed ones."""

REMEDIES = {
    "completed": "The end time was reached.",
    "converged": "The stopping level was reached.",
    "diverged": "The state grew without bound or the steps failed; lower step_size or tighten rtol.",
    "step_limit": "The step limit was reached before the end time; raise max_steps or loosen rtol.",
    "wall_limit": "The wall-clock limit was reached before the end time; raise wall_limit or use a cheaper method.",
    "interrupted": "The run was interrupted; the result up to there is kept.",
}
"""status -> what it means and what to do."""

EXIT_CODES = {"completed": 0, "converged": 0, "diverged": 3, "step_limit": 3, "wall_limit": 3, "interrupted": 130}


@dataclass(frozen=True)
class Checkpoints:
    """States kept at some of the saved times, the first and the last among them."""

    times: np.ndarray
    states: np.ndarray


@dataclass(frozen=True)
class Steps:
    """What is known after every accepted step: time, L - f*, and the integral of ||grad L||_F^2 since t = 0."""

    time: np.ndarray
    excess: np.ndarray
    dissipated: np.ndarray


@dataclass(frozen=True)
class Reduction:
    """How the width was compressed: the compressed network (None where the full weights were integrated), the estimate
    of ||W_full(t) - W(t)||_F over all layers at the saved times, and the reason for the choice."""

    network: CompressedNetwork | None
    error: np.ndarray
    reason: str


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A simulated gradient flow or gradient descent.

    time (S): saved times; excess (S): L - f* (L where f* is unknown); gradient_norm (S): ||grad L||_F;
    imbalance_change (S, L-1): ||D_l(t) - D_l(0)||_F; steps: the record of every step; reduction: whether and how the
    width was compressed, with the error estimate;
    stats: steps, rhs_evaluations, rejected_steps, jacobians, seconds, compile_seconds (apart). Times are in the
    flow's own unit, 1 / [loss per squared weight]; for gradient descent t = k step_size.
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
        return self.imbalance_change / np.maximum(1.0, self.problem.network.imbalance_norms)

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
        """The network at time t, with its full weights."""
        return self.problem.network.with_weights(self.weights_at(t))

    @property
    def simulated(self) -> Problem:
        """The problem that was integrated: the compressed network's core where the width was compressed."""
        compressed = self.reduction.network
        return self.problem if compressed is None else Problem(self.problem.loss, compressed.core)

    def core_at(self, t: float) -> LinearNetwork:
        """The network that was integrated, at time t: small where the width was compressed, of the same product."""
        network = self.simulated.network
        return network.with_weights(unflatten(self._state_at(float(t)), network.dims))

    def product_at(self, t: float) -> np.ndarray:
        """W(t) = scale W_1(t) ... W_L(t), as integrated."""
        return self.core_at(t).product

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
        import xarray

        return xarray.Dataset(
            {
                "loss": ("time", self.loss, {"long_name": "loss L(t)"}),
                "excess_loss": ("time", self.excess, {"long_name": "L(t) - f*"}),
                "gradient_norm": ("time", self.gradient_norm, {"long_name": "||grad L(t)||_F"}),
                "imbalance_change": (
                    ("time", "layer"),
                    self.imbalance_change,
                    {"long_name": "||D_l(t) - D_l(0)||_F"},
                ),
                "imbalance_drift": (
                    ("time", "layer"),
                    self.imbalance_drift,
                    {"long_name": "||D_l(t) - D_l(0)||_F / max(1, ||D_l(0)||_F)"},
                ),
                "error_estimate": (
                    "time",
                    self.error_estimate,
                    {"long_name": "estimated compression error of the weights, Frobenius norm over all layers"},
                ),
                "step_loss": ("step_time", self.step_loss, {"long_name": "loss L(t) after each step"}),
                "step_excess_loss": ("step_time", self.steps.excess, {"long_name": "L(t) - f* after each step"}),
                "dissipated": ("step_time", self.steps.dissipated, {"long_name": "integral of ||grad L||_F^2"}),
                "energy_residual": (
                    "step_time",
                    self.energy_residual,
                    {"long_name": "(L(0) - L(t) - dissipated) / (L(0) - f*)"},
                ),
            },
            coords={
                "time": ("time", self.time, {"long_name": "time t", "units": "1"}),
                "layer": ("layer", np.arange(1, self.problem.network.depth), {"long_name": "l of D_l"}),
                "step_time": ("step_time", self.step_time, {"long_name": "time t after each step", "units": "1"}),
            },
            attrs={"status": self.status, "message": self.message},
        )

    def summary(self) -> str:
        """A few lines for a terminal."""
        step = np.diff(self.step_time)
        sizes = f"steps {step.min():.3g} to {step.max():.3g}" if len(step) else "no step"
        ratio = self.excess[-1] / self.excess[0] if self.excess[0] else 0.0
        return "\n".join(
            [
                f"status   {self.status}: {self.message}",
                f"network  dims {self.problem.network.dims}, {self.problem.network.size} weights",
                f"method   {self.method}",
                f"work     {self.stats['steps']} steps, {self.stats['rhs_evaluations']} right-hand sides, {sizes},"
                f" {self.stats['seconds']:.3g} s",
                f"loss     {self.loss[0]:.6g} to {self.loss[-1]:.6g} at t = {self.time[-1]:.6g}"
                f" (excess fell to {ratio:.3g})",
                f"width    {self.reduction.reason}{self._compression()}",
                f"drift    imbalance {self.imbalance_drift.max():.3g}, energy {np.abs(self.energy_residual).max():.3g}",
            ]
        )

    def _compression(self) -> str:
        compressed = self.reduction.network
        if compressed is None:
            return ""
        relative = self.error_estimate[-1] / (self.weights_change or 1.0)
        return f", widths {compressed.core.dims[1:-1]}, estimated error {relative:.2g} of the change of the weights"

    def __repr__(self) -> str:
        return self.summary()

    def save(self, path: str | Path) -> None:
        """Write NetCDF: the dataset, the checkpoints, the loss, and the configuration as one JSON attribute.

        The file is written beside and renamed. Raises InputError when the place cannot be written.
        """
        from flowsim.files import write_atomically

        kind, loss = _describe_loss(self.problem.loss)
        arrays = {f"loss_{name}": value for name, value in loss.items()}
        reduction, bases = _describe_reduction(self.reduction, self.problem.network)
        arrays |= bases
        network = self.problem.network
        configuration = {
            "schema": 1,
            "dims": network.dims,
            "scale": network.scale,
            "origin": dict(network.origin),
            "method": {"family": type(self.method).__name__, **dataclasses.asdict(self.method)},
            "loss": kind,
            "status": self.status,
            "detail": self.detail,
            "stats": dict(self.stats),
            "provenance": dict(self.provenance),
            "reduction": reduction,
        }
        dataset = self.dataset.assign(
            checkpoint_time=("checkpoint", self.checkpoints.times),
            checkpoint_state=(("checkpoint", "weight"), self.checkpoints.states),
        )
        dataset = dataset.assign(
            {name: ((f"{name}_row", f"{name}_column"), value) for name, value in arrays.items()}
        ).assign_attrs(flowsim=json.dumps(configuration, allow_nan=False))
        with write_atomically(Path(path)) as place:
            dataset.to_netcdf(place, engine="h5netcdf")


@dataclass(frozen=True, eq=False)
class UnknownLoss:
    """Stands for a user's own loss in a trajectory loaded without it."""

    shape: tuple[int, int]

    def value(self, W: Any) -> Any:
        """Not known."""
        raise InputError(
            "Argument `loss` must be passed to load(path, loss=...): the file does not hold the user's own."
        )

    gradient = value


def _describe_loss(loss: Any) -> tuple[str, dict[str, np.ndarray]]:
    if isinstance(loss, SquaredLoss):
        return "SquaredLoss", {"Y": loss.Y}
    if isinstance(loss, LeastSquares):
        arrays = {"factor": loss.factor, "minimiser": loss.minimiser, "minimum": np.array([[loss.minimum]])}
        return "LeastSquares", arrays
    return "custom", {}


def _describe_reduction(reduction: Reduction, network: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What a file keeps of the compression: coordinates, bases, and the initial weights unless they are too large."""
    compressed = reduction.network
    if compressed is None:
        return {"reason": reduction.reason, "steps": None}, {}
    steps = compressed.steps
    levels = sorted({min(level, len(compressed.bases.counts) - 1) for level in range(steps + compressed.halo + 1)})
    arrays = {f"core_M{layer}": M for layer, M in enumerate(compressed.surroundings, start=1)}
    for layer, (P, M) in enumerate(zip(compressed.bases.vectors or [], compressed.surroundings, strict=False), start=1):
        arrays[f"basis_P{layer}"] = P[:, : M.shape[1]]
    if isinstance(network, LinearNetwork) and network.is_dense and 8 * network.size <= LARGEST_KEPT:
        arrays |= {f"initial_W{layer}": W for layer, W in enumerate(network.weights, start=1)}
    counts = [compressed.bases.counts[level] for level in levels]
    norms = network.imbalance_norms
    return {"reason": reduction.reason, "steps": steps, "counts": counts, "imbalance_norms": norms}, arrays


def _restore_network(
    configuration: dict[str, Any], arrays: dict[str, np.ndarray], network: Any
) -> tuple[Any, CompressedNetwork | None]:
    """(the problem's network, its compressed form or None)."""
    dims, scale, origin = tuple(configuration["dims"]), configuration["scale"], configuration["origin"]
    reduction, layers = configuration["reduction"], range(1, len(configuration["dims"]))
    if reduction["steps"] is None:
        return LinearNetwork(tuple(unflatten(arrays["checkpoint_state"][0], dims)), scale, origin), None
    if network is None and "initial_W1" in arrays:
        network = LinearNetwork(tuple(arrays[f"initial_W{layer}"] for layer in layers), scale, origin)
    if network is not None and network.dims != dims:
        raise InputError(f"Argument `network` must have dims {dims}, but it has {network.dims}.")
    vectors = [arrays[f"basis_P{layer}"] for layer in layers[:-1]] if "basis_P1" in arrays else None
    bases = FixedBases(
        dims,
        [arrays[f"core_M{layer}"] for layer in layers],
        [tuple(sizes) for sizes in reduction["counts"]],
        vectors,
        reduction["imbalance_norms"],
        None if network is None else network.weights,
    )
    compressed = CompressedNetwork(bases, reduction["steps"], scale, origin)
    return compressed if network is None else network, compressed


def _restore_loss(kind: str, dataset: Any, shape: tuple[int, int]) -> Any:
    if kind == "SquaredLoss":
        return SquaredLoss(dataset["loss_Y"].values)
    if kind == "LeastSquares":
        minimum = float(dataset["loss_minimum"].values[0, 0])
        return LeastSquares.from_factor(dataset["loss_factor"].values, dataset["loss_minimiser"].values, minimum)
    return UnknownLoss(shape)


def load(path: str | Path, loss: Any = None, network: LinearNetwork | None = None) -> Trajectory:
    """Read a trajectory that Trajectory.save wrote.

    `loss` restores a user's own loss, `network` initial weights that were too large for the file (1 GiB).

    Raises InputError when the file is missing, damaged, or not one of flowsim's.
    """
    import xarray

    if not Path(path).is_file():
        raise InputError(f"Argument `path` must name a file, but {path} is not one.")
    try:
        with xarray.open_dataset(path, engine="h5netcdf") as opened:
            dataset = opened.load()
        configuration = json.loads(dataset.attrs["flowsim"])
        return _restore(dataset, configuration, loss, network)
    except InputError:
        raise
    except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(
            f"Argument `path` must be a run saved by flowsim, but {path} is damaged or foreign."
        ) from error


def _restore(dataset: Any, configuration: dict[str, Any], loss: Any, network: Any) -> Trajectory:
    dims = tuple(configuration["dims"])
    arrays = {str(name): variable.values for name, variable in dataset.variables.items()}
    network, compressed = _restore_network(configuration, arrays, network)
    settings = dict(configuration["method"])
    family = {"Scipy": Scipy, "Diffrax": Diffrax, "GradientDescent": GradientDescent}[settings.pop("family")]
    found = loss or _restore_loss(configuration["loss"], dataset, (dims[0], dims[-1]))
    return Trajectory(
        problem=Problem(found, network),
        method=family(**settings),
        status=configuration["status"],
        detail=configuration["detail"],
        time=arrays["time"],
        excess=arrays["excess_loss"],
        gradient_norm=arrays["gradient_norm"],
        imbalance_change=arrays["imbalance_change"],
        steps=Steps(arrays["step_time"], arrays["step_excess_loss"], arrays["dissipated"]),
        checkpoints=Checkpoints(arrays["checkpoint_time"], arrays["checkpoint_state"]),
        reduction=Reduction(compressed, arrays["error_estimate"], configuration["reduction"]["reason"]),
        stats=configuration["stats"],
        provenance=configuration["provenance"],
    )
