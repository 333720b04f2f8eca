"""What the figures of a run show, as numbers: the same for matplotlib and for the report's page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np

from flowsim.losses import UnknownLoss, minimiser_of, minimum_of
from flowsim.rates import Certificate
from flowsim.runs.trajectory import Trajectory

MOST_POINTS = 2000
"""A longer curve is thinned to about this many points: the least and the greatest of as many stretches are kept."""
MOST_CURVES = 6
"""More layers than this are drawn as the greatest and the least."""
MOST_BOUNDS = 3
WIDE = 10.0
"""A rate that varies by more than this factor is drawn on a logarithmic axis."""
LOSS_NAMES = {
    (True, True): (r"$(L(t) - f^*)\,/\,(L(0) - f^*)$", "(L(t) − f*) / (L(0) − f*)"),
    (True, False): (r"$L(t) - f^*$", "L(t) − f*"),
    (False, True): (r"$L(t)\,/\,L(0)$", "L(t) / L(0)"),
    (False, False): (r"$L(t)$", "L(t)"),
}
"""(whether f* is known, whether the values are relative) -> the label and the same in plain text."""
MOST_MODES = 32
"""The greatest singular values, this many of them."""


@dataclass(frozen=True)
class Curve:
    """One curve: its name, its values at the chart's times, NaN where there are none, and what it stands for."""

    name: str
    values: np.ndarray
    role: Literal["run", "bound", "target", "unresolved"] = "run"


@dataclass(frozen=True)
class Chart:
    """Curves over the same times. label: of the vertical axis, for matplotlib; words: the same as plain text.

    logarithmic: whether a logarithmic axis fits; thinned_from: how many points there were, None where all are kept;
    missing: why there is nothing to show, None where there is something; round_off: whether it may be round-off, of
    which an axis of less than a decade would make a landscape; from_zero: whether a linear axis starts at 0.
    """

    key: str
    title: str
    label: str
    words: str
    time: np.ndarray
    curves: tuple[Curve, ...]
    logarithmic: bool
    thinned_from: int | None = None
    missing: str | None = None
    round_off: bool = False
    from_zero: bool = False


def bounds_of(certificates: Certificate | Iterable[Certificate] | None) -> list[Certificate]:
    """Those that bound the loss along the whole trajectory: the greatest rates first, equal ones once, at most three.

    A single certificate that has a rate is kept as it is.
    """
    if certificates is None:
        return []
    if isinstance(certificates, Certificate):
        return [] if certificates.rate is None else [certificates]
    valid = [c for c in certificates if c.applies and c.scope == "trajectory" and c.rate]
    chosen: list[Certificate] = []
    for entry in sorted(valid, key=lambda c: -(c.rate or 0.0)):
        if not any(np.isclose(entry.rate or 0.0, c.rate or 0.0, rtol=1e-9) for c in chosen):
            chosen.append(entry)
    return chosen[:MOST_BOUNDS]


