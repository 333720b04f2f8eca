"""Values, gradients and constants of the losses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowsim as fs
from flowsim.errors import InputError
from flowsim.losses import excess, excess_stack


def least_squares(rng, rows, n, m, rank=None):
    X = rng.standard_normal((rows, n))
    if rank is not None:
        X = X[:, :rank] @ rng.standard_normal((rank, n))
    return X, rng.standard_normal((rows, m))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 9), n=st.integers(1, 5), m=st.integers(1, 4), seed=st.integers(0, 999))
def test_least_squares_is_what_it_says(rows, n, m, seed):
    rng = np.random.default_rng(seed)
    X, Y = least_squares(rng, rows, n, m)
    loss, W = fs.LeastSquares(X, Y), rng.standard_normal((n, m))
    assert loss.shape == (n, m)
    assert loss.value(W) == pytest.approx(0.5 * ((Y - X @ W) ** 2).sum(), rel=1e-10)
    assert loss.gradient(W) == pytest.approx(X.T @ (X @ W - Y), rel=1e-9, abs=1e-9)
    best = np.linalg.lstsq(X, Y, rcond=None)[0]
    assert loss.minimum == pytest.approx(0.5 * ((Y - X @ best) ** 2).sum(), rel=1e-8, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(rank=st.integers(1, 4), seed=st.integers(0, 999))
def test_gradient_dominance(rank, seed):
    """||grad f||^2 >= gamma (f - f*), tight for the least singular value, with deficient rank too."""
    rng = np.random.default_rng(seed)
    X, Y = least_squares(rng, 12, 4, 3, rank)
    loss, W = fs.LeastSquares(X, Y), rng.standard_normal((4, 3))
    sigma = np.linalg.svd(X, compute_uv=False)
    assert loss.constants.gamma == pytest.approx(2 * sigma[rank - 1] ** 2, rel=1e-8)
    assert pytest.approx(sigma[0] ** 2, rel=1e-10) == loss.constants.K
    assert (loss.constants.mu > 0) == (rank == 4)
    assert (loss.gradient(W) ** 2).sum() >= loss.constants.gamma * excess(loss, W) * (1 - 1e-9)


def test_cost_does_not_depend_on_the_rows(rng):
    X, Y = least_squares(rng, 5000, 3, 2)
    assert {name: value.shape for name, value in vars(fs.LeastSquares(X, Y)).items() if hasattr(value, "shape")} == {
        "factor": (3, 3),
        "minimiser": (3, 2),
        "gram": (3, 3),
    }


def test_the_excess_is_free_of_cancellation(rng):
    X, Y = least_squares(rng, 40, 3, 2)
    loss = fs.LeastSquares(X, Y)
    near = loss.minimiser + 1e-12
    assert 0 < excess(loss, near) < 1e-20
    assert excess_stack(loss, np.stack([near, near])) == pytest.approx([excess(loss, near)] * 2, rel=1e-12)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fs.LeastSquares(np.ones((3, 2)), np.ones((4, 1))), "as many rows"),
        (lambda: fs.LeastSquares(np.zeros((3, 2)), np.ones((3, 1))), "must not be zero"),
        (lambda: fs.SquaredLoss(np.ones(3)), "must be a matrix"),
        (lambda: fs.SquaredLoss([[1.0, np.inf]]), "finite"),
        (lambda: fs.SquaredLoss([[1.0], [1.0, 2.0]]), "ragged"),
        (lambda: fs.Problem(object(), fs.fan_in((1, 2, 1), seed=0)), "shape, value, gradient"),
    ],
)
def test_bad_losses_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()
