"""Products, gradients, the operator T and the imbalance."""

import numpy as np
import pytest
from conftest import random_network, random_problem
from hypothesis import given, settings
from hypothesis import strategies as st

import flowsim as fs
from flowsim.errors import InputError
from flowsim.network import unflatten
from flowsim.network.kronecker import least_eigenvalue

DIMS = st.integers(2, 5).flatmap(
    lambda depth: st.tuples(st.integers(1, 4), *[st.integers(4, 7)] * (depth - 1), st.integers(1, 4))
)


@settings(max_examples=40)
@given(dims=DIMS, seed=st.integers(0, 1000), scale=st.sampled_from([1.0, 0.3, 2.0]))
def test_gradients_against_differences(dims, seed, scale):
    rng = np.random.default_rng(seed)
    X, Y = rng.standard_normal((9, dims[0])), rng.standard_normal((9, dims[-1]))
    problem = fs.Problem(fs.LeastSquares(X, Y), random_network(rng, dims, scale=scale))
    state, direction = problem.initial_state, rng.standard_normal(problem.network.size)

    def loss(y):
        product = scale * np.linalg.multi_dot(unflatten(y, dims))
        return 0.5 * ((Y - X @ product) ** 2).sum()

    h = 1e-5
    slope = (loss(state + h * direction) - loss(state - h * direction)) / (2 * h)
    expected = -problem.velocity(state) @ direction
    assert slope == pytest.approx(expected, rel=1e-6, abs=1e-6 * (1 + abs(loss(state))))


@settings(max_examples=40)
@given(dims=DIMS, seed=st.integers(0, 1000), scale=st.sampled_from([1.0, 0.3, 2.0]))
def test_the_jacobian_of_the_flow_is_symmetric_and_right(dims, seed, scale):
    rng = np.random.default_rng(seed)
    X, y = rng.standard_normal((9, dims[0])), rng.choice([-1.0, 1.0], (9, dims[-1]))
    problem = fs.Problem(fs.LogisticLoss(X, y), random_network(rng, dims, scale=scale))
    state, size = problem.initial_state, problem.network.size
    J = problem.jacobian_product(state, np.eye(size))
    assert pytest.approx(J.T, abs=1e-12 * (1 + np.abs(J).max())) == J
    direction, h = rng.standard_normal(size), 1e-6
    slope = (problem.velocity(state + h * direction) - problem.velocity(state - h * direction)) / (2 * h)
    assert J @ direction == pytest.approx(slope, rel=1e-5, abs=1e-5 * (1 + np.abs(J).max()))
    states = np.stack([state, state + direction])
    assert problem.velocity(states) == pytest.approx(np.array([problem.velocity(one) for one in states]), rel=1e-12)


@settings(max_examples=40)
@given(dims=DIMS, seed=st.integers(0, 1000), scale=st.sampled_from([1.0, 0.3]))
def test_T_turns_the_residual_into_the_velocity_of_the_product(dims, seed, scale):
    """<T E, E> = ||grad L||^2 with E = grad f, and dW/dt = -T E."""
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, dims)
    network = problem.network.__class__(problem.network.weights, scale)
    problem = fs.Problem(problem.loss, network)
    E = problem.loss.gradient(network.product)
    velocity = problem.velocity(problem.initial_state)
    assert (network.apply_T(E) * E).sum() == pytest.approx(velocity @ velocity, rel=1e-10)
    assert network.dense_T() @ E.ravel() == pytest.approx(network.apply_T(E).ravel(), rel=1e-10, abs=1e-12)
    rates = unflatten(velocity, dims)
    W_dot = sum(scale * network.prefixes[i] @ rate @ network.suffixes[i] for i, rate in enumerate(rates))
    assert W_dot == pytest.approx(-network.apply_T(E), rel=1e-9, abs=1e-10)