def loss_curve(trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """(times, L - f*) at the saved times and the ends of all steps; L itself where f* is unknown."""
    times = np.concatenate([trajectory.step_time, trajectory.time])
    times, places = np.unique(times, return_index=True)
    return times, np.concatenate([trajectory.steps.excess, trajectory.excess])[places]


def instantaneous_rate(trajectory: Trajectory) -> tuple[np.ndarray, np.ndarray]:
    """(times, -d/dt log(L - f*)); NaN where L - f* is not positive.

    For a flow it is ||grad L||_F^2 / (L - f*) at the saved times; for gradient descent the mean over a step, at its
    middle (over several steps of a long run).
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if trajectory.motion.is_plain and not trajectory.method.kind.discrete:
            rate = trajectory.gradient_norm**2 / trajectory.excess
            return trajectory.time, np.where(trajectory.excess > 0, rate, np.nan)
        time, excess = trajectory.step_time, trajectory.steps.excess
        places = np.unique(np.linspace(0, len(time) - 1, min(len(time), MOST_POINTS)).astype(int))
        logs = np.log(np.where(excess[places] > 0, excess[places], np.nan))
        time = time[places]
        return 0.5 * (time[1:] + time[:-1]), -np.diff(logs) / np.diff(time)


def thinned(values: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Ascending places of about `most` of the values (S) or rows (S, K): the ends, and the extremes between them.

    Of every stretch the place of the least and of the greatest value (a row's greatest) is kept.
    """
    heights = values if values.ndim == 1 else np.nanmax(np.nan_to_num(values, nan=-np.inf), axis=1, initial=-np.inf)
    if len(heights) <= most:
        return np.arange(len(heights))
    low, high = np.nan_to_num(heights, nan=np.inf), np.nan_to_num(heights, nan=-np.inf)
    edges = np.linspace(0, len(heights), most // 2).astype(int)
    kept = [0, len(heights) - 1]
    for start, stop in pairwise(edges):
        kept += [start + int(np.argmin(low[start:stop])), start + int(np.argmax(high[start:stop]))]
    return np.unique(kept)


def loss_chart(trajectory: Trajectory, bounds: Sequence[Certificate] = ()) -> Chart:
    """(L - f*) / (L(0) - f*), with the bounds of certificates; L(t) where it is neither positive nor has a known f*.

    What is no longer resolved is a curve of its own.
    """
    time, excess = loss_curve(trajectory)
    keep = thinned(excess)
    initial, known = float(trajectory.steps.excess[0]), _minimum_known(trajectory)
    logarithmic = initial > 0 and not (excess < 0).any()
    unit = initial if logarithmic else 1.0
    names = LOSS_NAMES[known, logarithmic]
    end, values = _end(trajectory), excess[keep] / unit
    shown = time[keep] <= end
    curves = [Curve("simulated", np.where(shown, values, np.nan))]
    curves += [
        Curve(f"bound of {_named(c, trajectory)}", np.where(shown, c.bound(time[keep]) / unit, np.nan), "bound")
        for c in bounds
    ]
    if not shown.all():
        curves.append(Curve("no longer resolved", np.where(time[keep] >= end, values, np.nan), "unresolved"))
    return Chart("loss", "Loss", *names, time[keep], tuple(curves), logarithmic, _before(keep, time))


def rate_chart(trajectory: Trajectory, bounds: Sequence[Certificate] = ()) -> Chart:
    """-d/dt log(L - f*) seen, and that of the certificates' bounds."""
    time, rate = instantaneous_rate(trajectory)
    rate = np.where(time <= _end(trajectory), rate, np.nan)
    curves = [Curve("seen", rate)]
    curves += [Curve(f"certified: {_named(c, trajectory)}", _rate_of_bound(c, time), "bound") for c in bounds]
    finite = np.concatenate([c.values[np.isfinite(c.values)] for c in curves])
    logarithmic = len(finite) > 0 and bool(finite.min() > 0) and bool(finite.max() > WIDE * finite.min())
    missing = None if np.isfinite(rate).any() else "no rate: no step was taken,\nor L − f* is not positive"
    name = r"\log(L - f^*)" if _minimum_known(trajectory) else r"\log L"
    words = "−d/dt log(L − f*)" if _minimum_known(trajectory) else "−d/dt log L"
    label = rf"$-\mathrm{{d}}/\mathrm{{d}}t\ {name}$"
    return Chart("rate", "Rate", label, words, time, tuple(curves), logarithmic, missing=missing, from_zero=True)


def _named(certificate: Certificate, run: Trajectory) -> str:
    """Its name, and where the run is none what it is on."""
    return certificate.name + (" (of the flow)" if run.method.kind.discrete and not certificate.discrete else "")


def drift_chart(trajectory: Trajectory) -> Chart:
    """||D_l(t) - D_l(0)||_F / max(1, ||D_l(0)||_F), a curve a layer; of D_l(t) - q^2 D_l(0) with weight decay."""
    drift = trajectory.imbalance_drift
    keep = thinned(drift)
    values, layers = drift[keep], drift.shape[1]
    if layers <= MOST_CURVES:
        curves = [Curve(f"D{subscript(k + 1)}", values[:, k]) for k in range(layers)]
    else:
        curves = [
            Curve(f"greatest of {layers} layers", values.max(axis=1)),
            Curve(f"least of {layers} layers", values.min(axis=1)),
        ]
    kept = trajectory.dynamics.keeps_imbalance
    title = "Drift of the imbalance" if kept else "Change of the imbalance"
    label = f"relative {title.split()[0].lower()} of $D_l$"
    words = f"‖D_l(t) − {remains(trajectory)}D_l(0)‖_F / max(1, ‖D_l(0)‖_F)"
    time, logarithmic = trajectory.time[keep], bool((values > 0).any())
    before = _before(keep, trajectory.time)
    return Chart("drift", title, label, words, time, tuple(curves), logarithmic, before, round_off=kept)


def remains(trajectory: Trajectory) -> str:
    """What is left of D_l(0) as a factor, where weights decay; "" where they do not."""
    x = trajectory.problem.weight_decay
    return "" if not x else f"exp(−{2 * x:g} t) " if trajectory.dynamics.keeps_imbalance else "q(t)² "


def singular_values_chart(trajectory: Trajectory) -> Chart:
    """The greatest singular values of the product W(t), and those of the loss's minimiser where it has one."""
    values = trajectory.singular_values[:, :MOST_MODES]
    keep = thinned(values)
    times, values = trajectory.checkpoints.times[keep], values[keep]
    curves = [Curve(f"σ{subscript(k + 1)}", values[:, k]) for k in range(values.shape[1])]
    curves += [
        Curve(f"σ{subscript(k + 1)} of the minimiser", np.full(len(times), value), "target")
        for k, value in enumerate(target_singular_values(trajectory))
    ]
    before = _before(keep, trajectory.checkpoints.times)
    label, words = "singular values of $W(t)$", "singular values of W(t)"
    title = "Singular values"
    return Chart("singular-values", title, label, words, times, tuple(curves), False, before, from_zero=True)


def sharpness_chart(trajectory: Trajectory) -> Chart:
    """The largest eigenvalue of Hess L; of gradient descent also its edge of stability, 2 / step_size without
    momentum."""
    curves, method = [Curve("sharpness", trajectory.sharpness())], trajectory.method
    if method.edge is not None:
        edge = np.full(len(trajectory.checkpoints.times), method.edge)
        curves.append(Curve("edge of stability" if method.carries else "2 / step size", edge, "bound"))
    label, words = r"sharpness $\lambda_{\max}(\nabla^2 L(t))$ / time$^{-1}$", "sharpness λ_max(∇²L(t)) / time⁻¹"
    return _at_checkpoints(trajectory, "sharpness", "Sharpness", label, words, curves)


def kernel_distance_chart(trajectory: Trajectory) -> Chart:
    """||T(t) - T(0)||_F / ||T(0)||_F."""
    label = r"$\Vert T(t) - T(0)\Vert_F\ /\ \Vert T(0)\Vert_F$"
    words = "‖T(t) − T(0)‖_F / ‖T(0)‖_F"
    curves = [Curve("distance", trajectory.kernel_distance())]
    return _at_checkpoints(trajectory, "kernel-distance", "Distance of the kernel", label, words, curves)


def effective_rank_chart(trajectory: Trajectory) -> Chart:
    """exp(entropy of the normalised singular values) of the product W(t)."""
    words, curves = "effective rank of W(t)", [Curve("effective rank", trajectory.effective_rank())]
    return _at_checkpoints(trajectory, "effective-rank", "Effective rank", "effective rank of $W(t)$", words, curves)


def gradient_chart(trajectory: Trajectory) -> Chart:
    """||grad L||_F at the saved times."""
    norm = trajectory.gradient_norm
    keep = thinned(norm)
    curves, time = (Curve("‖∇L‖", norm[keep]),), trajectory.time[keep]
    before = _before(keep, norm)
    label, words = r"$\Vert\nabla L(t)\Vert$", "‖∇L(t)‖"
    return Chart("gradient", "Gradient", label, words, time, curves, bool(norm.max() > 0), before)


def energy_chart(trajectory: Trajectory) -> Chart:
    """|L(0) - L(t) - integral of ||grad L||_F^2| / (L(0) - f*) at all steps; of other dynamics that of their energy."""
    residual = np.abs(trajectory.energy_residual)
    keep = thinned(residual)
    curves, logarithmic = (Curve("residual", residual[keep]),), bool((residual > 0).any())
    label = r"$|L(0) - L(t) - \int\,\Vert\nabla L\Vert^2\,|\ /\ (L(0) - f^*)$"
    words = "|L(0) − L(t) − ∫‖∇L‖²| / (L(0) − f*)"
    if not trajectory.motion.is_plain:
        label, words = r"$|E(0) - E(t) - \mathrm{dissipated}|\ /\ E(0)$", "|E(0) − E(t) − dissipated| / E(0)"
    time, before = trajectory.step_time[keep], _before(keep, residual)
    return Chart("energy", "Energy residual", label, words, time, curves, logarithmic, before, round_off=True)


def target_singular_values(trajectory: Trajectory) -> np.ndarray:
    """Those of the loss's minimiser W*, as many as are shown of W(t); none where it declares none."""
    minimiser = minimiser_of(trajectory.problem.loss)
    if minimiser is None:
        return np.zeros(0)
    return np.linalg.svd(minimiser, compute_uv=False)[:MOST_MODES]


def subscript(number: int) -> str:
    """12 -> ₁₂."""
    return str(number).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))


