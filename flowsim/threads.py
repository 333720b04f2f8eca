"""How many threads linear algebra may use: one for matrices of middling size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

ALONE = 64
"""BLAS and LAPACK by themselves use one thread for matrices up to about this order."""
WORTHWHILE = 1000
"""From this order on threads gain more than they lose by waiting for each other."""


@contextmanager
def threads_for(order: int) -> Iterator[None]:
    """One thread of BLAS and LAPACK within the block where the largest matrices have that order, ALONE < order <
    WORTHWHILE; else as many as there were.

    Thousands of factorings of a 100 x 100 matrix take several times as long on two threads as on one, and a hundred
    times as long where other processes use the processor too.
    """
    if not ALONE < order < WORTHWHILE:
        yield
        return
    import scipy.linalg  # noqa: F401  # its library is limited only once it is loaded
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield
