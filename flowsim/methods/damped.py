"""A polynomial through a Runge-Kutta step that damps what is stiff as the flow does.

A state y + h sum_i w_i K_i is that at t + h/2 up to terms of order p + 1 where sum_i w_i Phi_i(tau) =
2^(-|tau|) / gamma(tau) for all rooted trees tau of at most p nodes, and on y' = lambda y it is 1 + z w^T (I - z A)^-1 1
times y, z = h lambda. Of the weights of order p those are taken whose multiple is nearest e^(z/2) where steps are
stable, -reach <= z <= 0. The polynomial of degree 5 through the ends and this middle, with their slopes, is a
combination of the K_i too.
(Hairer, Norsett and Wanner, Solving Ordinary Differential Equations I, sections II.2 and II.6.)
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from math import prod

import numpy as np

POINTS = 100
"""The multiples are compared at so many z."""
UNUSED = 1e-12
"""A smaller weight is round-off."""


def trees(A: np.ndarray, order: int) -> list[tuple[int, int, np.ndarray]]:
    """(|tau|, gamma(tau), Phi(tau)) of the rooted trees of at most `order` nodes, for stages with the matrix A."""
    found = [(1, 1, np.ones(len(A)))]
    for size in range(2, order + 1):
        smaller = list(found)
        for count in range(1, size):
            for branches in combinations_with_replacement(smaller, count):
                sizes, densities, elementary = zip(*branches, strict=True)
                if sum(sizes) == size - 1:
                    found.append((size, size * prod(densities), prod(A @ Phi for Phi in elementary)))
    return found


def middle(A: np.ndarray, order: int, reach: float) -> np.ndarray:
    """w (s): the weights of that order for the middle of a step, nearest e^(z/2) for -reach <= z <= 0."""
    from scipy.linalg import null_space

    sizes, densities, elementary = (np.array(part) for part in zip(*trees(A, order), strict=True))
    z = -np.linspace(0.0, reach, POINTS + 1)[1:]
    multiples = np.array([v * np.linalg.solve(np.eye(len(A)) - v * A, np.ones(len(A))) for v in z])
    w = np.linalg.pinv(elementary, rcond=UNUSED) @ (0.5**sizes / densities)
    free = null_space(elementary, rcond=UNUSED)
    w += free @ np.linalg.lstsq(multiples @ free, np.expm1(z / 2) - multiples @ w, rcond=None)[0]
    return np.where(np.abs(w) > UNUSED, w, 0.0)


def hermite(theta: np.ndarray) -> np.ndarray:
    """(S, 6): what the polynomial has at theta of its values at 0, 1/2 and 1, and of its slopes there."""
    nodes, powers = np.array([[0.0], [0.5], [1.0]]), np.arange(6)
    conditions = np.vstack([nodes**powers, powers * nodes ** np.maximum(powers - 1, 0)])
    return np.asarray(np.asarray(theta)[:, None] ** powers @ np.linalg.inv(conditions))


def damped(theta: np.ndarray, b: np.ndarray, half: np.ndarray) -> np.ndarray:
    """w (S, s + 2): y + h sum_i w_i(theta) K_i is the polynomial, K_s the velocity at the end and K_{s+1} that in the
    middle; b (s): the weights of the end; half (s + 1): those of the middle."""
    _, in_middle, at_end, first, slope, last = hermite(theta).T
    weights = np.multiply.outer(in_middle, np.append(half, 0.0)) + np.multiply.outer(at_end, np.append(b, [0.0, 0.0]))
    s = len(b)
    weights[:, 0] += first
    weights[:, s] += last
    weights[:, s + 1] += slope
    return weights
