"""A trajectory from its file: arrays of the shapes that the JSON object tells, and records that fit each other."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsim import losses
from flowsim.checks import as_choice
from flowsim.compression import CompressedNetwork, FixedBases, regrown
from flowsim.errors import InputError
from flowsim.files import read_netcdf
from flowsim.losses import Loss, UnknownLoss
from flowsim.methods import GradientDescent
from flowsim.network import LinearNetwork, Network, flatten, joint_norm, unflatten
from flowsim.problem import Problem
from flowsim.runs.contents import SCHEMA, Contents, contents_of, damaged, dynamics_of, method_of, refusals_of
from flowsim.runs.record import STATUSES, Checkpoints, Reduction, Steps
from flowsim.runs.trajectory import Trajectory

if TYPE_CHECKING:
    import xarray

SAME = 1e-8
"""Relative: two ways to the same numbers of a file agree to this."""
OTHER = 10.0
"""A start whose L - f* or gradient is by this factor another than recorded is that of another problem; what differs by
less is for diagnose to judge."""
FOREIGN = (KeyError, ValueError, TypeError, IndexError, OverflowError)
"""What shapes that do not fit raise."""


class Arrays:
    """The variables of a dataset by name, each asked for with its shape. Raises InputError where it is another."""

    def __init__(self, dataset: xarray.Dataset, path: str | Path) -> None:
        self.found = {str(name): variable for name, variable in dataset.variables.items()}
        self.path = path

    def __contains__(self, name: str) -> bool:
        return name in self.found

    def get(self, name: str, *shape: int | None, finite: bool = True) -> np.ndarray:
        """The float64 array of that shape; None: of any extent, but 0."""
        if name not in self.found:
            raise damaged(self.path, f"it has no variable {name}")
        array = np.asarray(self.found[name].values)
        if array.dtype != np.float64:
            raise damaged(self.path, f"{name} must be float64, but it is {array.dtype}")
        fits = len(array.shape) == len(shape) and all(
            have == want or (want is None and have > 0) for have, want in zip(array.shape, shape, strict=True)
        )
        if not fits:
            wanted = " x ".join("any" if extent is None else str(extent) for extent in shape)
            raise damaged(self.path, f"{name} must have shape {wanted}, but it has {array.shape}")
        if finite and not np.isfinite(array).all():
            raise damaged(self.path, f"{name} must be finite, but it is not")
        return array

    def times(self, name: str) -> np.ndarray:
        """Times from 0 on, in order."""
        times = self.get(name, None)
        if times[0] != 0.0 or (np.diff(times) < 0).any():
            raise damaged(self.path, f"{name} must ascend from 0, but it does not")
        return times

    def sizes(self, name: str, *shape: int) -> np.ndarray:
        """Norms: at least 0; infinite where they overflow."""
        array = self.get(name, *shape, finite=False)
        if not (array >= 0).all():
            raise damaged(self.path, f"{name} must be at least 0, but it is not")
        return array


def load(path: str | Path, loss: Loss | None = None, network: LinearNetwork | None = None) -> Trajectory:
    """Read a trajectory that Trajectory.save wrote.

    `loss` restores a user's own loss, `network` initial weights that were too large for the file (1 GiB).

    path: of the NetCDF file.
    Raises InputError when the file is missing, damaged, not one of flowsim's, or a newer flowsim's.

    >>> import tempfile
    >>> import flowsim as fs
    >>> flow = fs.simulate(fs.Problem(fs.SquaredLoss([[2.0]]), fs.fan_out((1, 100, 100, 1), seed=0)), t1=0.01)
    >>> with tempfile.NamedTemporaryFile(suffix=".nc") as file:
    ...     flow.save(file.name)
    ...     again = fs.load(file.name)
    >>> bool((again.weights_at(0.005)[1] == flow.weights_at(0.005)[1]).all())  # bases and solver are in the file
    True
    """
    return restored(read_netcdf(path), path, loss, network)


def restored(dataset: xarray.Dataset, path: str | Path, loss: Loss | None, network: LinearNetwork | None) -> Trajectory:
    """The trajectory that a dataset of Trajectory.save holds; loss, network: in the place of the file's.

    Raises InputError saying what in it cannot be.
    """
    if network is not None and not isinstance(network, LinearNetwork):
        raise InputError(f"Argument `network` must be a LinearNetwork, but it is of type {type(network).__name__}.")
    contents, record = contents_of(dataset.attrs.get("flowsim"), path, SCHEMA)
    arrays = Arrays(dataset, path)
    with np.errstate(over="ignore", invalid="ignore"):
        try:
            run = _restored(contents, record, arrays, loss, network)
        except InputError:
            raise
        except FOREIGN as error:
            raise damaged(path, "its arrays do not fit each other") from error
        _check_start(run, path)
    return run


def _restored(
    contents: Contents, record: Mapping[str, Any], arrays: Arrays, loss: Loss | None, network: LinearNetwork | None
) -> Trajectory:
    path = arrays.path
    with refusals_of(path):
        as_choice(contents.status, "status", STATUSES)
    whole, compressed = _network(contents, arrays, network)
    found = _loss(contents, arrays) if loss is None else loss
    problem = Problem(found, whole, weight_decay=contents.weight_decay)
    time, step_time, kept = (arrays.times(name) for name in ("time", "step_time", "checkpoint_time"))
    saved, steps = len(time), len(step_time)
    dynamics = dynamics_of(contents.dynamics, path)
    lost = "dissipated", steps
    dissipated = arrays.sizes(*lost) if dynamics.built_in else arrays.get(*lost, finite=False)
    older = "dynamics" not in record and "stored" not in arrays
    stored = np.zeros(steps) if older else arrays.get("stored", steps)
    run = Trajectory(
        problem=problem,
        method=method_of(contents.method, path),
        status=contents.status,
        detail=contents.detail,
        time=time,
        excess=arrays.get("excess_loss", saved),
        gradient_norm=arrays.sizes("gradient_norm", saved),
        imbalance_change=arrays.sizes("imbalance_change", saved, len(contents.dims) - 2),
        steps=Steps(step_time, arrays.get("step_excess_loss", steps), dissipated, stored),
        checkpoints=_checkpoints(kept, arrays),
        reduction=Reduction(compressed, arrays.sizes("error_estimate", saved), contents.reduction.reason),
        stats=record["stats"],
        provenance=contents.provenance,
        restarts=tuple(contents.restarts),
        before=tuple(method_of(earlier, path) for earlier in contents.before),
        dynamics=dynamics,
    )
    _check_times(run, path)
    if bool(len(run.checkpoints.beside)) != (run.method.carries or run.dynamics.second_order):
        raise damaged(path, "checkpoint_momentum must be there where weights have momentum, and nowhere else")
    return run


def _checkpoints(times: np.ndarray, arrays: Arrays) -> Checkpoints:
    states = arrays.get("checkpoint_state", len(times), None)
    if "checkpoint_momentum" not in arrays:
        return Checkpoints(times, states)
    beside = arrays.get("checkpoint_momentum", len(times), states.shape[1])
    if not np.isfinite((beside**2).sum()):
        raise damaged(arrays.path, "checkpoint_momentum must be of numbers whose squares are finite")
    return Checkpoints(times, states, beside)


def _network(
    contents: Contents, arrays: Arrays, network: LinearNetwork | None
) -> tuple[Network, CompressedNetwork | None]:
    """(the problem's network, its compressed form or None)."""
    dims, scale, origin = tuple(contents.dims), contents.scale, contents.origin
    reduction, layers = contents.reduction, range(1, len(dims))
    if network is not None and network.dims != dims:
        raise InputError(f"Argument `network` must have dims {dims}, but it has {network.dims}.")
    if reduction.steps is None:
        states = arrays.get("checkpoint_state", None, sum(rows * columns for rows, columns in pairwise(dims)))
        return LinearNetwork(tuple(unflatten(states[0], dims)), scale, origin), None
    if network is None and "initial_W1" in arrays:
        weights = (arrays.get(f"initial_W{layer}", dims[layer - 1], dims[layer]) for layer in layers)
        network = LinearNetwork(tuple(weights), scale, origin)
    compressed = CompressedNetwork(_bases(contents, arrays, network), reduction.steps, scale, origin)
    if network is None:
        compressed = _drawn_again(compressed)
        return compressed, compressed
    if not _same(network.product, compressed.product):
        raise damaged(arrays.path, "the initial weights must have the product of the compressed ones, but they do not")
    return network, compressed


def _bases(contents: Contents, arrays: Arrays, network: LinearNetwork | None) -> FixedBases:
    dims, reduction, layers = contents.dims, contents.reduction, range(1, len(contents.dims))
    sizes = reduction.counts[-1]
    vectors = None
    if "basis_P1" in arrays:
        vectors = [arrays.get(f"basis_P{layer}", dims[layer], sizes[layer]) for layer in layers[:-1]]
        if not all(_same(P.T @ P, np.eye(P.shape[1])) for P in vectors):
            raise damaged(arrays.path, "its bases must be orthonormal, but they are not")
    return FixedBases(
        dims,
        [arrays.get(f"core_M{layer}", sizes[layer - 1], sizes[layer]) for layer in layers],
        [tuple(row) for row in reduction.counts],
        vectors,
        reduction.imbalance_norms,
        None if network is None else network.weights,
        reduction.complete,
    )


def _drawn_again(compressed: CompressedNetwork) -> CompressedNetwork:
    """The network in bases that can grow, where its seed is known."""
    try:
        return regrown(compressed, compressed, np.zeros((0, compressed.core.size)))[0]
    except (InputError, KeyError):
        return compressed


def _loss(contents: Contents, arrays: Arrays) -> Loss:
    """The loss with its parts, the variables loss_NAME."""
    if contents.loss == "custom":
        return UnknownLoss((contents.dims[0], contents.dims[-1]))
    prefix = "loss_"
    names = [name for name in arrays.found if name.startswith(prefix)]
    parts = {name.removeprefix(prefix): arrays.get(name, None, None) for name in names}
    with refusals_of(arrays.path):
        kind = losses.STORED[as_choice(contents.loss, "loss", losses.STORED)]
        found = kind.restored({**parts, **contents.loss_numbers})
    if isinstance(found, losses.LeastSquares) and "rows_X" in arrays:
        X = arrays.get("rows_X", None, contents.dims[0])
        Y = arrays.get("rows_Y", len(X), contents.dims[-1])
        weights = arrays.get("rows_weights", len(X), 1)[:, 0] if "rows_weights" in arrays else None
        with refusals_of(arrays.path):
            found.keep_rows(losses.Rows(X, Y, weights))
    return found


def _check_times(run: Trajectory, path: str | Path) -> None:
    """All records must end together, checkpoints be saved times, steps be as many and as long as is told of them."""
    end, steps = float(run.time[-1]), np.diff(run.step_time)
    size: float | None = run.method.settings.step_size
    if abs(run.step_time[-1] - end) > SAME * end or run.checkpoints.times[-1] != end:
        raise damaged(path, "time, step_time and checkpoint_time must end together, but they do not")
    if not np.isin(run.checkpoints.times, run.time).all():
        raise damaged(path, "checkpoint_time must be among time, but it is not")
    if run.stats["steps"] != len(steps):
        raise damaged(path, f"`stats.steps` must be {len(steps)}, the steps recorded, but it is {run.stats['steps']}")
    if max(run.restarts, default=0.0) > end:
        raise damaged(path, "`restarts` must lie before the end, but they do not")
    if size is None or not len(steps):
        return
    if isinstance(run.method, GradientDescent) and run.method.schedule is not None:
        with refusals_of(path):
            expected = run.method.clock.times(0, len(steps))
        if not np.allclose(run.step_time, expected, rtol=SAME, atol=0.0):
            raise damaged(path, "its steps must have the times of the method's schedule, but they do not")
        return
    if steps.max() > size * (1 + SAME) or len(steps) > end / size * (1 + SAME) + 2 + len(run.restarts):
        raise damaged(path, f"its steps must have the size of the method, {size:g}, but they do not")


def _check_start(run: Trajectory, path: str | Path) -> None:
    """Products that are numbers; at t = 0 the initial weights, and the L - f* and the gradient recorded, but for what
    diagnose judges."""
    simulated, state = run.simulated, run.checkpoints.states[0]
    if not _same(state, flatten(simulated.network.weights)):
        raise damaged(path, "checkpoint_state must begin with the initial weights, but it does not")
    if not np.isfinite(run.products).all():
        raise damaged(path, "the products of its weights must be finite, but they are not")
    if not _same(run.excess[:1], run.steps.excess[:1]):
        raise damaged(path, "excess_loss and step_excess_loss must begin alike, but they do not")
    if isinstance(run.problem.loss, UnknownLoss):
        return
    outside = run.outside
    stored = run.simulated_motion.stored(np.zeros(1), run.checkpoints.whole(0)[None]) + outside.energy(np.zeros(1))
    fits = _same(run.steps.stored[:1], stored) if outside.known else run.steps.stored[0] >= (1 - SAME) * stored[0]
    if not fits or (run.motion.is_plain and run.steps.stored.any()):
        raise damaged(path, "stored must be the energy of weight decay and motion, but at the start it is another")
    W, gradients = simulated.gradients(unflatten(state, simulated.network.dims))
    around = simulated.excess(np.array([1 - SAME, 1.0, 1 + SAME])[:, None, None] * W)
    norm = float(np.hypot(joint_norm(gradients), outside.gradient(0.0)))
    if not (_near(around[1], run.excess[0], np.ptp(around)) and _near(norm, run.gradient_norm[0], SAME * norm)):
        raise damaged(
            path,
            f"at t = 0 it records L - f* = {run.excess[0]:.3g} and ||grad L|| = {run.gradient_norm[0]:.3g}, but its"
            f" weights and loss have {around[1]:.3g} and {norm:.3g}",
        )


def _near(computed: float, recorded: float, blurred: float) -> bool:
    """Whether two numbers are the same but for a factor OTHER, or what is blurred."""
    if not np.isfinite(recorded) or not np.isfinite(computed):
        return bool(computed == recorded) or bool(np.isnan(computed) and not np.isfinite(recorded))
    small, large = sorted((abs(computed), abs(float(recorded))))
    return abs(computed - recorded) <= blurred or (computed * recorded > 0 and large <= OTHER * small)


def _same(A: np.ndarray, B: np.ndarray) -> bool:
    """Whether two arrays are the same but for round-off; those whose norms overflow are not."""
    if A.shape != B.shape:
        return False
    missed, size = np.linalg.norm(A - B), max(np.linalg.norm(A), np.linalg.norm(B))
    return bool(np.isfinite(missed) and missed <= SAME * size)