def _minimum_known(trajectory: Trajectory) -> bool:
    """Whether L - f* was recorded; of a file without the loss it is taken to be so unless there are negative values."""
    loss = trajectory.problem.loss
    if isinstance(loss, UnknownLoss):
        return not (trajectory.steps.excess < 0).any()
    return minimum_of(loss) is not None


def _end(trajectory: Trajectory) -> float:
    """Until when L - f* is more than round-off and errors: bounds and rates beyond mean nothing."""
    return float(trajectory.time[-1] if trajectory.resolved_until is None else trajectory.resolved_until)


def _rate_of_bound(certificate: Certificate, time: np.ndarray) -> np.ndarray:
    rate, excess = certificate.rate or 0.0, certificate.excess or 0.0
    if certificate.law == "exponential":
        return np.full(len(time), rate)
    return excess * rate / (1 + excess * rate * time)


def _at_checkpoints(
    trajectory: Trajectory, key: str, title: str, label: str, words: str, curves: Sequence[Curve]
) -> Chart:
    """Curves over the checkpoints' times, on a linear axis from 0; thinned by the first one."""
    keep, times = thinned(curves[0].values), trajectory.checkpoints.times
    shown = tuple(replace(curve, values=curve.values[keep]) for curve in curves)
    missing = None if np.isfinite(curves[0].values).any() else "not finite at any checkpoint"
    before = _before(keep, times)
    return Chart(key, title, label, words, times[keep], shown, False, before, missing=missing, from_zero=True)


def _before(keep: np.ndarray, everything: np.ndarray) -> int | None:
    return len(everything) if len(keep) < len(everything) else None
