"""Trajectories as NetCDF: the dataset, what it takes to go on from it, the configuration as one JSON string."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from flowsim import losses
from flowsim.checks import as_choice, check_schema
from flowsim.errors import InputError
from flowsim.files import read_netcdf, write_netcdf
from flowsim.methods import describe, described
from flowsim.network import LinearNetwork, unflatten
from flowsim.problem import Problem
from flowsim.reduction import CompressedNetwork, FixedBases, regrown
from flowsim.trajectory.result import REMEDIES, Checkpoints, Reduction, Steps, Trajectory, UnknownLoss

SCHEMA = 1
"""Raised when a file can no longer be read as before."""
LARGEST_KEPT = 2**30
"""Initial weights of more bytes than this (1 GiB) are not kept in a file beside the compressed ones."""

STATS = ("steps", "rhs_evaluations", "rejected_steps", "jacobians", "seconds", "compile_seconds")
FOREIGN = (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError, RecursionError)
"""What a dataset that is no run raises while it is taken for one."""


def write(trajectory: Trajectory, path: str | Path) -> None:
    """Write the trajectory; beside, then renamed. Raises InputError when the place cannot be written."""
    kind, numbers, arrays = _describe_loss(trajectory.problem.loss)
    reduction, bases = _describe_reduction(trajectory.reduction, trajectory.problem.network)
    arrays |= bases
    network = trajectory.problem.network
    configuration = {
        "schema": SCHEMA,
        "dims": network.dims,
        "scale": network.scale,
        "origin": dict(network.origin),
        "method": describe(trajectory.method),
        "loss": kind,
        "loss_numbers": numbers,
        "status": trajectory.status,
        "detail": trajectory.detail,
        "stats": dict(trajectory.stats),
        "provenance": dict(trajectory.provenance),
        "reduction": reduction,
        "restarts": list(trajectory.restarts),
    }
    dataset = trajectory.dataset.assign(checkpoint_state=(("checkpoint_time", "weight"), trajectory.checkpoints.states))
    dataset = dataset.assign(
        {name: ((f"{name}_row", f"{name}_column"), value) for name, value in arrays.items()}
    ).assign_attrs(flowsim=json.dumps(configuration, allow_nan=False))
    write_netcdf(path, dataset)


def _describe_loss(loss: Any) -> tuple[str, dict[str, float], dict[str, np.ndarray]]:
    """(kind, numbers, arrays): the loss itself where it is one of flowsim's, not of a subclass, else "custom"."""
    if not losses.is_built_in(loss):
        return "custom", {}, {}
    parts = loss.parts()
    arrays = {f"loss_{name}": part for name, part in parts.items() if isinstance(part, np.ndarray)}
    numbers = {name: float(part) for name, part in parts.items() if not isinstance(part, np.ndarray)}
    return type(loss).__name__, numbers, arrays


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
    bases = compressed.bases
    description = {
        "reason": reduction.reason,
        "steps": steps,
        "counts": [bases.counts[level] for level in levels],
        "complete": compressed.exact or (bases.can_grow and bases.exhausted and levels[-1] == len(bases.counts) - 1),
        "imbalance_norms": network.imbalance_norms,
    }
    return description, arrays


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
        reduction["complete"],
    )
    compressed = CompressedNetwork(bases, reduction["steps"], scale, origin)
    if network is None:
        network = compressed = _drawn_again(compressed)
    return network, compressed


def _drawn_again(compressed: CompressedNetwork) -> CompressedNetwork:
    """The network in bases that can grow, where its seed is known."""
    try:
        return regrown(compressed, compressed, np.zeros((0, compressed.core.size)))[0]
    except (InputError, KeyError):
        return compressed


def _restore_loss(configuration: dict[str, Any], arrays: dict[str, np.ndarray]) -> Any:
    dims, kind = configuration["dims"], configuration["loss"]
    if kind == "custom":
        return UnknownLoss((dims[0], dims[-1]))
    prefix = "loss_"
    parts = {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}
    return losses.BUILT_IN[kind].from_parts({**parts, **configuration["loss_numbers"]})


def load(path: str | Path, loss: Any = None, network: LinearNetwork | None = None) -> Trajectory:
    """Read a trajectory that Trajectory.save wrote.

    `loss` restores a user's own loss, `network` initial weights that were too large for the file (1 GiB).

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
    dataset = read_netcdf(path)
    try:
        configuration = json.loads(dataset.attrs["flowsim"])
        check_schema(configuration["schema"], SCHEMA, f"File {path}")
        trajectory = _restore(dataset, configuration, loss, network)
        _check_whole(trajectory)
    except InputError:
        raise
    except FOREIGN as error:
        raise InputError(
            f"Argument `path` must be a run saved by flowsim, but {path} is damaged or foreign."
        ) from error
    return trajectory


def _restore(dataset: Any, configuration: dict[str, Any], loss: Any, network: Any) -> Trajectory:
    arrays = {str(name): variable.values for name, variable in dataset.variables.items()}
    network, compressed = _restore_network(configuration, arrays, network)
    found = _restore_loss(configuration, arrays) if loss is None else loss
    return Trajectory(
        problem=Problem(found, network),
        method=described(configuration["method"]),
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
        restarts=tuple(map(float, configuration.get("restarts", ()))),
    )


def _check_whole(run: Trajectory) -> None:
    """Refuse arrays that do not fit each other, or times out of order. Raises InputError or ValueError."""
    saved, steps, kept = len(run.time), len(run.steps.time), len(run.checkpoints.times)
    size = sum(W.size for W in run.simulated.network.weights)
    shapes = (
        (run.excess, (saved,)),
        (run.gradient_norm, (saved,)),
        (run.imbalance_change, (saved, run.problem.network.depth - 1)),
        (run.reduction.error, (saved,)),
        (run.steps.excess, (steps,)),
        (run.steps.dissipated, (steps,)),
        (run.checkpoints.states, (kept, size)),
    )
    if any(array.shape != shape or array.dtype != np.float64 for array, shape in shapes):
        raise ValueError("arrays that do not fit")
    if (
        not all(0.0 < a < b for a, b in pairwise((*run.restarts, np.inf)))
        or max(run.restarts, default=0.0) > run.time[-1]
    ):
        raise ValueError("restarts out of order")
    for times in (run.time, run.steps.time, run.checkpoints.times):
        if not len(times) or times[0] != 0.0 or not np.isfinite(times).all() or (np.diff(times) < 0).any():
            raise ValueError("times out of order")
    if not set(STATS) <= set(run.stats):
        raise ValueError("statistics are missing")
    as_choice(run.status, "status", REMEDIES)
