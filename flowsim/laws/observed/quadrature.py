"""The integral of a function of time, known at the times that are asked for, with its error, from left to right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.polynomial import chebyshev

LEVELS = (4, 8, 16)
"""A panel is sampled at 5 Chebyshev points, then 9, then 17: each the former and as many between."""
PROMISING = 0.1
"""From 9 to 17 points where those before shrank the error to this share, else the panel is halved: it has a kink."""
LEAST_SHARE = 0.05
"""A doubling of the points is not trusted to shrink the error more than that."""
SHARE = 0.7
"""The halves of a panel may err by SHARE of what it may: a kink asks for small panels at one place only."""
DEEPEST = 30
"""A panel is halved so many times at most; what is then left of the error is known and told."""


@cache
def points(degree: int) -> np.ndarray:
    """The extrema of the Chebyshev polynomial of that degree, ascending from -1 to 1."""
    return -np.cos(np.pi * np.arange(degree + 1) / degree)


@cache
def antiderivative(degree: int) -> np.ndarray:
    """(degree + 2, degree + 1): from values at points(degree) to the coefficients of their interpolant's integral."""
    coefficients = np.linalg.inv(chebyshev.chebvander(points(degree), degree))
    return np.array([chebyshev.chebint(column, lbnd=-1) for column in coefficients.T]).T


def integrals(values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The integral from -1 to each x of the polynomial through the values at the Chebyshev points."""
    return np.asarray(chebyshev.chebval(x, antiderivative(len(values) - 1) @ values))


@dataclass
class Integral:
    """The integral from the start so far, its error, and both at the times asked for.

    function: what is integrated; noise: how far its values are from smooth, below which no error can be brought;
    done(times, end): called as soon as the times asked for, up to end, have been passed.

    The error of a panel is the greatest difference, over the integrals from its start to its points, between the
    interpolants with all points and with every other; times twice the share to which the last doubling shrank it where
    the last two doublings were such that the function is smooth.
    """

    function: Callable[[float], float]
    noise: float
    done: Callable[[np.ndarray, float], None]
    total: float = 0.0
    error: float = 0.0
    at: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    def add(self, start: float, end: float, tolerance: float, wanted: np.ndarray, depth: int = 0) -> None:
        """Go on from start to end, with an error of about the tolerance; wanted: times in (start, end]."""
        half, before, last = 0.5 * (end - start), np.inf, 1.0
        values = np.array([self.function(t) for t in (start, start + half, end)])
        least = max(tolerance, 2 * half * self.noise)
        for degree in LEVELS:
            values, coarse = self._refined(start, half, values), values
            x = points(degree)
            gap = half * float(np.abs(integrals(values, x) - integrals(coarse, x)).max())
            shrunk = gap / before if 0 < before < np.inf else 1.0
            missed = gap * (max(2 * shrunk, LEAST_SHARE) if max(shrunk, last) <= PROMISING else 1.0)
            if missed <= least or depth >= DEEPEST or not start < start + 0.5 * half < end:
                self._keep(start, end, values, missed, wanted)
                return
            if degree == LEVELS[1] and gap > PROMISING * before:
                break
            before, last = gap, shrunk
        middle = start + half
        self.add(start, middle, SHARE * tolerance, wanted[wanted <= middle], depth + 1)
        self.add(middle, end, SHARE * tolerance, wanted[wanted > middle], depth + 1)

    def _keep(self, start: float, end: float, values: np.ndarray, missed: float, wanted: np.ndarray) -> None:
        half = 0.5 * (end - start)
        inside = np.append(np.clip((wanted - start) / half - 1, -1, 1), 1.0)
        *found, whole = self.total + half * integrals(values, inside)
        self.error += missed
        self.at += [float(value) for value in found]
        self.errors += [self.error] * len(found)
        self.total = float(whole)
        self.done(wanted, end)

    def _refined(self, start: float, half: float, values: np.ndarray) -> np.ndarray:
        """The values at twice as many Chebyshev points, those that are known among them, from left to right."""
        degree = 2 * (len(values) - 1)
        finer = np.empty(degree + 1)
        finer[::2] = values
        finer[1::2] = [self.function(start + half * (1 + x)) for x in points(degree)[1::2]]
        return finer
