"""The laws of gradient flow, each judged on a trajectory by the level to expect."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from flowsim.dynamics import GradientFlow
from flowsim.laws.levels import LOCAL_ERRORS, MARGIN, Levels
from flowsim.laws.result import Law, worst
from flowsim.methods.steps import IntegrationFailure
from flowsim.network import joint_norm, unflatten
from flowsim.runs.tight import ROUND_OFF
from flowsim.runs.trajectory import Trajectory

UNREMARKABLE = 0.01
"""Errors below this share of the tolerance are never held against a method."""
ENERGY = "energy", "L(0) - L(t) = integral of ||grad L||_F^2"
MONOTONE = "monotone loss", "sqrt(L - f*) falls from step to step"
ALL_ENERGY = "energy", "E(0) - E(t) = integral of the power, E = L - f* and what is stored beside"
MONOTONE_ENERGY = "monotone energy", "sqrt(E) falls from step to step"
RATES = "rate", "sqrt(L - f*) <= sqrt of every certificate's bound"
RECORD = "record", "saved losses and gradients are those of the saved weights"
COMPRESSION = "compression", "estimated error <= rtol ||W(t) - W(0)||_F + atol"
NO_STEP = "no step was taken"


def record(case: Levels) -> Law:
    """The saved L - f* and ||grad L||_F against those of the checkpoints' weights."""
    run, kept = case.run, np.isin(case.run.time, case.times)
    W, gradients = case.problem.gradients(unflatten(case.states, case.problem.network.dims))
    norms = np.hypot(joint_norm(gradients), run.outside.gradient(case.times))
    first, steepest = run.excess[0] or 1.0, norms.max() or 1.0
    if kept.sum() != len(W):
        return worst(*RECORD, np.full(len(case.times), np.nan), ROUND_OFF, case.times)
    gaps = [
        np.abs(run.excess[kept] - case.problem.excess(W)) / first,
        np.abs(run.gradient_norm[kept] - norms) / steepest,
    ]
    return worst(*RECORD, np.maximum(*gaps), ROUND_OFF, case.times)


def motion(case: Levels) -> Law:
    """Between checkpoints: the greatest difference of any weight from a far tighter solve."""
    if not case.end:
        return Law(*flow(case.run), None, None, None, reason=NO_STEP)
    try:
        missed, own = case.missed, case.own
    except IntegrationFailure as failure:
        if np.isfinite(case.whole).all():
            return Law(*flow(case.run), None, None, None, reason=f"there is no far tighter solve: {failure}")
        missed = own = np.full(len(case.times) - 1, np.nan)
    size = np.abs(case.whole).max(axis=1)[1:]
    limit = LOCAL_ERRORS * np.maximum(1, case.steps) * case.tolerance[1:]
    expected = np.minimum(MARGIN * own, limit) + UNREMARKABLE * case.tolerance[1:]
    expected += ROUND_OFF * size + MARGIN * case.compression
    return worst(*flow(case.run), missed, expected, case.times[1:])


def imbalances(case: Levels) -> list[Law]:
    """||D_l(t) - D_l(0)||_F / max(1, ||D_l(0)||_F) at the checkpoints."""
    run = case.run
    norms = np.maximum(1.0, run.problem.network.imbalance_norms)
    drift = case.drift(case.states) / norms
    sizes = np.sqrt(np.array(largest_square_norms(case)))
    allowed = np.full(drift.shape, ROUND_OFF)
    allowed += 2 * MARGIN * np.interp(case.times, run.time, run.error_estimate)[:, None] * sizes / norms
    if not case.method.keeps_invariants(case.motion) and case.end:
        steps = np.append(0, np.cumsum(np.maximum(1, case.steps)))
        step = 2 * np.maximum.accumulate(case.tolerance)[:, None] * sizes / norms
        limit = LOCAL_ERRORS * steps[:, None] * step
        own = np.inf if case.again is None else case.again.imbalance_drift.max(0)
        allowed += np.minimum(MARGIN * own, limit) + UNREMARKABLE * step
    return [
        worst(*title, missed, expected, case.times)
        for title, missed, expected in zip(conserved(case.run), drift.T, allowed.T, strict=True)
    ]


def conserved(run: Trajectory) -> list[tuple[str, str]]:
    """The names and equations of the imbalance laws."""
    x = run.problem.weight_decay
    factor = f"exp(-{2 * x:g} t) " if x else ""
    layers = range(1, run.problem.network.depth)
    return [(f"imbalance D_{layer}", f"D_{layer}(t) = {factor}D_{layer}(0)") for layer in layers]


def flow(run: Trajectory) -> tuple[str, str]:
    """The name and equation of what the weights obey."""
    decay = f" - {run.problem.weight_decay:g} W_l" if run.problem.weight_decay else ""
    plain = f"dW_l/dt = -dL/dW_l{decay}"
    return ("flow", plain) if isinstance(run.dynamics, GradientFlow) else (run.dynamics.name, run.dynamics.line)


def energies(run: Trajectory) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """The energy law and that it falls, named; nothing where the dynamics knows of no energy."""
    if run.motion.is_plain:
        return [(ENERGY, MONOTONE)]
    return [(ALL_ENERGY, MONOTONE_ENERGY)] if run.motion.has_energy else []


def told(case: Levels) -> list[tuple[str, str]]:
    """The names and equations of the laws that the dynamics itself tells of."""
    return list(case.motion.residuals(0.0, case.whole[0]))


