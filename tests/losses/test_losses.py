"""Values, gradients and constants of the losses."""

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import flowsim as fs
from flowsim.errors import InputError
from flowsim.losses import adapted, excess


def least_squares(rng, rows, n, m, rank=None):
    X = rng.standard_normal((rows, n))
    if rank is not None:
        X = X[:, :rank] @ rng.standard_normal((rank, n))
    return X, rng.standard_normal((rows, m))


@settings(max_examples=30)
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


@settings(max_examples=30)
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
        "seen": (3, 2),
    }


def test_the_excess_is_free_of_cancellation(rng):
    X, Y = least_squares(rng, 40, 3, 2)
    loss = fs.LeastSquares(X, Y)
    near = loss.minimiser + 1e-12
    assert 0 < excess(loss, near) < 1e-20
    assert loss.excess(np.stack([near, near])) == pytest.approx([excess(loss, near)] * 2, rel=1e-12)


def polynomial(degree, rows):
    """Columns 1, x, ..., x^degree on [0, 1]: the more of them, the nearer to dependent."""
    return np.vander(np.linspace(0.0, 1.0, rows), degree + 1, increasing=True)


@pytest.mark.parametrize("degree", [3, 8, 13, 19])
def test_an_ill_conditioned_x_costs_no_digits(degree, rng):
    """Against X^T (X W - Y) in fractions; the condition number goes up to 1e16."""
    X, Y, W = polynomial(degree, 25), rng.standard_normal((25, 2)), rng.standard_normal((degree + 1, 2))
    loss = fs.LeastSquares(X, Y)
    data, weights, target = (np.vectorize(Fraction, otypes=[object])(part) for part in (X, W, Y))
    residual = data @ weights - target
    slope, value = (data.T @ residual).astype(float), float((residual**2).sum() / 2)
    assert loss.gradient(W) == pytest.approx(slope, rel=1e-12, abs=1e-12 * np.abs(slope).max())
    assert loss.value(W) == pytest.approx(value, rel=1e-13)
    assert loss.minimum <= loss.value(W)


def test_the_flow_of_an_ill_conditioned_x_is_that_of_the_normal_equations(rng):
    X, Y, network = polynomial(19, 30), rng.standard_normal((30, 1)), fs.fan_in((20, 30, 1), seed=0)
    flow = fs.simulate(fs.Problem(fs.LeastSquares(X, Y), network), t1=1.0)

    def velocity(_, state):
        W1, W2 = state[:600].reshape(20, 30), state[600:].reshape(30, 1)
        E = X.T @ (X @ (W1 @ W2) - Y)
        return -np.concatenate([(E @ W2.T).ravel(), (W1.T @ E).ravel()])

    plain = solve_ivp(velocity, (0.0, 1.0), flow.problem.initial_state, "DOP853", rtol=1e-10, atol=1e-12)
    W = plain.y[:600, -1].reshape(20, 30) @ plain.y[600:, -1].reshape(30, 1)
    assert flow.loss[-1] == pytest.approx(0.5 * ((Y - X @ W) ** 2).sum(), rel=1e-9)
    assert flow.stats["steps"] < 100


@pytest.mark.parametrize(
    ("X", "words"),
    [
        (polynomial(2, 9), None),
        (polynomial(11, 30), "ill-conditioned"),
        (polynomial(19, 30), "rank 1. of 20"),
        (polynomial(2, 9) @ np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), "rank 2 of 3"),
        (polynomial(4, 3), "rank 3 of 5"),
    ],
)
def test_constants_of_deficient_data_say_so(X, words, rng):
    loss = fs.LeastSquares(X, rng.standard_normal((len(X), 1)))
    network = fs.fan_out((X.shape[1], 30, 1), seed=0)
    certificate = fs.certify(fs.Problem(loss, network))["theorem-1-A1"]
    if words is None:
        assert certificate.reason is None
        assert loss.minimiser == pytest.approx(np.linalg.lstsq(X, _seen(loss, X), rcond=None)[0], rel=1e-9)
    else:
        assert re.search(words, certificate.reason)
        assert certificate.rate == certificate.alpha * loss.constants.gamma
        assert loss.minimiser is None or "rank" in words


