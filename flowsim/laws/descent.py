"""The laws of gradient descent: its recurrence, and the exact drift of the imbalance."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from flowsim.laws.laws import NO_STEP, largest_square_norms
from flowsim.laws.levels import MARGIN, Levels
from flowsim.laws.result import Law, worst
from flowsim.methods import GradientDescent
from flowsim.methods.descent_steps import Descent
from flowsim.methods.steps import IntegrationFailure
from flowsim.network import unflatten
from flowsim.runs.tight import ROUND_OFF
from flowsim.runs.trajectory import Trajectory

PROBES = 4
RECURRENCE = "recurrence", "W_l <- W_l - step_size dL/dW_l"


def recurrence(case: Levels) -> Law:
    """Between checkpoints: the greatest difference of any weight from gradient descent's own steps."""
    if not case.end:
        return Law(*RECURRENCE, None, None, None, reason=NO_STEP)
    kept = [case.run.checkpoints.whole(place) for place in range(len(case.times))]
    intervals = pairwise(zip(case.times, kept, strict=True))
    missed = np.array([np.abs(_end(case, float(t), y, float(u)) - z).max() for (t, y), (u, z) in intervals])
    size = np.abs(case.states).max(axis=1)[1:]
    expected = ROUND_OFF * size * np.maximum(1, case.steps) + MARGIN * case.compression
    return worst(*RECURRENCE, missed, expected, case.times[1:])


def _end(case: Levels, t: float, state: np.ndarray, t1: float) -> np.ndarray:
    """The state at t1 of gradient descent from (t, state); NaN where it fails."""
    try:
        integrator = case.method.start(case.problem, t, state, t1)
        while integrator.t < integrator.t1:
            segment = integrator.advance()
            case.deadline.look()
        return segment.evaluate(segment.times[-1:])[0]
    except IntegrationFailure:
        return np.full(1, np.nan)
    finally:
        case.advanced(1)


def drift_laws(case: Levels) -> list[Law]:
    """D_l at a checkpoint against what its exact law makes of the one before, on a few vectors."""
    titles = drifts(case.run)
    if not case.end:
        return [Law(*title, None, None, None, reason=NO_STEP) for title in titles]
    dims = case.problem.network.dims
    rng = np.random.default_rng(0)
    probes = [rng.choice((-1.0, 1.0), (h, PROBES)) for h in dims[1:-1]]
    intervals = pairwise(zip(case.times, case.states, strict=True))
    missed = np.array([_missed(case, probes, float(t), float(u), y, z) for (t, y), (u, z) in intervals])
    steps, laws = np.maximum(1, case.steps), []
    for title, h, size, found in zip(titles, dims[1:-1], largest_square_norms(case), missed.T, strict=True):
        size *= np.sqrt(PROBES * h)
        expected = ROUND_OFF * size * steps + 2 * MARGIN * case.compression * np.sqrt(size)
        laws.append(worst(*title, found, expected, case.times[1:]))
    return laws


def drifts(run: Trajectory) -> list[tuple[str, str]]:
    """The names and equations of the drift laws."""
    layers = range(1, run.problem.network.depth)
    x = run.problem.weight_decay
    kept = f"(1 - {x:g} step_size)^2 " if x else ""
    return [
        (f"drift law D_{layer}", f"D_{layer}(k+1) = {kept}D_{layer}(k) + step_size^2 (G^T G - G' G'^T), G of step k")
        for layer in layers
    ]


def _missed(
    case: Levels, probes: Sequence[np.ndarray], t: float, t1: float, before: np.ndarray, after: np.ndarray
) -> list[float]:
    """For each D_l: || (D_l after - what its law makes of D_l before, over the steps between) V_l ||_F."""
    method, x = case.method, case.problem.weight_decay
    assert isinstance(method, GradientDescent)
    descent = Descent(case.problem, method, t, before, t1)
    weights = unflatten(before, case.problem.network.dims)
    law = _imbalances_on(weights, probes)
    for k, eta in enumerate(method.clock.sizes(descent.first, descent.steps).tolist(), descent.first):
        _, steps = descent.realised(k, weights)
        G = [step - x * W for step, W in zip(steps, weights, strict=True)]
        for layer, V in enumerate(probes):
            own = G[layer].T @ (G[layer] @ V) - G[layer + 1] @ (G[layer + 1].T @ V)
            law[layer] = (1 - eta * x) ** 2 * law[layer] + eta**2 * own
        weights = [W - eta * step for W, step in zip(weights, steps, strict=True)]
        case.deadline.look()
    case.advanced(1)
    now = _imbalances_on(unflatten(after, case.problem.network.dims), probes)
    return [float(np.linalg.norm(a - b)) for a, b in zip(now, law, strict=True)]


def _imbalances_on(weights: Sequence[np.ndarray], probes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """D_l V_l without h x h matrices."""
    pairs = zip(weights, weights[1:], probes, strict=False)
    return [W.T @ (W @ V) - U @ (U.T @ V) for W, U, V in pairs]