def of_the_dynamics(case: Levels) -> list[Law]:
    """The residuals that the dynamics itself tells of, at the checkpoints, against those of an undisturbed run."""
    if not case.end:
        return [Law(*title, None, None, None, reason=NO_STEP) for title in told(case)]
    size = np.linalg.norm(case.whole, axis=1)
    exact = case.method.kind.inertial  # keeps M_l to round-off, whatever its steps
    floor = (0.0 if exact else UNREMARKABLE * case.tolerance.max()) * size + ROUND_OFF * size**2
    again = case.again
    own = None if again is None else [again.checkpoints.whole(k) for k in range(len(again.checkpoints.times))]
    laws = []
    for title in told(case):
        missed = _residuals(case, title, case.times, case.whole)
        if again is None or own is None:
            laws.append(Law(*title, float(missed.max()), None, None, reason="the run cannot be repeated"))
            continue
        allowed = MARGIN * _residuals(case, title, again.checkpoints.times, own).max()
        laws.append(worst(*title, missed, floor + allowed, case.times))
    return laws


def _residuals(case: Levels, title: tuple[str, str], times: np.ndarray, states: Iterable[np.ndarray]) -> np.ndarray:
    return np.array([case.motion.residuals(float(t), y)[title] for t, y in zip(times, states, strict=True)])


def largest_square_norms(case: Levels) -> list[float]:
    """max(||W_l||^2, ||W_{l+1}||^2), spectral, at the first checkpoint, l = 1 .. L-1."""
    weights = unflatten(case.states[0], case.problem.network.dims)
    norms = [float(np.linalg.norm(W, 2)) ** 2 for W in weights]
    return [max(pair) for pair in pairwise(norms)]


def energy(case: Levels) -> Law:
    """|E(0) - E(t) - what was dissipated| / E(0) at all steps; E = L - f* of gradient flow."""
    run = case.run
    missed = np.abs(run.energy_residual)
    slope = (run.gradient_norm.max() + case.speed) / (run.steps.energy[0] or 1.0)
    step = slope * case.tolerance.max()
    limit = LOCAL_ERRORS * step * np.arange(1, len(missed) + 1)
    own = np.inf if case.again is None else np.abs(case.again.energy_residual).max()
    expected = ROUND_OFF + UNREMARKABLE * step + np.minimum(MARGIN * own, limit)
    return worst(*energies(run)[0][0], missed, expected, run.step_time)


def monotone(case: Levels) -> Law:
    """The greatest rise of sqrt(E) in a step, against what the method's error of a step can make of it; E = L - f* of
    gradient flow and descent."""
    descends = case.descends and not case.problem.weight_decay
    title = MONOTONE if descends else energies(case.run)[0][1]
    roots = np.sqrt(np.maximum(case.run.steps.excess if descends else case.run.steps.energy, 0.0))
    rises = np.append(0.0, np.maximum(np.diff(roots), 0.0))
    law = worst(*title, rises, case.noise + ROUND_OFF * roots[0], case.run.step_time)
    return _judged(case, law, roots[0])


def rates(case: Levels) -> list[Law]:
    """By how much sqrt(L - f*) exceeds the square root of a certificate's bound, against the method's error."""
    laws, run = [], case.run
    for certificate in run.certificates:
        if certificate.applies and certificate.scope == "trajectory" and certificate.rate:
            bound = np.sqrt(certificate.bound(run.step_time)) * (1 + 1e-9)
            allowed = case.noise + 1e-7 * ROUND_OFF**0.5 * bound[0]
            roots = np.sqrt(np.maximum(run.steps.excess, 0.0))
            equation = f"sqrt(L - f*) <= sqrt of {certificate.name}'s bound, rate {certificate.rate:.4g}"
            above = np.maximum(roots - bound, 0.0)
            law = worst(f"rate {certificate.name}", equation, above, allowed, run.step_time)
            laws.append(_judged(case, law, roots[0]))
    return laws


def _judged(case: Levels, law: Law, size: float) -> Law:
    """The law, not checked where the tolerance allows errors of all that it compares, and none was seen."""
    noise = case.noise
    if not law.holds or noise < size or not noise:
        return law
    reason = f"at this tolerance errors of {noise:.1e} in sqrt(L - f*) are allowed, and it starts at {size:.1e}"
    return Law(law.name, law.equation, law.residual, law.expected, None, reason=f"{reason}; lower rtol")


def compression(run: Trajectory) -> Law:
    """The estimated error of the weights at the checkpoints against what the compression promised: rtol and atol are
    the method's, but 1e-13 and 1e-15 for a method that keeps the invariants, 1e-8 and 1e-10 for gradient descent.

    The promise is kept at the ends of steps: between, the tolerance of the step's neighbours counts.
    """
    if run.reduction.network is None and not run.error_estimate.any():
        return Law(*COMPRESSION, None, None, None, reason="the full weights were integrated")
    rtol, atol = run.method.compression_tolerances
    times, states = run.checkpoints.times, run.checkpoints.states
    allowed = rtol * np.linalg.norm(states - states[0], axis=1) + atol
    step = np.searchsorted(run.step_time, times)
    ends = np.searchsorted(times, run.step_time[np.minimum(step, len(run.step_time) - 1)])
    allowed = np.maximum(allowed, allowed[np.minimum(ends, len(times) - 1)])
    return worst(*COMPRESSION, np.interp(times, run.time, run.error_estimate), allowed, times)