def _seen(loss, X):
    """The part of Y that X sees."""
    left, _, _ = np.linalg.svd(X, full_matrices=False)
    return left @ loss.seen


def test_the_rank_tolerance_counts_for_the_value_and_the_minimum_alike(rng):
    """Singular values that count as zero are those of a nearby X, whose loss it is."""
    left, sigma, right = np.linalg.svd(rng.standard_normal((9, 3)), full_matrices=False)
    sigma = np.array([1.0, 0.5, 1e-3])
    X, near = (left * sigma) @ right, (left * [1.0, 0.5, 0.0]) @ right
    Y, W = rng.standard_normal((9, 2)), rng.standard_normal((3, 2))
    loss = fs.LeastSquares(X, Y, rank_tolerance=1e-2)
    assert loss.value(W) == pytest.approx(0.5 * ((Y - near @ W) ** 2).sum(), rel=1e-12)
    least = np.linalg.lstsq(near, Y, rcond=1e-10)[0]
    assert loss.minimum == pytest.approx(0.5 * ((Y - near @ least) ** 2).sum(), rel=1e-12)
    for tolerance in (-1.0, 1.0, np.nan):
        with pytest.raises(InputError, match="rank_tolerance"):
            fs.LeastSquares(X, Y, rank_tolerance=tolerance)


def test_parts_with_a_minimiser_are_read_as_the_same_loss(rng):
    """As files of this schema may have them."""
    X, Y = least_squares(rng, 12, 4, 2, rank=3)
    loss, W = fs.LeastSquares(X, Y), rng.standard_normal((4, 2))
    parts = {"factor": loss.factor, "minimiser": loss.minimiser, "minimum": loss.minimum, "gram": X.T @ X}
    again = fs.LeastSquares.from_parts(parts)
    assert set(again.parts()) == {"factor", "seen", "minimum"}
    assert again.gradient(W) == pytest.approx(loss.gradient(W), rel=1e-12)
    assert again.constants == loss.constants


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


@settings(max_examples=20)
@given(rows=st.integers(1, 8), n=st.integers(1, 4), m=st.integers(1, 3), seed=st.integers(0, 999))
def test_gradients_are_derivatives(rows, n, m, seed):
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((rows, n)), rng.choice([-1.0, 1.0], (rows, m))
    W, V, step = rng.standard_normal((n, m)), rng.standard_normal((n, m)), 1e-6
    mask = rng.integers(0, 2, (n, m)) * rng.uniform(0.5, 2, (n, m))
    mask[0, 0] = 1.0
    for loss in (
        fs.ExponentialLoss(X, y),
        fs.LogisticLoss(X, y),
        fs.MaskedSquaredLoss(rng.standard_normal((n, m)), mask),
    ):
        slope = (loss.value(W + step * V) - loss.value(W - step * V)) / (2 * step)
        assert (loss.gradient(W) * V).sum() == pytest.approx(slope, rel=1e-6, abs=1e-6)
        stack = np.stack([W, V])
        assert loss.gradient(stack) == pytest.approx(np.stack([loss.gradient(W), loss.gradient(V)]), rel=1e-12)
        assert loss.excess(stack) == pytest.approx([excess(loss, W), excess(loss, V)], rel=1e-12)
        change = (loss.gradient(W + step * V) - loss.gradient(W - step * V)) / (2 * step)
        curvature = loss.hessian_product(W, stack)
        assert curvature[1] == pytest.approx(change, rel=1e-6, abs=1e-6)
        plain = adapted(Plain(loss))
        assert plain.hessian_product(W, stack) == pytest.approx(curvature, rel=1e-6, abs=1e-8)
        assert plain.excess(stack) == pytest.approx(loss.excess(stack), rel=1e-12)


