"""The Hessian on coordinates of its image: against the Hessian on all weights."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import flowsim as fs
from flowsim.network import flatten
from flowsim.network.tangent import Tangent

DIMS = st.integers(2, 5).flatmap(
    lambda depth: st.tuples(st.integers(1, 4), *[st.integers(1, 6)] * (depth - 1), st.integers(1, 4))
)
LOSSES = ["squared", "least squares", "masked", "logistic"]
WEIGHTS = ["full", "of rank one", "a layer of zeros", "zeros"]


def loss_of(name, n, m, rng):
    if name == "squared":
        return fs.SquaredLoss(rng.standard_normal((n, m)))
    if name == "least squares":
        return fs.LeastSquares(rng.standard_normal((7, n)), rng.standard_normal((7, m)))
    if name == "masked":
        mask = rng.integers(0, 2, (n, m)) * 1.0
        mask[0, 0] = 2.0
        return fs.MaskedSquaredLoss(rng.standard_normal((n, m)), mask)
    return fs.LogisticLoss(rng.standard_normal((7, n)), rng.choice([-1.0, 1.0], (7, m)))


def problem_of(dims, loss, kind, scale, seed):
    rng = np.random.default_rng(seed)
    weights = [rng.standard_normal(shape) for shape in pairwise(dims)]
    if kind == "of rank one":
        weights = [np.outer(W[:, 0], W[0]) for W in weights]
    zero = range(len(weights)) if kind == "zeros" else [seed % len(weights)] if kind == "a layer of zeros" else []
    for layer in zero:
        weights[layer] = np.zeros_like(weights[layer])
    return fs.Problem(loss_of(loss, dims[0], dims[-1], rng), fs.LinearNetwork(tuple(weights), scale))


def tangent_of(problem):
    network = problem.network
    return Tangent(problem.stacked_loss, network.weights, network.dims, network.scale)


@settings(max_examples=60)
@given(
    dims=DIMS,
    loss=st.sampled_from(LOSSES),
    kind=st.sampled_from(WEIGHTS),
    scale=st.sampled_from([1.0, 0.3, 2.0]),
    seed=st.integers(0, 1000),
)
def test_it_is_the_hessian_on_all_weights(dims, loss, kind, scale, seed):
    problem = problem_of(dims, loss, kind, scale, seed)
    tangent, state, size = tangent_of(problem), problem.initial_state, problem.network.size
    H, g = -problem.jacobian_product(state, np.eye(size)), -problem.velocity(state)
    rounding = 1e-12 * (1 + np.abs(H).max())
    C = np.array([tangent.coordinates(e) for e in np.eye(size)]).T
    P = np.array([tangent.lifted(z) for z in C.T]).T
    # the orthogonal projection, in coordinates that keep lengths
    assert pytest.approx(P.T, abs=1e-13) == P
    assert pytest.approx(P, abs=1e-13) == P @ P
    assert pytest.approx(P, abs=1e-13) == C.T @ C
    # on which the Hessian acts, symmetric, and beside which it is nothing
    assert pytest.approx(H, abs=rounding) == H @ P
    for k in range(size):
        product = tangent.hessian(C[:, k])
        assert tangent.lifted(product) == pytest.approx(H[k], abs=rounding)
        assert product == pytest.approx(tangent.coordinates(H[k]), abs=rounding)
    assert tangent.lifted(tangent.gradient()) == pytest.approx(g, abs=rounding * (1 + np.abs(g).max()))
    assert tangent.gradient() == pytest.approx(tangent.coordinates(g), abs=rounding * (1 + np.abs(g).max()))


@pytest.mark.parametrize("dims", [(2, 30, 30, 3), (3, 30, 30, 2), (1, 40, 1), (5, 20, 30, 40, 2)])
def test_its_coordinates_are_few(dims):
    """r (h_{l-1} + h_l) for each layer but the one with r rows or columns; r = min(n, m)."""
    tangent, r = tangent_of(problem_of(dims, "squared", "full", 1.0, 0)), min(dims[0], dims[-1])
    inner = dims[1:] if dims[0] <= dims[-1] else dims[:-1]
    ends = inner[0] if dims[0] <= dims[-1] else inner[-1]
    assert tangent.gradient().size == r * ends + r * sum(a + b for a, b in pairwise(inner))


def test_directions_that_the_network_does_not_feel_are_projected_out():
    """W_1 W_2 with W_1 = 0: the last layer moves neither the product nor, but along the residual, the gradient."""
    network = fs.LinearNetwork((np.zeros((1, 3)), np.ones((3, 2))))
    tangent = tangent_of(fs.Problem(fs.SquaredLoss([[1.0, 0.0]]), network))
    along, across = np.zeros((3, 2)), np.zeros((3, 2))
    along[:, 0], across[1:, 1] = [3.0, 4.0, 5.0], 1.0
    for moved, kept in ((along, along), (across, np.zeros((3, 2)))):
        direction = flatten([np.zeros((1, 3)), moved])
        found = tangent.lifted(tangent.coordinates(direction))
        assert found == pytest.approx(flatten([np.zeros((1, 3)), kept]), abs=1e-14)
