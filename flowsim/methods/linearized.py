"""The symmetric Jacobian J of a gradient flow at one state, and the solution of equations with I - c J."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import numpy as np

from flowsim.dynamics import Motion
from flowsim.network import unflatten
from flowsim.network.tangent import Tangent

MOST_PRODUCTS = 1000
DELAY = 4
"""The error of conjugate gradients is told so many iterations later: by what these moved the solution."""


class Linear(Protocol):
    """F and -J at one state, in coordinates of some of the directions; on all others they vanish."""

    work: int
    """Of a product with -J, in gradients."""

    def gradient(self) -> np.ndarray:
        """-F, in coordinates."""
        ...

    def coordinates(self, direction: np.ndarray) -> np.ndarray:
        """Those of the nearest direction that has any."""
        ...

    def lifted(self, z: np.ndarray) -> np.ndarray:
        """The direction with these coordinates."""
        ...

    def hessian(self, z: np.ndarray) -> np.ndarray:
        """-J times the direction with coordinates z, in coordinates."""
        ...


class Whole:
    """F and -J on all directions."""

    work = 2

    def __init__(self, motion: Motion, t: float, state: np.ndarray) -> None:
        self.motion, self.t, self.state = motion, t, state

    def gradient(self) -> np.ndarray:
        """-F."""
        return -self.motion.velocity(self.t, self.state)

    def coordinates(self, direction: np.ndarray) -> np.ndarray:
        """Itself."""
        return direction

    lifted = coordinates

    def hessian(self, z: np.ndarray) -> np.ndarray:
        """-J z."""
        return -self.motion.jacobian_product(self.t, self.state, z)


def linearized(motion: Motion, t: float, state: np.ndarray) -> Linear:
    """F and -J of a gradient flow at a state, on the coordinates of Tangent where these are few."""
    if not has_few_coordinates(motion):
        return Whole(motion, t, state)
    problem = motion.problem
    dims = problem.network.dims
    return Tangent(problem.stacked_loss, unflatten(state, dims), dims, problem.network.scale)


def has_few_coordinates(motion: Motion) -> bool:
    """Whether the coordinates of Tangent are fewer than half of the weights."""
    dims = motion.problem.network.dims
    r = min(dims[0], dims[-1])
    few = sum(r * (a + b) for a, b in pairwise(dims))
    return motion.is_plain and 2 * few < motion.size


def conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray],
    b: np.ndarray,
    allowed: float,
    share: float = np.inf,
    along: np.ndarray | None = None,
) -> np.ndarray | None:
    """x with A x = b for a symmetric A >= I, products by which are given; begun with the best multiple of `along`.

    ||x - A^-1 b|| is at most about `allowed`, and at most that share of ||x||, both in the norm (x^T A x)^(1/2), which
    is no less than the Euclidean one; a few times that where the eigenvalues spread evenly over many decades. (scipy's
    cg stops by the residual, which multiplies what is stiff, and takes any A.)

    None where A turns out not to be positive definite, or after MOST_PRODUCTS.
    """
    size, length = _greatest(b), 0.0 if along is None else _greatest(along)
    if size == 0:
        return np.zeros_like(b)
    first = None if along is None or length == 0 else along / length
    found = _conjugate_gradients(product, b / size, allowed / size, share, first)
    return None if found is None else size * found


def _greatest(x: np.ndarray) -> float:
    """By it entries are divided, so that their squares do not underflow."""
    return float(np.abs(x).max(initial=0.0))


def _conjugate_gradients(
    product: Callable[[np.ndarray], np.ndarray], b: np.ndarray, allowed: float, share: float, along: np.ndarray | None
) -> np.ndarray | None:
    x, r = np.zeros_like(b), b.copy()
    gains: list[float] = []  # of x^T A x; those to come are the square of the error
    if along is not None and (onto := float(along @ r)):
        A_along = product(along)
        multiple = onto / float(along @ A_along)
        if not multiple * onto > 0:
            return None
        x += multiple * along
        r -= multiple * A_along
        gains.append(multiple * onto)
    p, square = r.copy(), float(r @ r)
    least = allowed**2 if share == np.inf else 0.0
    while square > least and len(gains) < MOST_PRODUCTS:
        Ap = product(p)
        curvature = float(p @ Ap)
        if not curvature > 0:
            return None
        step = square / curvature
        x += step * p
        r -= step * Ap
        gains.append(step * square)
        before, square = square, float(r @ r)
        least = min(allowed, share * sum(gains) ** 0.5) ** 2
        if len(gains) > DELAY and sum(gains[-DELAY:]) <= least:
            return x
        p *= square / before
        p += r
    return x if square <= least else None
