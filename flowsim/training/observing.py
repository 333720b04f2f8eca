"""A run of flowsim from weights that something else has trained."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from flowsim.checks import as_number
from flowsim.compression.control import imbalance_changes
from flowsim.dynamics import Motion
from flowsim.errors import ConversionNotice, InputError
from flowsim.files import read_weights
from flowsim.losses import Loss
from flowsim.methods import Observed
from flowsim.network import LinearNetwork, Network, flatten, joint_norm, unflatten
from flowsim.problem import Problem
from flowsim.runs.provenance import provenance_of
from flowsim.runs.record import Checkpoints, Reduction, Steps
from flowsim.runs.trajectory import Trajectory
from flowsim.values import Json

Weights = Network | Sequence[ArrayLike] | str | Path
"""A network, its matrices W_1, ..., W_L, or the file of one (see read_weights)."""
NUMBER = re.compile(r"\d+")
HOW = "the weights were recorded elsewhere"


def observe(
    weights: Sequence[Weights] | str | Path,
    loss: Loss,
    *,
    times: ArrayLike | None = None,
    steps: ArrayLike | None = None,
    step_size: float | None = None,
    loss_scale: float = 1.0,
    weight_decay: float = 0.0,
    layers: Sequence[str] | None = None,
) -> Trajectory:
    """A Trajectory of weights that were trained elsewhere: drift, certificates, tails, report and plots as for any run.

    weights: one record after another, the first is the start: networks, lists of matrices W_l (h_{l-1} x h_l), or files
    of weights (.npz, .safetensors, .pt, .pth, .ckpt, .bin; layers: as for read_weights), or the folder of such files,
    in the order of the last numbers in their names. loss: what was trained, f of W = scale W_1 ... W_L.

    times: those of the records, in the flow's unit; or steps, the numbers of training steps at the records (of files:
    the numbers in their names), and step_size, the learning rate: t = step_size loss_scale steps. loss_scale: the
    training minimised loss_scale times `loss`. Of N samples and m outputs a mean of squares, as torch.nn.MSELoss takes,
    is 2 / (N m) times LeastSquares(X, Y), which is half the sum of squares. The first record is t = 0. weight_decay:
    what the training had, as torch.optim.SGD takes it: it minimised loss_scale loss + weight_decay/2 sum_l ||W_l||_F^2,
    and the problem's decay is weight_decay / loss_scale.

    Without momentum and with all data at every step training is gradient descent, and near the flow where the step size
    is small: fs.simulate(run.problem, t1=run.time[-1], save_points=run.time) is the flow with the same start. What
    trained the weights need not obey any law, so `diagnose` tells the residuals of the flow's and judges none, and the
    certificates are those of the flow, from the start and from any record on (certify_tail).

    Raises InputError for fewer than two records, records of different shapes or not in order, weights that are not
    finite, and files as read_weights does: biases among them.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> loss, W = fs.SquaredLoss([[2.0]]), [np.array([[1.0]]), np.array([[0.5]])]
    >>> records = [list(W)]
    >>> for _ in range(100):  # a training loop
    ...     E = W[0] @ W[1] - 2.0
    ...     W = [W[0] - 0.01 * E @ W[1].T, W[1] - 0.01 * W[0].T @ E]
    ...     records.append(list(W))
    >>> run = fs.observe(records, loss, steps=range(101), step_size=0.01)
    >>> flow = fs.simulate(run.problem, t1=1.0, save_points=run.time)
    >>> bool(abs(run.loss - flow.loss).max() < 0.005), bool(0 < run.imbalance_drift.max() < 0.01)
    (True, True)
    """
    paths = _files(weights)
    given: Sequence[Weights] = paths if paths is not None else weights  # type: ignore[assignment]
    if len(given) < 2:
        raise InputError(f"Argument `weights` must hold two records at least, but it holds {len(given)}.")
    networks = [_network(record, place, layers) for place, record in enumerate(given)]
    _check_alike(networks)
    when = _times(len(networks), paths, times, steps, step_size, loss_scale)
    decay = as_number(weight_decay, "weight_decay", least=0.0)
    problem = Problem(loss, networks[0], weight_decay=decay / loss_scale)
    settings: Json = {"step_size": step_size, "loss_scale": loss_scale, "weight_decay": weight_decay}
    settings["files"] = [str(path) for path in paths or ()]
    return _trajectory(problem, when, np.array([flatten(network.weights) for network in networks]), settings)


def _files(weights: object) -> list[Path] | None:
    """The files, in order; None where the weights are not in files."""
    if isinstance(weights, (str, Path)):
        folder = Path(weights)
        if not folder.is_dir():
            raise InputError(f"Argument `weights` must be a folder of files, or several, but it is {folder}.")
        found = [path for path in folder.iterdir() if not path.name.startswith(".")]
        return sorted(found, key=lambda path: (step_of(path) or 0, path.name))
    if not isinstance(weights, Sequence):
        raise InputError(f"Argument `weights` must be a sequence of records, but it is {type(weights).__name__}.")
    named = [isinstance(record, (str, Path)) for record in weights]
    return [Path(record) for record in weights] if named and all(named) else None


def step_of(path: Path) -> int | None:
    """The last number in the name of a file; None where there is none."""
    numbers = NUMBER.findall(path.stem)
    return int(numbers[-1]) if numbers else None


def _network(record: Weights, place: int, layers: Sequence[str] | None) -> LinearNetwork:
    if isinstance(record, (str, Path)):
        with warnings.catch_warnings():
            if place:  # what was said of the first file holds for all
                warnings.simplefilter("ignore", ConversionNotice)
            record = read_weights(record, layers=layers)
    elif not hasattr(record, "dims"):
        try:
            record = LinearNetwork(tuple(np.array(W, dtype=float) for W in record))
        except (InputError, TypeError, ValueError) as error:
            raise InputError(f"Argument `weights`, record {place}: {error}") from error
    if not isinstance(record, LinearNetwork) or not record.is_dense:
        raise InputError(f"Argument `weights`, record {place}: the full weights must be there, as arrays.")
    return record


def _check_alike(networks: Sequence[LinearNetwork]) -> None:
    first = networks[0]
    for place, network in enumerate(networks):
        if network.dims != first.dims or network.scale != first.scale:
            raise InputError(
                f"Argument `weights`, record {place}: dims {network.dims}, scale {network.scale:g} must be those of the"
                f" first, {first.dims} and {first.scale:g}."
            )


def _times(
    count: int,
    paths: Sequence[Path] | None,
    times: ArrayLike | None,
    steps: ArrayLike | None,
    step_size: float | None,
    loss_scale: float,
) -> np.ndarray:
    """When the records were made, from 0 on. Raises InputError."""
    as_number(loss_scale, "loss_scale", above=0.0)
    if (times is None) == (step_size is None):
        raise InputError("Arguments `times` and `step_size`: one of them must be given, and not both.")
    if times is None:
        assert step_size is not None
        numbers = steps if steps is not None else [step_of(path) for path in paths or ()]
        found, name = np.array(numbers, dtype=float), "steps"
        found = found * as_number(step_size, "step_size", above=0.0) * loss_scale
    else:
        found, name = np.array(times, dtype=float), "times"
    if found.shape != (count,):
        raise InputError(
            f"Argument `{name}` must hold a number for each of the {count} records, but its shape is {found.shape}."
        )
    if not np.isfinite(found).all():
        raise InputError(f"Argument `{name}` must hold finite numbers; files need a number in their names.")
    for place, (before, after) in enumerate(pairwise(found), start=1):
        if not after > before:
            raise InputError(
                f"Argument `weights`, record {place}: its time {after:g} must be after that of the one before it,"
                f" {before:g}; sort the records."
            )
    return found - found[0]


def _trajectory(problem: Problem, times: np.ndarray, states: np.ndarray, settings: Mapping[str, object]) -> Trajectory:
    """The record of states (C, size) at times (C)."""
    for place, state in enumerate(states):
        if not np.isfinite(state).all():
            raise InputError(f"Argument `weights`, record {place}: it must be finite, but it is not.")
    with np.errstate(over="ignore", invalid="ignore"):
        products, sizes = [], []
        for state in states:  # one after another: gradients are as large as the weights
            W, gradients = problem.gradients(unflatten(state, problem.network.dims))
            products.append(W)
            sizes.append(float(joint_norm(gradients)))
        excess, norms = problem.excess(np.array(products)), np.array(sizes)
    if not (np.isfinite(excess).all() and np.isfinite(norms).all()):
        raise InputError("Argument `weights`: the loss or its gradient is not finite at a record; scale them down.")
    motion = Motion(problem)
    spent = 0.5 * np.diff(times) * (norms[1:] ** 2 + norms[:-1] ** 2)
    return Trajectory(
        problem=problem,
        method=Observed(),
        status="completed",
        detail="",
        time=times,
        excess=excess,
        gradient_norm=norms,
        imbalance_change=imbalance_changes(problem, None, states, motion.remaining(times)[0]),
        steps=Steps(times, excess, np.append(0.0, np.cumsum(spent)), motion.stored(times, states)),
        checkpoints=Checkpoints(times, states),
        reduction=Reduction(None, np.zeros(len(times)), HOW),
        stats={
            "steps": len(times) - 1,
            "rhs_evaluations": len(times),
            "rejected_steps": None,
            "jacobians": None,
            "seconds": 0.0,
            "compile_seconds": 0.0,
        },
        provenance=provenance_of(Observed(), **settings),
    )
