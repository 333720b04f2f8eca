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

from flowsim.errors import InputError
from flowsim.integrators import start
from flowsim.losses import LeastSquares, SquaredLoss, minimum_of
from flowsim.methods import Diffrax, GradientDescent, Method, Scipy
from flowsim.network import LinearNetwork, product, unflatten
from flowsim.problem import Problem

if TYPE_CHECKING:
    import xarray

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


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A simulated gradient flow or gradient descent.

    time (S): saved times; excess (S): L - f* (L where f* is unknown); gradient_norm (S): ||grad L||_F;
    imbalance_drift (S, L-1): ||D_l(t) - D_l(0)||_F / max(1, ||D_l(0)||_F); steps: the record of every step;
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
    imbalance_drift: np.ndarray
    steps: Steps
    checkpoints: Checkpoints
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
        return unflatten(self._state_at(float(t)), self.problem.network.dims)

    def network_at(self, t: float) -> LinearNetwork:
        """The network at time t."""
        return self.problem.network.with_weights(self.weights_at(t))

    def product_at(self, t: float) -> np.ndarray:
        """W(t) = scale W_1(t) ... W_L(t)."""
        return product(self.weights_at(t), self.problem.network.scale)

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
        integrator = start(self.problem, self.method, float(times[index]), self.checkpoints.states[index], end)
        while True:
            segment = integrator.advance()
            if segment.times[-1] >= t:
                return segment.evaluate(t)

    @cached_property
    def dataset(self) -> xarray.Dataset:
        """All of it as an xarray Dataset with long names; `step_*` variables are known at every step."""
        import xarray

        return xarray.Dataset(
            {
                "loss": ("time", self.loss, {"long_name": "loss L(t)"}),
                "excess_loss": ("time", self.excess, {"long_name": "L(t) - f*"}),
                "gradient_norm": ("time", self.gradient_norm, {"long_name": "||grad L(t)||_F"}),
                "imbalance_drift": (
                    ("time", "layer"),
                    self.imbalance_drift,
                    {"long_name": "||D_l(t) - D_l(0)||_F / max(1, ||D_l(0)||_F)"},
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
                f"drift    imbalance {self.imbalance_drift.max():.3g}, energy {np.abs(self.energy_residual).max():.3g}",
            ]
        )

    def __repr__(self) -> str:
        return self.summary()

    def save(self, path: str | Path) -> None:
        """Write NetCDF: the dataset, the checkpoints, the loss, and the configuration as one JSON attribute.

        The file is written beside and renamed. Raises InputError when the place cannot be written.
        """
        from flowsim.files import write_atomically

        kind, arrays = _describe_loss(self.problem.loss)
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
        }
        dataset = self.dataset.assign(
            checkpoint_time=("checkpoint", self.checkpoints.times),
            checkpoint_state=(("checkpoint", "weight"), self.checkpoints.states),
        )
        dataset = dataset.assign(
            {f"loss_{name}": ((f"{name}_row", f"{name}_column"), value) for name, value in arrays.items()}
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


def _restore_loss(kind: str, dataset: Any, shape: tuple[int, int]) -> Any:
    if kind == "SquaredLoss":
        return SquaredLoss(dataset["loss_Y"].values)
    if kind == "LeastSquares":
        minimum = float(dataset["loss_minimum"].values[0, 0])
        return LeastSquares.from_factor(dataset["loss_factor"].values, dataset["loss_minimiser"].values, minimum)
    return UnknownLoss(shape)


def load(path: str | Path, loss: Any = None) -> Trajectory:
    """Read a trajectory that Trajectory.save wrote; `loss` restores a user's own loss.

    Raises InputError when the file is missing, damaged, or not one of flowsim's.
    """
    import xarray

    if not Path(path).is_file():
        raise InputError(f"Argument `path` must name a file, but {path} is not one.")
    try:
        with xarray.open_dataset(path, engine="h5netcdf") as opened:
            dataset = opened.load()
        configuration = json.loads(dataset.attrs["flowsim"])
        return _restore(dataset, configuration, loss)
    except InputError:
        raise
    except (OSError, KeyError, ValueError, TypeError, IndexError) as error:
        raise InputError(
            f"Argument `path` must be a run saved by flowsim, but {path} is damaged or foreign."
        ) from error


def _restore(dataset: Any, configuration: dict[str, Any], loss: Any) -> Trajectory:
    dims = tuple(configuration["dims"])
    states = dataset["checkpoint_state"].values
    network = LinearNetwork(tuple(unflatten(states[0], dims)), configuration["scale"], configuration["origin"])
    settings = dict(configuration["method"])
    family = {"Scipy": Scipy, "Diffrax": Diffrax, "GradientDescent": GradientDescent}[settings.pop("family")]
    found = loss or _restore_loss(configuration["loss"], dataset, (dims[0], dims[-1]))
    column = lambda name: dataset[name].values  # noqa: E731
    return Trajectory(
        problem=Problem(found, network),
        method=family(**settings),
        status=configuration["status"],
        detail=configuration["detail"],
        time=column("time"),
        excess=column("excess_loss"),
        gradient_norm=column("gradient_norm"),
        imbalance_drift=column("imbalance_drift"),
        steps=Steps(column("step_time"), column("step_excess_loss"), column("dissipated")),
        checkpoints=Checkpoints(column("checkpoint_time"), states),
        stats=configuration["stats"],
        provenance=configuration["provenance"],
    )
