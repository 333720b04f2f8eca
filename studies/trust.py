"""May a number be trusted that a run gives without a remark?

Random runs over every method of flowsim.methods.METHODS: five losses, data of condition number 1 to 1e4 (of the
Hessian), targets or network scales from 1e-3 to 1e3, rtol from 1e-3 down to 1e-10 (first-order methods 1e-4, second
1e-6, third 1e-8: they would take millions of steps), saved at random times, most of them inside steps. Each is held
against a reference that shares no code with flowsim: its own right-hand side in plain NumPy, two of scipy's
DOP853, LSODA and Radau at rtol 1e-12 or 1e-13, which must agree to a tenth of the run's tolerance; else the case is set
aside and counted. Gradient descent and Euler's method, which have no tolerance, are held against their own recurrence,
with 1e-12 as rtol. (Projected Euler steps have neither: set aside.)

A tolerance is rtol max|W| + atol. The error of a run is max|W - W_ref| in tolerances. Where the flow itself amplifies
errors, away from saddles, no method that controls its steps can do better than the amplification: that is measured, by
a reference from weights perturbed at random at t = 0, and errors are divided by it where it is more than 1. A loss is
wrong where it is off by more than E = 100 N^(1/2) tolerances can make it, ||grad L|| E + 1/2 |lambda|_max E^2.
Counted are the runs that say "completed" or "converged" without a remark and are off by more than 100 tolerances.
Besides, the effectivity of `Trajectory.global_error`: the error of the weights that it estimates over the true one, the
greatest along the run, where the references agree to a tenth of it.
150 runs took six minutes beside other work; all of them take an hour or more.

    python studies/trust.py
"""

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

import flowsim as fs
from flowsim.methods import METHODS, Method

SHAPES = ((2, 4, 1), (3, 6, 4, 2), (4, 5, 4), (2, 5, 4, 6, 2), (6, 8, 3))
KINDS = ("squared", "least squares", "masked", "exponential", "logistic")
LEAST_RTOL = {1: 1e-4, 2: 1e-6, 3: 1e-8}
"""By order; 1e-10 beyond."""
LONGEST = {True: 1e3, False: 1e5}
"""t1 |lambda|_max at most, for explicit methods and for implicit ones."""
WRONG = 100.0
AGREED = 0.1
NUDGE = 1e-6
EXACT = 1e-12
"""The tolerance of methods with steps of a fixed size, against their own recurrence: round-off."""
RUNS_COMPILED = 75
"""What jax has compiled is forgotten after so many runs: it would outgrow the memory maps of a process."""
LIMITS: dict[str, Any] = {"max_steps": 20_000, "wall_limit": 60.0}


@dataclass(frozen=True)
class Case:
    """A problem in plain arrays. data: Y and the mask, or X and Y or the labels."""

    kind: str
    dims: tuple[int, ...]
    data: tuple[np.ndarray, ...]
    scale: float
    start: np.ndarray

    def matrices(self, w: np.ndarray) -> list[np.ndarray]:
        """W_1 .. W_L, stacked as w (..., N) is."""
        ends = np.cumsum([a * b for a, b in pairwise(self.dims)])[:-1]
        parts = np.split(w, ends, axis=-1)
        return [part.reshape(*w.shape[:-1], a, b) for part, (a, b) in zip(parts, pairwise(self.dims), strict=True)]

    def product(self, w: np.ndarray) -> np.ndarray:
        """scale W_1 ... W_L."""
        result, *others = self.matrices(w)
        for W in others:
            result = result @ W
        return self.scale * result

    def loss(self, w: np.ndarray) -> float:
        """L."""
        P, (A, B) = self.product(w), self.data
        if self.kind in ("squared", "masked"):
            return float(0.5 * (B * (A - P) ** 2).sum())
        if self.kind == "least squares":
            return float(0.5 * ((B - A @ P) ** 2).sum())
        margins = B * (A @ P)
        return float((np.exp(-margins) if self.kind == "exponential" else np.log1p(np.exp(-margins))).sum())

    def slope(self, P: np.ndarray) -> np.ndarray:
        """The gradient of the loss of the product."""
        A, B = self.data
        if self.kind in ("squared", "masked"):
            return B * (P - A)
        if self.kind == "least squares":
            return A.T @ (A @ P - B)
        margins = B * (A @ P)
        return -A.T @ (B * (np.exp(-margins) if self.kind == "exponential" else 1 / (1 + np.exp(margins))))

    def velocity(self, t: float, w: np.ndarray) -> np.ndarray:
        """-grad L at one vector or a stack."""
        weights, E = self.matrices(w), self.scale * self.slope(self.product(w))
        parts = []
        for layer in range(len(weights)):  # (W_1 .. W_{l-1})^T E (W_{l+1} .. W_L)^T
            G = E
            for W in weights[:layer]:
                G = np.swapaxes(W, -1, -2) @ G
            for W in reversed(weights[layer + 1 :]):
                G = G @ np.swapaxes(W, -1, -2)
            parts.append(G.reshape(*w.shape[:-1], -1))
        return -np.concatenate(parts, axis=-1)

    def jacobian(self, t: float, w: np.ndarray) -> np.ndarray:
        """By complex steps, exact to round-off."""
        return self.velocity(t, w + 1e-30j * np.eye(w.size)).imag.T / 1e-30

    def problem(self) -> fs.Problem:
        """For flowsim."""
        A, B = self.data
        make: dict[str, Any] = {
            "squared": lambda: fs.SquaredLoss(A),
            "masked": lambda: fs.MaskedSquaredLoss(A, B),
            "least squares": lambda: fs.LeastSquares(A, B),
            "exponential": lambda: fs.ExponentialLoss(A, B),
            "logistic": lambda: fs.LogisticLoss(A, B),
        }
        return fs.Problem(make[self.kind](), fs.LinearNetwork(tuple(self.matrices(self.start)), self.scale))


