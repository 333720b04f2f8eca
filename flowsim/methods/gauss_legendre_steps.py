"""Gauss-Legendre collocation: implicit, of order 2 s with s stages, and true to every quadratic invariant: all D_l.

    Z_i = h sum_j a_ij F(y + Z_j),  i = 1 .. s,    y_1 = y + h sum_i b_i F(y + Z_i),
with the nodes c_i of Gauss's quadrature on [0, 1] and its collocation weights a_ij, b_i (Hairer, Lubich and Wanner,
Geometric Numerical Integration, sections II.1.3 and IV.2.1). What is kept is kept as well as the stages are solved: to
round-off, at any tolerance.

Stages. With R_i = h sum_j a_ij F(y + Z_j) - Z_i, the fixed-point iteration adds R to Z. Where that is slow, Newton's
correction (I - h A x J) dZ = R takes its place, J = -Hess L, which is symmetric. For few weights J = Q diag(lambda) Q^T
is computed now and then, and the equation falls apart into s x s systems, one an eigenvalue, for any h. For many
weights A = S diag(mu) S^-1 splits it into shifted systems (I - h mu_j J) x = r, all of which one Lanczos run for each
r = R_i solves. Of W'' = -grad L - b W' the correction (X, Y) of weights and velocities obeys X - h A Y = R_1 and
Y - h A (J X - b Y) = R_2; without Y that is (I - M x J) X = (1 + b h A)^-1 h A R_2 + R_1, M = (1 + b h A)^-1 (h A)^2, a
function of A: the same systems, with the shifts (h mu)^2 / (1 + b h mu).

Error. Every step is two halves; a whole step, solved to the tolerance only, stands beside them:
(y_halves - y_whole) / (4^s - 1) estimates the error of the halves. Between its nodes the solution is a Gauss step of
its own from the nearest node on the left: dense output has the order and the invariants of the method. Where that
step cannot be solved it is halved; a run never ends for its dense output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import numpy as np

from flowsim.dynamics import Motion
from flowsim.errors import NumericalFailure
from flowsim.methods.steps import (
    ROUND_OFF,
    Counts,
    IntegrationFailure,
    Segment,
    check_structure,
    first_step,
    scaled_norm,
)

if TYPE_CHECKING:
    from flowsim.methods.gauss_legendre import GaussLegendre

DENSE_EIGENVECTORS = 300
"""Up to this many weights all eigenvectors of the Jacobian are computed, beyond Lanczos solves for each correction."""
LONGEST_LANCZOS, FORCING = 60, 1e-2
"""A Lanczos run ends after so many steps, or when the residual has fallen by FORCING."""
MOST_ITERATIONS = 30
SLOW = 0.3
"""An iteration that shrinks the residual by less than this factor asks for a new Jacobian."""
HOPELESS = 0.8
"""One that shrinks it by less than this is given up."""
STOPPED = 100.0
"""An iteration that has become slow within this factor of its target was stopped by round-off."""
LEAST_HARM = 10.0
"""Such an iteration is accepted when what it misses changes D_l by this much at most, in units of the target."""
MOST_HALVINGS = 8
"""Dense output halves a step whose stages it cannot solve at most so often."""
LOOSE = 0.02
"""The whole step is solved until its residual is this share of the tolerance."""
SAFETY, LEAST_FACTOR, MOST_FACTOR = 0.9, 0.2, 4.0


@dataclass(frozen=True)
class Tableau:
    """c (s), A (s, s), b (s) of Gauss's method on [0, 1]."""

    c: np.ndarray
    A: np.ndarray
    b: np.ndarray

    def at(self, theta: np.ndarray) -> np.ndarray:
        """(..., s) for theta (...): Z(theta) from Z_1 .. Z_s on the collocation polynomial with Z(0) = 0."""
        powers = np.arange(1, len(self.c) + 1)
        return theta[..., None] ** powers @ np.linalg.inv(self.c[:, None] ** powers)


@cache
def tableau(stages: int) -> Tableau:
    """Gauss's method with that many stages: A integrates polynomials of degree s - 1 from 0 to c_i."""
    x, w = np.polynomial.legendre.leggauss(stages)
    c, powers = 0.5 * (1 + x), np.arange(stages)
    A = c[:, None] ** (powers + 1) / (powers + 1) @ np.linalg.inv(c[:, None] ** powers)
    return Tableau(c, A, 0.5 * w)


