"""What a run that has ended says of itself, in sentences of Trajectory.detail: "" where there is nothing to say."""

from __future__ import annotations

import numpy as np

from flowsim.dynamics import Motion
from flowsim.methods import Method
from flowsim.methods.steps import DENSE_JACOBIAN_LIMIT, greatest_eigenvalue
from flowsim.runs.derived import ROUND_OFF
from flowsim.runs.trajectory import Trajectory

UNRESOLVED = 0.1
"""A tolerance above this share of the weights' whole change is remarked on."""
RISE = 1e-3
"""A loss that rose this much, over its excess at the start, is remarked on."""
EXPLAINED = 100.0
"""An error of the weights that is certain to be more than this many tolerances is remarked on."""
LOST = 0.1
"""So is an imbalance that drifted by this share of ||W||^2, whatever the tolerance."""
SURE = 0.5
"""Of an estimate of the drift so much is taken for proved: twice the truth is five of its standard errors away."""
STIFF = 1.0
"""Steps of an explicit method with h |lambda|_max above this, and LONG / |lambda|_max still to go, are taken to be
bound by stability, others by accuracy."""
LONG = 1e3
FEW = 300
"""Up to so many weights implicit methods are named first."""


def remarks(run: Trajectory) -> str:
    """All of them."""
    found = (unresolved(run), floor(run), rise(run), drift(run), path(run))
    return " ".join(part for part in found if part)


def tolerance(run: Trajectory) -> float | None:
    """What a step may err by at the largest of the checkpoints; None without error control."""
    return run.method.step_tolerance(_size(run), run.checkpoints.states.shape[1])


def _size(run: Trajectory) -> float:
    states = run.checkpoints.states
    return float(np.einsum("ki,ki->k", states, states).max() ** 0.5)


def unresolved(run: Trajectory) -> str:
    """rtol, which is relative to the weights, says little of their change: very wide networks."""
    if run.method.tolerances is None:
        return ""
    rtol, _ = run.method.tolerances
    change, size = run.weights_change, float(np.linalg.norm(run.checkpoints.states[-1]))
    if not 0 < change < rtol * size / UNRESOLVED:
        return ""
    share = f"{change / size:.1e}"
    return f"The weights changed by {share} of their norm, which rtol {rtol:g} hardly resolves: lower rtol."


def rise(run: Trajectory) -> str:
    """A loss that did not fall: from a stationary point, or by steps that are too large."""
    if run.gradient_norm[0] == 0 and run.excess[0] > 0:
        return "The gradient is 0 at the start, a stationary point: the weights do not move."
    if 0 < run.gradient_norm[0] < np.finfo(float).tiny ** 0.5 and run.excess[0] == 0:
        return "L - f* is 0 in float64 at the start, but the gradient is not: its square underflows; scale the problem."
    if run.motion.structure != "gradient":  # momentum climbs, and swings; of others it is not known
        return ""
    if run.method.kind.discrete:  # descent may rise and fall again, as its own law has it
        low, high = run.excess[0], run.excess[-1] if run.status == "completed" else run.excess[0]
    else:
        energy = run.steps.energy
        least = np.minimum.accumulate(energy)
        worst = int(np.argmax(energy - least))
        low, high = least[worst], energy[worst]
    if high - low > RISE * abs(run.excess[0]):
        above = run.loss[0] - run.excess[0]
        return f"L rose from {low + above:.4g} to {high + above:.4g}, against the flow: lower the step size or rtol."
    return ""


def floor(run: Trajectory) -> str:
    """A run that went on below what its tolerance resolves."""
    if run.resolved_until is None:
        return ""
    level = run.excess[-1] / run.excess[0]
    lower = "" if run.method.kind.discrete else ", a smaller tolerance takes it lower"
    return (
        f"From t = {run.resolved_until:.4g} on L - f* is no longer resolved: errors of the steps weigh in it,"
        f" {level:.1e} of its start at the end. stop_loss ends a run before{lower}."
    )


def drift(run: Trajectory) -> str:
    """An imbalance that drifted farther than EXPLAINED tolerances of error can take it.

    ||D_l(t) - D_l(0)||_F <= 8^(1/2) ||W||_F ||dW||_F for an error dW of the weights, to first order: the drift is
    a proof of error.
    """
    if run.method.kind.discrete or not run.dynamics.keeps_imbalance:
        return ""
    size, seen, allowed = _size(run), float(run.imbalance_change.max()), tolerance(run)
    seen *= SURE if run.drift_is_estimated else 1.0
    error = seen / (8**0.5 * size) if size else 0.0
    if seen <= LOST * size**2 and (allowed is None or error <= EXPLAINED * allowed):
        return ""
    promised = "" if allowed is None else f", {error / allowed:.1e} times the tolerance"
    return (
        f"The imbalance, which the flow conserves, drifted by {seen:.1e}: the weights are wrong by {error:.1e} at least"
        f"{promised}. Do not trust this run; lower rtol or step_size, or take another method."
    )


def path(run: Trajectory) -> str:
    """Weights farther away than the flow can be: ||W(t) - W(0)||_F^2 <= t (L(0) - L(t)), by Cauchy and Schwarz."""
    if run.method.kind.discrete or len(run.checkpoints.states) < 2 or run.motion.structure != "gradient":
        return ""
    energy = run.steps.energy
    fallen = max(float(energy[0] - energy[-1]), ROUND_OFF * abs(float(run.loss[0])))
    reach = float(run.time[-1]) ** 0.5 * fallen**0.5 + EXPLAINED * (tolerance(run) or LOST * _size(run))
    if run.weights_change <= 2 * reach:
        return ""
    return (
        f"The weights moved by {run.weights_change:.1e}, but the flow can have moved them by {reach:.1e} at most. Do"
        " not trust this run; lower rtol or step_size, or take another method."
    )


def stiffness(motion: Motion, method: Method, t: float, state: np.ndarray, h: float, left: float) -> str:
    """What to take where stability, not accuracy, bounds the steps h of an explicit method at (t, state), the weights,
    with time `left` to go."""
    kind = method.kind
    if kind.stabilised or kind.discrete or kind.inertial or not kind.explicit or motion.structure == "general":
        return ""
    if method.tolerances is None or not np.isfinite(state).all():
        return ""
    with np.errstate(all="ignore"):
        radius = greatest_eigenvalue(motion, t, state)
    if not h * radius > STIFF or not left * radius > LONG:
        return ""
    implicit, flow = "radau, bdf, kvaerno5 or gauss-legendre", motion.structure == "gradient"
    if state.size > DENSE_JACOBIAN_LIMIT:
        better = "krylov-bdf, rkc or gauss-legendre" if flow else "gauss-legendre"
    elif flow:
        better = f"krylov-bdf, {implicit}, or rkc" if state.size <= FEW else f"krylov-bdf, rkc, or {implicit}"
    else:
        better = implicit
    return (
        f"The problem is stiff: stability bounds the steps of {method.name}, h |lambda|_max = {h * radius:.2g}; made"
        f" for that: {better}."
    )