def drawn(kind: str, dims: tuple[int, ...], rng: np.random.Generator) -> Case:
    """Data of a random condition number, a target or a network of a random scale, weights of size about 1 for it."""
    n, m, depth = dims[0], dims[-1], len(dims) - 1
    condition, size = 10 ** rng.uniform(0, 4), 10 ** rng.uniform(-3, 3)
    large_target = bool(rng.integers(2))
    spread = np.geomspace(1.0, condition**0.5, n)
    Y = rng.standard_normal((n, m)) * (size if large_target else 1.0)
    rows = 2 * n
    X = np.linalg.qr(rng.standard_normal((rows, n)))[0] * spread
    labels = np.where(X @ rng.standard_normal((n, m)) > 0, 1.0, -1.0)
    mask = np.where(rng.random((n, m)) < 0.7, np.geomspace(1.0, condition, n * m).reshape(n, m), 0.0)
    mask[0, 0] = 1.0
    data = {
        "squared": (Y * spread[:, None] / spread[-1], np.ones((n, m))),
        "masked": (Y, mask),
        "least squares": (X, X @ Y + 0.1 * float(np.abs(Y).max()) * rng.standard_normal((rows, m))),
        "exponential": (X, labels),
        "logistic": (X, labels),
    }[kind]
    scale = 1.0 if large_target else size
    level = (size if large_target and kind in KINDS[:3] else 1.0) / scale
    gain = rng.uniform(0.3, 1.2) * level ** (1 / depth)
    layers = [gain * rng.standard_normal(a * b) / a**0.5 for a, b in pairwise(dims)]
    return Case(kind, dims, data, scale, np.concatenate(layers))


@dataclass(frozen=True)
class Setting:
    """A case, its method, and when it is looked at."""

    index: int
    name: str
    case: Case
    method: Method
    times: np.ndarray


def setting(index: int) -> Setting:
    """The index-th run. A method of diffrax meets few shapes, for each is compiled anew."""
    names, rng = list(METHODS), np.random.default_rng([2023, index])
    name, turn = names[index % len(names)], index // len(names)
    make, kind = METHODS[name]
    compiled = name.removeprefix("projected-") not in ("rk23", "rk45", "dop853", "rkc") and kind.explicit
    compiled = (compiled and name != "gd") or name.startswith(("kvaerno", "implicit"))
    which = (index % len(names) + turn % 2) if compiled else int(rng.integers(100))
    case = drawn(KINDS[which % 5], SHAPES[(index % 5) if compiled else int(rng.integers(5))], rng)
    fastest = float(np.abs(np.linalg.eigvalsh(_symmetric(case.jacobian(0.0, case.start)))).max())
    t1 = 10 ** rng.uniform(0, np.log10(LONGEST[kind.explicit])) / fastest
    times = np.unique(np.append(rng.uniform(0, t1, 6), t1))
    if name == "gd" or (name.endswith("euler") and kind.explicit):
        step = min(0.2 / fastest, t1 / 20)
        method = make(step) if name == "gd" else make(step_size=step)
        return Setting(index, name, case, method, times)
    least = LEAST_RTOL.get(kind.order or 5, 1e-10)
    rtol = 10 ** rng.uniform(np.log10(least), -3)
    atol = rtol * 10 ** rng.uniform(-3, 0) * float(np.abs(case.start).max())
    return Setting(index, name, case, make(rtol=rtol, atol=atol), times)