class Newton(Protocol):
    """How a residual of the stages becomes a correction."""

    def __call__(self, h: np.ndarray, R: np.ndarray) -> np.ndarray:
        """dZ with about (I - h A x J) dZ = R, for R (..., s, size) and h (...)."""
        ...


class FixedPoint:
    """dZ = R."""

    def __call__(self, h: np.ndarray, R: np.ndarray) -> np.ndarray:
        return R


class Splitting:
    """A = S diag(mu) S^-1, and functions of it."""

    def __init__(self, A: np.ndarray) -> None:
        self.mu, self.S = np.linalg.eig(A)
        self.inverse = np.linalg.inv(self.S)

    def matrix(self, values: np.ndarray) -> np.ndarray:
        """(..., s, s): f(A), f(mu) = values (..., s)."""
        return np.asarray(np.einsum("ij,...j,jm->...im", self.S, values, self.inverse).real)


class Shifted(Protocol):
    """Solves with a symmetric J."""

    def solve(self, shifts: np.ndarray, R: np.ndarray) -> np.ndarray:
        """X with about (I - M x J) X = R (..., s, size), M = S diag(shifts) S^-1 of shifts (..., s)."""
        ...


class Eigenvectors:
    """By J = Q diag(lambda) Q^T: an s x s system for each eigenvalue."""

    def __init__(self, J: np.ndarray, splitting: Splitting) -> None:
        self.values, self.vectors = np.linalg.eigh(0.5 * (J + J.T))
        self.splitting = splitting

    def solve(self, shifts: np.ndarray, R: np.ndarray) -> np.ndarray:
        M = self.splitting.matrix(shifts)[..., None, :, :]
        matrices = np.eye(M.shape[-1]) - self.values[:, None, None] * M  # (..., size, s, s)
        solved = np.linalg.solve(matrices, (R @ self.vectors).mT[..., None])[..., 0]
        return solved.mT @ self.vectors.T


class Lanczos:
    """By products with J: (I - m J)^-1 r = |r| V (I - m T)^-1 e, J V = V T + beta v e^T, m a shift.

    All runs, one a row of R, go side by side; one serves every shift.
    """

    def __init__(self, product: Callable[[np.ndarray], np.ndarray], splitting: Splitting) -> None:
        self.product, self.splitting = product, splitting

    def solve(self, shifts: np.ndarray, R: np.ndarray) -> np.ndarray:
        size = np.linalg.norm(R, axis=-1, keepdims=True)
        v, before, beta = R / np.where(size > 0, size, 1.0), np.zeros_like(R), np.zeros_like(size)
        shifts = shifts[..., None, :]  # (..., 1, s): the row of R, the shift
        basis: list[np.ndarray] = []
        diagonal: list[np.ndarray] = []
        beside: list[np.ndarray] = []
        for _ in range(LONGEST_LANCZOS):
            basis.append(v)
            w = self.product(v) - beta * before
            alpha = (w * v).sum(-1, keepdims=True)
            w = w - alpha * v
            beta = np.linalg.norm(w, axis=-1, keepdims=True)
            diagonal.append(alpha[..., 0])
            x = self._small(shifts, diagonal, beside)
            missed = np.abs(shifts) * beta * np.abs(x[..., -1])
            if missed.max() <= FORCING or not np.isfinite(missed).all():
                break
            beside.append(beta[..., 0])
            v, before = w / np.where(beta > 0, beta, 1.0), v
        V = np.stack(basis, axis=-2)  # (..., s, k, size)
        S, inverse = self.splitting.S, self.splitting.inverse
        split = np.einsum("ij,jm,...mjk->...imk", S, inverse, x).real
        return np.einsum("...imk,...mkn->...in", split * size[..., None, :, :], V)

    @staticmethod
    def _small(shifts: np.ndarray, diagonal: list[np.ndarray], beside: list[np.ndarray]) -> np.ndarray:
        """(..., s, s, k): (I - m_j T)^-1 e for each row of R and each shift m_j."""
        k = np.arange(len(diagonal))
        T = np.zeros((*diagonal[0].shape, len(k), len(k)))
        T[..., k, k] = np.stack(diagonal, axis=-1)
        if beside:
            T[..., k[1:], k[:-1]] = T[..., k[:-1], k[1:]] = np.stack(beside, axis=-1)
        matrices = np.eye(len(k)) - shifts[..., None, None] * T[..., None, :, :]
        first = np.zeros((len(k), 1))
        first[0] = 1.0
        return np.linalg.solve(matrices, np.broadcast_to(first, (*matrices.shape[:-1], 1)))[..., 0]