@settings(max_examples=30)
@given(dims=DIMS, seed=st.integers(0, 1000))
def test_rotating_hidden_bases_changes_nothing(dims, seed):
    rng = np.random.default_rng(seed)
    problem = random_problem(rng, dims)
    bases = [np.eye(dims[0]), *(np.linalg.qr(rng.standard_normal((h, h)))[0] for h in dims[1:-1]), np.eye(dims[-1])]
    turned = [bases[i].T @ W @ bases[i + 1] for i, W in enumerate(problem.network.weights)]
    other = fs.Problem(problem.loss, problem.network.with_weights(turned))
    assert other.network.product == pytest.approx(problem.network.product, rel=1e-9, abs=1e-12)
    assert other.network.lambda_min_T == pytest.approx(problem.network.lambda_min_T, rel=1e-8, abs=1e-10)
    before, after = problem.velocity(problem.initial_state), other.velocity(other.initial_state)
    assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), rel=1e-9)


@pytest.mark.parametrize(
    "dims", [(12, 15, 14, 13), (20, 30, 20), (1, 30, 31, 40), (15, 15, 15, 15), (18, 40, 50, 40, 9)]
)
def test_iterated_least_eigenvalue_of_T_agrees_with_the_dense_one(rng, dims):
    network = random_network(rng, dims)
    eigenvalues = np.linalg.eigvalsh(network.dense_T())
    assert least_eigenvalue(network.grams) == pytest.approx(eigenvalues[0], rel=1e-8, abs=1e-13 * eigenvalues[-1])


def test_least_eigenvalue_of_two_layers_is_a_sum(rng):
    """T E = W_1 W_1^T E + E W_2^T W_2, so lambda_min(T) = lambda_min(W_1 W_1^T) + lambda_min(W_2^T W_2)."""
    network = random_network(rng, (90, 100, 80))
    W1, W2 = network.weights
    least = np.linalg.eigvalsh(W1 @ W1.T)[0] + np.linalg.eigvalsh(W2.T @ W2)[0]
    assert network.lambda_min_T == pytest.approx(least, rel=1e-10)


def test_an_iteration_cut_short_never_overstates_the_least_eigenvalue(rng, monkeypatch):
    network = random_network(rng, (20, 20, 20, 20))
    monkeypatch.setattr("flowsim.network.kronecker.ITERATIONS", 5)
    assert least_eigenvalue(network.grams) <= np.linalg.eigvalsh(network.dense_T())[0]


@pytest.mark.parametrize("factor", [0.0, 1e-100, 1e-160])
def test_least_eigenvalue_of_tiny_weights(rng, factor):
    large = random_network(rng, (25, 30, 25))
    tiny = large.with_weights([factor * W for W in large.weights])
    assert tiny.lambda_min_T == pytest.approx(factor**2 * large.lambda_min_T, rel=1e-3)


def test_the_model_scale_enters_T_squared(rng):
    """The NTK factor c multiplies T by c^2; by c, as one may read the paper, is wrong."""
    plain = random_network(rng, (3, 8, 9, 2))
    scaled = fs.LinearNetwork(plain.weights, 0.1)
    assert scaled.lambda_min_T == pytest.approx(0.01 * plain.lambda_min_T, rel=1e-10)
    assert scaled.lambda_min_T < 0.1 * plain.lambda_min_T * 0.5


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ([np.ones((2, 3))], "at least two layers"),
        ([np.ones((2, 3)), np.ones((2, 3))], "must chain"),
        ([np.ones((2, 3)), np.ones(3)], "must be a matrix"),
        ([np.ones((2, 0)), np.ones((0, 3))], "must not be empty"),
        ([np.ones((2, 3)) * 1j, np.ones((3, 1))], "real numbers"),
        ([np.full((2, 3), np.nan), np.ones((3, 1))], "finite"),
        ([np.array([["a"]]), np.ones((1, 1))], "real numbers"),
        ([np.array([[None]]), np.ones((1, 1))], "real numbers"),
    ],
)
def test_bad_weights_are_refused(weights, words):
    with pytest.raises(InputError, match=words):
        fs.LinearNetwork(tuple(weights))


def test_other_dtypes_are_converted_with_a_notice():
    with pytest.warns(fs.errors.ConversionNotice, match="float32"):
        network = fs.LinearNetwork((np.ones((2, 3), np.float32), np.ones((3, 1))))
    assert network.weights[0].dtype == np.float64


def test_a_target_of_the_wrong_shape_is_refused(rng):
    with pytest.raises(InputError, match="2 x 3"):
        fs.Problem(fs.SquaredLoss(np.ones((3, 2))), random_network(rng, (2, 4, 3)))