def _symmetric(J: np.ndarray) -> np.ndarray:
    return 0.5 * (J + J.T)


def followed(case: Case, step: float, times: np.ndarray, whole: bool) -> tuple[np.ndarray, float, float]:
    """(states, amplification, 0): beyond h |lambda|_max = 2 descent amplifies its own round-off without bound."""
    nudge = EXACT * float(np.abs(case.start).max()) * np.random.default_rng(0).choice([-1.0, 1.0], case.start.size)
    true, beside = (recurrence(case, start, step, times, whole) for start in (case.start, case.start + nudge))
    return true, float(np.abs(beside - true).max() / np.abs(nudge).max()), 0.0


def recurrence(case: Case, start: np.ndarray, step: float, times: np.ndarray, whole: bool) -> np.ndarray:
    """Euler's steps (= gradient descent's); the states at the times: of the nearest steps if `whole`, else by a shorter
    step from the one before."""
    w, k, states = start, 0, []
    for t in times:
        last = round(t / step) if whole else int(t / step)
        for _ in range(k, last):
            w = w + step * case.velocity(0.0, w)
        k = last
        states.append(w if whole else w + (t - k * step) * case.velocity(0.0, w))
    return np.array(states)


def solved(case: Case, method: str, times: np.ndarray, start: np.ndarray, rtol: float) -> np.ndarray | None:
    """The states at the times, each the end of an integration of its own; None where scipy gives up."""
    state, t, states = start, 0.0, []
    atol = 1e-2 * rtol * float(np.abs(start).max())
    given = {} if method == "DOP853" else {"jac": case.jacobian}
    for end in times:
        found = solve_ivp(case.velocity, (t, end), state, method, [end], rtol=rtol, atol=atol, **given)
        if not found.success:
            return None
        t, state = end, found.y[:, -1]
        states.append(state)
    return np.array(states)


def reference(
    case: Case, times: np.ndarray, stiff: bool, allowed: np.ndarray
) -> tuple[np.ndarray, float, float] | None:
    """(states, amplification, distance of the two references) where two methods agree to a tenth of what is allowed at
    each time, else None."""
    tight = solved(case, "LSODA", times, case.start, 1e-13)
    other = solved(case, "Radau", times, case.start, 1e-12) if stiff else None
    if other is None:
        other = solved(case, "DOP853", times, case.start, 1e-13)
    if tight is None or other is None or not (np.abs(tight - other).max(axis=1) <= AGREED * allowed).all():
        return None
    rng, amplification = np.random.default_rng(0), 0.0
    for _ in range(2):
        nudge = NUDGE * float(np.abs(case.start).max()) * rng.choice([-1.0, 1.0], case.start.size)
        beside = solved(case, "LSODA", times, case.start + nudge, 1e-12)
        if beside is None:
            return None
        amplification = max(amplification, float(np.abs(beside - other).max() / np.abs(nudge).max()))
    return other, amplification, float(np.linalg.norm(tight - other, axis=1).max())


@dataclass(frozen=True)
class Verdict:
    """What became of a run: its errors in tolerances (of the loss: over what WRONG tolerances of error can make)."""

    setting: Setting
    status: str
    remark: str
    error: float
    loss_error: float
    amplification: float
    effectivity: float = np.nan

    @property
    def trusted(self) -> bool:
        """It ended well and says nothing against itself."""
        return self.status in ("completed", "converged") and not self.remark

    @property
    def false(self) -> bool:
        """It should not have been trusted."""
        return self.trusted and not (self.error <= WRONG and self.loss_error <= 1)


def judged(found: Setting) -> Verdict | None:
    """None where there is no reference."""
    case, method, times = found.case, found.method, found.times
    run = fs.simulate(case.problem(), method, t1=float(times[-1]), save_points=times, reduce="never", **LIMITS)
    if run.status not in ("completed", "converged"):
        return Verdict(found, run.status, run.detail, np.nan, np.nan, np.nan)
    states = np.array([np.concatenate([W.ravel() for W in run.weights_at(t)]) for t in run.time[1:]])
    largest = np.abs(states).max(axis=1)
    step = getattr(getattr(method, "method", method), "step_size", None)
    if step is not None:
        unit = EXACT * largest
        if isinstance(method, fs.Projected):  # Euler's steps, projected, have no recurrence in a few lines
            return None
        known: Any = followed(case, step, run.time[1:], found.name == "gd")
    else:
        settings: Any = method
        unit = settings.rtol * largest + settings.atol
        stiff = times[-1] * np.abs(np.linalg.eigvalsh(_symmetric(case.jacobian(0.0, case.start)))).max() > 3e3
        known = reference(case, run.time[1:], bool(stiff), unit)
    if known is None:
        return None
    true, amplification, unsure = known
    unit = unit * max(1.0, amplification)
    error = float((np.abs(states - true).max(axis=1) / unit).max())
    seen = zip(run.loss[1:], true, unit, strict=True)
    off = max(abs(loss - case.loss(w)) / possible(case, w, WRONG * u) for loss, w, u in seen)
    share = effectivity(run, states, true, unsure)
    return Verdict(found, run.status, run.detail, error, float(off), amplification, share)