class Gradient:
    """Newton's correction where J is the Jacobian itself: (I - h A x J) dZ = R."""

    def __init__(self, shifted: Shifted, splitting: Splitting) -> None:
        self.shifted, self.splitting = shifted, splitting

    def __call__(self, h: np.ndarray, R: np.ndarray) -> np.ndarray:
        return self.shifted.solve(h[..., None] * self.splitting.mu, R)


class Inertia:
    """Newton's correction for W'' = -grad L - b W', J = -Hess L, b as it is at the linearization."""

    def __init__(self, shifted: Shifted, splitting: Splitting, b: float) -> None:
        self.shifted, self.splitting, self.b = shifted, splitting, b

    def __call__(self, h: np.ndarray, R: np.ndarray) -> np.ndarray:
        first, second = np.split(R, 2, axis=-1)
        z = h[..., None] * self.splitting.mu
        damped = 1 + self.b * z
        X = self.shifted.solve(z * z / damped, self.splitting.matrix(z / damped) @ second + first)
        Y = self.splitting.matrix(1 / z) @ (X - first)
        return np.concatenate([X, Y], axis=-1)


@dataclass(frozen=True)
class Solved:
    """A Gauss step from y: Z (..., s, size), F(y + Z) alike, whether the iteration converged, and how fast it was."""

    Z: np.ndarray
    F: np.ndarray
    converged: bool
    contraction: float


