"""A trajectory to NetCDF: the dataset, what it takes to go on from it, the configuration as one JSON string."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsim import losses
from flowsim.errors import InputError
from flowsim.files import write_netcdf
from flowsim.network import LinearNetwork, Network
from flowsim.runs.contents import SCHEMA
from flowsim.runs.dataset import dataset_of
from flowsim.runs.record import Reduction
from flowsim.values import Json

if TYPE_CHECKING:
    from flowsim.runs.trajectory import Trajectory

LARGEST_KEPT = 2**30
"""Initial weights of more bytes than this (1 GiB) are not kept in a file beside the compressed ones."""


def write(trajectory: Trajectory, path: str | Path) -> None:
    """Write the trajectory; beside, then renamed. Raises InputError when the place cannot be written."""
    trajectory.method.check_storable()
    kind, numbers, arrays = _describe_loss(trajectory.problem.loss)
    reduction, bases = _describe_reduction(trajectory.reduction, trajectory.problem.network)
    arrays |= bases | _rows(trajectory)
    network = trajectory.problem.network
    configuration = {
        "schema": SCHEMA,
        "dims": network.dims,
        "scale": network.scale,
        "origin": dict(network.origin),
        "method": trajectory.method.describe(),
        "dynamics": trajectory.dynamics.describe(),
        "weight_decay": trajectory.problem.weight_decay,
        "loss": kind,
        "loss_numbers": numbers,
        "status": trajectory.status,
        "detail": trajectory.detail,
        "stats": dict(trajectory.stats),
        "provenance": dict(trajectory.provenance),
        "reduction": reduction,
        "restarts": list(trajectory.restarts),
        "before": [method.describe() for method in trajectory.before],
    }
    states = ("checkpoint_time", "weight"), trajectory.checkpoints.states
    dataset = dataset_of(trajectory).assign(checkpoint_state=states)
    if len(trajectory.checkpoints.beside):
        dataset = dataset.assign(checkpoint_momentum=(("checkpoint_time", "weight"), trajectory.checkpoints.beside))
    dataset = dataset.assign(
        {name: ((f"{name}_row", f"{name}_column"), value) for name, value in arrays.items()}
    ).assign_attrs(flowsim=_as_json(configuration))
    write_netcdf(path, dataset)


def _as_json(configuration: Json) -> str:
    """One JSON text; NumPy's numbers as plain ones. Raises InputError for what JSON does not have."""
    try:
        return json.dumps(configuration, allow_nan=False, default=lambda value: value.tolist())
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(
            "Arguments `origin` of the network and `provenance` must hold what JSON has, finite numbers, texts, lists"
            f" and mappings, to be kept in a file, but {error}."
        ) from error


def _describe_loss(loss: Any) -> tuple[str, dict[str, float], dict[str, np.ndarray]]:
    """(kind, numbers, arrays): the loss itself where files hold its class (losses.STORED), else "custom"."""
    if losses.STORED.get(type(loss).__name__) is not type(loss):
        return "custom", {}, {}
    parts = loss.parts()
    arrays = {f"loss_{name}": part for name, part in parts.items() if isinstance(part, np.ndarray)}
    numbers = {name: float(part) for name, part in parts.items() if not isinstance(part, np.ndarray)}
    return type(loss).__name__, numbers, arrays


def _rows(trajectory: Trajectory) -> dict[str, np.ndarray]:
    """The data that batches or noise draw from, unless they are too large."""
    loss = trajectory.problem.loss
    rows = loss.rows if isinstance(loss, losses.LeastSquares) and trajectory.method.stochastic else None
    if rows is None or rows.nbytes > LARGEST_KEPT:
        return {}
    found = dict(zip(("rows_X", "rows_Y"), rows.centred(slice(None)), strict=True))
    return found if rows.roots is None else {**found, "rows_weights": rows.roots[:, None] ** 2}


def _describe_reduction(reduction: Reduction, network: Network) -> tuple[Json, dict[str, np.ndarray]]:
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