def effectivity(run: fs.Trajectory, states: np.ndarray, true: np.ndarray, unsure: float) -> float:
    """Estimated over true greatest error of the weights; NaN where the reference does not know the true one."""
    settings: Any = run.method.settings
    if run.method.kind.discrete or getattr(settings, "step_size", None) is not None:
        return np.nan
    apart = float(np.linalg.norm(states - true, axis=1).max())
    return float(run.global_error().weights.max()) / apart if apart > unsure / AGREED else np.nan


def possible(case: Case, w: np.ndarray, error: float) -> float:
    """What an error of that size in every weight can make of the loss, and round-off."""
    E = error * w.size**0.5
    curvature = np.abs(np.linalg.eigvalsh(_symmetric(case.jacobian(0.0, w)))).max()
    gradient = np.linalg.norm(case.velocity(0.0, w))
    return float(gradient * E + 0.5 * curvature * E**2 + 1e-12 * (case.loss(case.start) + case.loss(w)))


def main() -> int:
    """Print the tables; how many were false."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="10 runs of scipy's and flowsim's own methods, seconds")
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the index of the first run")
    arguments = parser.parse_args()
    begun, verdicts, aside = time.perf_counter(), [], 0
    indices = range(arguments.first, arguments.first + arguments.runs)
    if arguments.small:
        uncompiled = ("rk", "dop853", "radau", "bdf", "lsoda", "gauss", "projected-rk", "gd")
        indices = [k for k in range(120) if list(METHODS)[k % len(METHODS)].startswith(uncompiled)][:10]
    for index in indices:
        with np.errstate(over="ignore", invalid="ignore"):  # of trial steps of the reference
            verdict = judged(setting(index))
        if verdict is None:
            aside += 1
        else:
            verdicts.append(verdict)
        if index % RUNS_COMPILED == 0 and "jax" in sys.modules:
            sys.modules["jax"].clear_caches()
        print(f"{index}", end="\r", file=sys.stderr)
    false = report(verdicts)
    print(f"{aside} set aside without a reference; {time.perf_counter() - begun:.0f} s")
    return false


def report(verdicts: list[Verdict]) -> int:
    """Print the tables; how many were false."""
    print("method                      runs  trusted  false  worst error  worst loss  other statuses")
    for name in METHODS:
        mine = [v for v in verdicts if v.setting.name == name]
        trusted = [v for v in mine if v.trusted]
        if not mine:
            continue
        others = Counter(v.status if v.status != "completed" else "remarked" for v in mine if not v.trusted)
        words = ", ".join(f"{count} {word}" for word, count in others.items())
        worst = max((v.error for v in trusted), default=np.nan), max((v.loss_error for v in trusted), default=np.nan)
        count = sum(v.false for v in mine)
        print(f"{name:26}  {len(mine):4}  {len(trusted):7}  {count:5}  {worst[0]:11.2g}  {worst[1]:10.2g}  {words}")
    trusted = [v for v in verdicts if v.trusted]
    print("\nthe ten worst that were trusted: index, method, loss, dims, rtol, error, loss error, amplification")
    for v in sorted(trusted, key=lambda v: -max(v.error / WRONG, v.loss_error))[:10]:
        s = v.setting
        print(
            f"{s.index:5} {s.name:24} {s.case.kind:13} {s.case.dims!s:16} {getattr(s.method, 'rtol', EXACT):8.1e}"
            f" {v.error:8.2g} {v.loss_error:8.2g} {v.amplification:8.2g}"
        )
    shares = np.array([v.effectivity for v in verdicts if np.isfinite(v.effectivity)])
    if len(shares):
        quantiles = " ".join(f"{q:.3g}" for q in np.quantile(shares, (0, 0.05, 0.5, 0.95, 1)))
        print(f"\nglobal error, estimated over true, {len(shares)} runs: least, 5, 50, 95 %, greatest: {quantiles}")
    false = sum(v.false for v in verdicts)
    print(f"\n{len(verdicts)} runs, {len(trusted)} without a remark, off by over {WRONG:g} tolerances: {false}")
    return false


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