class Stages:
    """The stage equations of one motion, and the best correction so far."""

    def __init__(self, motion: Motion, stages: int, counts: Counts) -> None:
        self.motion, self.counts, self.tableau = motion, counts, tableau(stages)
        self.splitting = Splitting(self.tableau.A)
        self.newton: Newton = FixedPoint()

    def velocity(self, t: float | np.ndarray, states: np.ndarray) -> np.ndarray:
        """F at a stack of states (..., size) at the times t (...), each counted."""
        self._count(states[..., 0].size)
        return self.motion.velocity(t, states)

    def _symmetric_product(self, t: float, y: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """J at y times a stack of directions, each counted as two velocities: it takes two sweeps."""
        self._count(2 * directions[..., 0].size)
        if self.motion.structure == "gradient":
            return self.motion.jacobian_product(t, y, directions)
        return self.motion.problem.jacobian_product(y, directions)

    def _count(self, velocities: int) -> None:
        self.counts.rhs_evaluations = (self.counts.rhs_evaluations or 0) + velocities

    def linearize(self, t: float, y: np.ndarray) -> None:
        """Take the Jacobian at (t, y) from now on."""
        self.counts.jacobians = (self.counts.jacobians or 0) + 1
        inertial = self.motion.structure == "inertial"
        weights = y[: self.motion.size] if inertial else y
        shifted: Shifted
        if weights.size <= DENSE_EIGENVECTORS:
            shifted = Eigenvectors(self._symmetric_product(t, weights, np.eye(weights.size)), self.splitting)
        else:
            shifted = Lanczos(lambda V: self._symmetric_product(t, weights, V), self.splitting)
        if inertial:
            self.newton = Inertia(shifted, self.splitting, float(self.motion.dynamics.damping(np.asarray(t))))
        else:
            self.newton = Gradient(shifted, self.splitting)

    def solve(
        self, t: float, y: np.ndarray, h: np.ndarray, Z: np.ndarray, scale: float | np.ndarray, target: float
    ) -> Solved:
        """Solve for steps of the lengths h (...) from (t, y), starting from Z (..., s, size).

        It has converged when the residual's largest entry over `scale` is at most `target`, or round-off stops it
        within a hundred times of that. Round-off leaves a residual of h |lambda| eps |y|: where that is more, what
        counts is the correction that it asks for, a few eps |y|, and what it does to D_l, |R| |Z|.
        """
        times = t + h[..., None] * self.tableau.c
        before, contraction, F = np.inf, 0.0, self.velocity(times, y + Z)
        for _ in range(MOST_ITERATIONS):
            R = h[..., None, None] * (self.tableau.A @ F) - Z
            residual = float(np.max(np.abs(R) / scale))
            contraction = residual / before
            if residual <= target or (contraction > SLOW and residual <= STOPPED * target):
                return Solved(Z, F, True, contraction)
            if not np.isfinite(residual):
                break
            correction = self.newton(h, R)
            if contraction > SLOW and before < np.inf:
                size, moved = float(np.max(np.abs(correction) / scale)), float(np.max(np.abs(Z) / scale))
                if size <= STOPPED * target and residual * min(moved, 1.0) <= LEAST_HARM * target:
                    return Solved(Z, F, True, contraction)
                if contraction > HOPELESS:
                    break
            Z = Z + correction
            before, F = residual, self.velocity(times, y + Z)
        return Solved(Z, F, False, contraction)


class GaussLegendreSteps:
    """Gauss-Legendre collocation from (t, state) to t1, a step (two halves, or one of a fixed size) a segment."""

    def __init__(self, motion: Motion, method: GaussLegendre, t: float, state: np.ndarray, t1: float) -> None:
        check_structure(motion, method.name, "gradient", "inertial")
        self.motion, self.method, self.t, self.t1, self.y = motion, method, t, t1, np.array(state)
        self.counts = Counts(rejected_steps=0, jacobians=0)
        self.stages = Stages(motion, method.stages, self.counts)
        self.low = np.zeros_like(self.y)  # what rounding left of the sums so far
        if method.step_size is not None:
            self.h = method.step_size
        else:
            self.h = first_step(self.stages.velocity, t, self.y, 2 * method.stages, method.rtol, method.atol, t1 - t)

    def advance(self) -> Segment:
        """One step that meets the tolerance."""
        fixed = self.method.step_size is not None
        while True:
            h = min(self.h, self.t1 - self.t)
            if self.t + h >= self.t1 * (1 - 1e-14):
                h = self.t1 - self.t
            if not self.t + h > self.t:
                raise IntegrationFailure(f"GaussLegendre stopped at t = {self.t:.6g}: no step size was accepted.")
            with np.errstate(over="ignore", invalid="ignore"):
                parts = self._single(h) if fixed else self._halves(h)
            if parts is not None:
                return self._accept(h, parts)
            if fixed:
                raise IntegrationFailure(
                    f"GaussLegendre stopped at t = {self.t:.6g}: its stages have no solution near; lower step_size."
                )
            self.counts.rejected_steps = (self.counts.rejected_steps or 0) + 1

    def resume(self, t: float, state: np.ndarray, t1: float, step: float) -> None:
        """Go on from (t, state) to t1, with a step of at least that size first, and the Jacobian as it is."""
        self.t, self.t1, self.h = t, t1, max(self.h, step)
        self.y, self.low = state, np.zeros_like(state)

    def _single(self, h: float) -> list[_Part] | None:
        part = self._part(self.t, self.y, self.low, h, np.zeros((self.method.stages, self.y.size)))
        return None if part is None else [part]

    def _halves(self, h: float) -> list[_Part] | None:
        """The two halves of a step of length h, or None where it is rejected; sets the length of the next."""
        table, half = self.stages.tableau, 0.5 * h
        tolerance = self.method.atol + self.method.rtol * np.abs(self.y)
        whole = self._solve(self.t, self.y, h, np.zeros((len(table.c), self.y.size)), tolerance, LOOSE)
        if whole is None:
            self.h = 0.5 * h
            return None
        first = self._part(self.t, self.y, self.low, half, table.at(0.5 * table.c) @ whole.Z)
        if first is None:
            self.h = 0.5 * h
            return None
        guess = table.at(0.5 + 0.5 * table.c) @ whole.Z - (first.end - self.y)
        second = self._part(self.t + half, first.end, first.low, half, guess)
        if second is None:
            self.h = 0.5 * h
            return None
        order = 2 * len(table.c)
        gap = second.end - (self.y + h * (table.b @ whole.F))
        error = scaled_norm(gap, self.y, second.end, self.method.rtol, self.method.atol) / (2**order - 1)
        factor = SAFETY * error ** (-1 / (order + 1)) if error > 0 else MOST_FACTOR
        self.h = h * min(max(factor, LEAST_FACTOR), MOST_FACTOR)
        return [first, second] if error <= 1 else None

    def _solve(
        self, t: float, y: np.ndarray, h: float, Z: np.ndarray, scale: float | np.ndarray, target: float
    ) -> Solved | None:
        """The stages of a step, with a new Jacobian where the old one is slow or useless; None where none helps."""
        solved = self.stages.solve(t, y, np.array(h), Z, scale, target)
        if solved.converged and solved.contraction <= SLOW:
            return solved
        try:
            middle = (solved.Z if solved.converged else Z).mean(axis=0)
            self.stages.linearize(t + 0.5 * h, y + middle)
        except NumericalFailure:  # the state is out of the loss's domain
            return solved if solved.converged else None
        if not solved.converged:
            solved = self.stages.solve(t, y, np.array(h), Z, scale, target)
        return solved if solved.converged else None

    def _part(self, t: float, y: np.ndarray, low: np.ndarray, h: float, Z: np.ndarray) -> _Part | None:
        """A Gauss step solved to round-off; the increments are summed with compensation."""
        solved = self._solve(t, y, h, Z, float(np.abs(y).max()) or 1.0, ROUND_OFF)
        if solved is None:
            return None
        increment = h * (self.stages.tableau.b @ solved.F) + low
        end = y + increment
        return _Part(t, y, end, increment - (end - y), h, solved)

    def _accept(self, h: float, parts: list[_Part]) -> Segment:
        ends = np.array([self.t, *(self.t + np.cumsum([part.h for part in parts]))])
        ends[-1] = self.t1 if h == self.t1 - self.t else self.t + h
        start, self.t = self.t, float(ends[-1])
        self.y, self.low = parts[-1].end, parts[-1].low
        dissipated = sum(self._spent(part) for part in parts)
        W = self.motion.products(self.y)
        return Segment(np.array([start, self.t]), W[None], np.array([dissipated]), _Dense(self.stages, ends, parts))

    def _spent(self, part: _Part) -> float:
        """The integral of the power over a part."""
        table = self.stages.tableau
        return part.h * float(table.b @ self.motion.power(part.t + part.h * table.c, part.solved.F))


@dataclass(frozen=True)
class _Part:
    """A Gauss step of length h from `start` at t to `end` (+ `low`, what its rounding left)."""

    t: float
    start: np.ndarray
    end: np.ndarray
    low: np.ndarray
    h: float
    solved: Solved


class _Dense:
    """The states at any times of a step: at its nodes as computed, elsewhere by shorter Gauss steps from a node."""

    def __init__(self, stages: Stages, ends: np.ndarray, parts: list[_Part]) -> None:
        self.stages, self.ends, self.parts = stages, ends, parts

    def __call__(self, t: np.ndarray) -> np.ndarray:
        states = np.empty((len(t), self.parts[0].start.size))
        for (left, right), part in zip(pairwise(self.ends), self.parts, strict=True):
            here = np.flatnonzero((t >= left) & (t <= right))
            inner = here[(t[here] != left) & (t[here] != right)]
            states[here[t[here] == left]], states[here[t[here] == right]] = part.start, part.end
            if len(inner):
                states[inner] = self._between(part, t[inner] - left)
        return states

    def _between(self, part: _Part, h: np.ndarray) -> np.ndarray:
        """The ends of Gauss steps of the lengths h from the start of a part."""
        guess = self.stages.tableau.at(h[:, None] / part.h * self.stages.tableau.c) @ part.solved.Z
        solved = self._solve(part.t, part.start, h, guess)
        if solved.converged:
            return part.start + h[:, None] * (self.stages.tableau.b @ solved.F)
        return np.array([self._one_by_one(part, float(length)) for length in h])

    def _solve(self, t: float, y: np.ndarray, h: np.ndarray, guess: np.ndarray) -> Solved:
        scale = float(np.abs(y).max()) or 1.0
        solved = self.stages.solve(t, y, h, guess, scale, ROUND_OFF)
        if not solved.converged:
            self.stages.linearize(t + 0.5 * float(h.mean()), y + guess.reshape(-1, y.size).mean(axis=0))
            solved = self.stages.solve(t, y, h, guess, scale, ROUND_OFF)
        return solved

    def _one_by_one(self, part: _Part, h: float) -> np.ndarray:
        """The state h after the start of a part by 1, 2, 4, ... Gauss steps, as few as can be solved; by the part's own
        collocation polynomial, of order s, where none can."""
        table = self.stages.tableau
        for halvings in range(MOST_HALVINGS + 1):
            step, state = np.array(h / 2**halvings), part.start
            for k in range(2**halvings):
                solved = self._solve(part.t + k * float(step), state, step, np.zeros((len(table.c), state.size)))
                if not solved.converged:
                    break
                state = state + step * (table.b @ solved.F)
            else:
                return state
        return part.start + table.at(np.array(h / part.h)) @ part.solved.Z