class Plain:
    """A user's own loss: nothing but shape, value and gradient, of one product at a time."""

    def __init__(self, loss):
        self.shape = loss.shape
        self.value = lambda W: float(loss.value(W.reshape(self.shape)))
        self.gradient = lambda W: loss.gradient(W.reshape(self.shape))


def test_the_margin_is_that_of_the_widest_street():
    """Two points on either side of a line at distance 3: no unit vector separates them by more."""
    loss = fs.ExponentialLoss([[3.0, 0.0], [3.0, 5.0], [-3.0, 2.0]], [1, 1, -1])
    assert loss.margin == pytest.approx(3.0, rel=1e-12)


@settings(max_examples=30)
@given(rows=st.integers(1, 12), n=st.integers(1, 4), m=st.integers(1, 3), seed=st.integers(0, 9999))
def test_the_margin_dominates_the_gradient_and_no_direction_has_a_larger_one(rows, n, m, seed):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((rows, n))
    y = np.sign(X @ rng.standard_normal((n, m)))
    loss, W = fs.ExponentialLoss(X, y), rng.standard_normal((n, m))
    assert loss.margin > 0
    assert loss.minimum == 0.0
    assert np.linalg.norm(loss.gradient(W)) >= loss.constants.gamma * loss.value(W) * (1 - 1e-12)
    U = rng.standard_normal((200, n, m))
    U /= np.linalg.norm(U, axis=(1, 2))[:, None, None]
    assert (y * (X @ U)).min((1, 2)).max() <= loss.margin * (1 + 1e-10)


def test_data_that_are_not_separable_have_no_constants():
    loss = fs.ExponentialLoss([[1.0], [1.0]], [1, -1])
    assert loss.margin == 0.0
    assert loss.minimum is None
    assert loss.constants.gamma is None
    assert fs.LogisticLoss([[1.0], [1.0]], [1, -1]).constants.dominance is None


def test_a_masked_loss_sees_only_what_the_mask_shows(rng):
    Y = np.array([[1.0, np.nan], [2.0, 3.0]])
    loss = fs.MaskedSquaredLoss(Y, [[True, False], [True, True]])
    W = rng.standard_normal((2, 2))
    assert loss.value(W) == pytest.approx(0.5 * np.nansum((Y - W) ** 2))
    assert loss.constants == fs.LossConstants(2.0, "quadratic", mu=0.0, K=1.0)
    assert (loss.gradient(W) ** 2).sum() == pytest.approx(2 * loss.value(W))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: fs.ExponentialLoss(np.ones((3, 2)), [0, 1, 1]), "-1 and .1 only"),
        (lambda: fs.LogisticLoss(np.ones((3, 2)), [1, 1]), "as many rows"),
        (lambda: fs.MaskedSquaredLoss(np.ones((2, 2)), np.zeros((2, 2))), "not all zero"),
        (lambda: fs.MaskedSquaredLoss(np.ones((2, 2)), np.ones((2, 1))), "shape of `Y`"),
    ],
)
def test_bad_data_are_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()


@pytest.mark.parametrize("kind", [fs.ExponentialLoss, fs.LogisticLoss])
def test_classification_runs_in_numpy_and_jax_and_through_a_file(kind, rng, tmp_path):
    X = rng.standard_normal((20, 3))
    problem = fs.Problem(kind(X, np.sign(X @ rng.standard_normal(3))), fs.fan_in((3, 5, 1), seed=1))
    plain = fs.simulate(problem, t1=0.5)
    assert fs.simulate(problem, fs.Diffrax("Dopri8"), t1=0.5).loss == pytest.approx(plain.loss, rel=1e-6)
    plain.save(tmp_path / "run.nc")
    loaded = fs.load(tmp_path / "run.nc")
    assert type(loaded.problem.loss) is kind
    assert loaded.weights_at(0.123)[0] == pytest.approx(plain.weights_at(0.123)[0], rel=1e-12)
