"""Theorem 2 as a lower bound on lambda_min(T), and the printed form that is none."""

from itertools import pairwise

import numpy as np
import pytest
from conftest import random_network
from hypothesis import given, settings
from hypothesis import strategies as st

import flowsim as fs
from flowsim.errors import InputError
from flowsim.rates import theorem_2
from flowsim.rates.theorem_2 import delta_star

SIZES = st.integers(1, 8)


@settings(max_examples=300)
@given(dims=st.tuples(SIZES, SIZES, SIZES, SIZES), seed=st.integers(0, 10**6), spread=st.floats(-2, 2))
def test_it_never_exceeds_the_least_eigenvalue(dims, seed, spread):
    """Hidden widths below n or m included, layers of very different size too."""
    rng = np.random.default_rng(seed)
    network = random_network(rng, dims)
    network = network.with_weights([10 ** (spread * factor) * W for factor, W in enumerate(network.weights, -1)])
    slack = 1e-9 * max(1.0, network.lambda_min_T, *(np.linalg.norm(D) ** 2 for D in network.imbalances))
    assert theorem_2(network).alpha <= network.lambda_min_T + slack


@pytest.mark.parametrize("dims", [(12, 30, 10, 10), (4, 20, 30, 2), (3, 30, 20, 3), (3, 20, 30, 2), (4, 30, 20, 2)])
def test_round_off_makes_no_rate(dims):
    """What is 0 by the ranks of the D_l, or cancels, is 0, not 1e-15."""
    draws = [np.random.default_rng(seed) for seed in range(40)]
    networks = [fs.LinearNetwork([0.35 * rng.standard_normal(shape) for shape in pairwise(dims)]) for rng in draws]
    alphas = np.array([delta_star(network) for network in networks])
    assert ((alphas == 0.0) | (alphas > 1e-9)).all(), alphas
    assert (alphas == 0.0).any()


@settings(max_examples=100)
@given(dims=st.tuples(SIZES, SIZES, SIZES, SIZES), seed=st.integers(0, 10**6))
def test_it_is_the_formula_of_the_theorem(dims, seed):
    """The sums without cancellation against the traces as they are printed in its statement."""
    network = random_network(np.random.default_rng(seed), dims)
    W1, W2, W3 = network.weights
    l_21 = np.linalg.eigvalsh(W2 @ W2.T - W1.T @ W1)[::-1]
    l_23 = np.linalg.eigvalsh(W2.T @ W2 - W3 @ W3.T)[::-1]

    def traces(own, r):
        upper = np.array([max(0.0, *(v[i] for v in (l_21, l_23) if i < len(v))) for i in range(len(own))])
        wedge = np.array([min(u, own[i + 1 - r]) if i + 1 - r >= 0 else u for i, u in enumerate(upper)])
        return upper.sum() - wedge.sum(), (upper**2).sum() - (wedge**2).sum()

    (d_21, s_21), (d_23, s_23) = traces(l_21, dims[0]), traces(l_23, dims[-1])
    expected = 0.5 * (s_21 + d_21**2) + d_21 * d_23 + 0.5 * (s_23 + d_23**2)
    size = max(abs(l_21).max(), abs(l_23).max()) ** 2 * max(dims)
    assert delta_star(network) == pytest.approx(expected, rel=1e-9, abs=1e-12 * size)


def test_the_appendix_form_is_no_lower_bound():
    """Theorem G.2 writes Delta* for twice the main text's: as a bound on lambda_min(T) that fails."""
    networks = [random_network(np.random.default_rng(seed), (1, 30, 50, 1)) for seed in range(20)]
    failures = sum(2 * delta_star(network) > network.lambda_min_T * (1 + 1e-9) for network in networks)
    assert failures == 20


def test_the_printed_exponent_is_off_by_e():
    """exp(1 - gamma Delta* t), printed for the dashed curves, does not start at L(0)."""
    problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.fan_out((1, 10, 20, 1), seed=0))
    certificate = fs.certify(problem)["theorem-2"]
    assert certificate.bound(0.0) == problem.initial_excess
    assert certificate.bound(0.0) != np.exp(1.0) * problem.initial_excess


def test_it_says_when_it_does_not_apply():
    two_layers = fs.certify(fs.fan_in((2, 5, 2), seed=0))["theorem-2"]
    assert not two_layers.applies
    assert "three layers" in two_layers.reason
    with pytest.raises(InputError, match="no rate"):
        two_layers.bound(1.0)
    alone = fs.certify(fs.fan_in((2, 5, 6, 2), seed=0))["theorem-2"]
    assert alone.applies
    assert alone.rate is None


def test_an_undeclared_loss_gets_no_rate():
    class Quartic:
        shape = (1, 1)

        def value(self, W):
            return (W**4).sum()

        def gradient(self, W):
            return 4 * W**3

    certificate = fs.certify(fs.Problem(Quartic(), fs.fan_in((1, 5, 6, 1), seed=0)))["theorem-2"]
    assert not certificate.applies
    assert "A1" in certificate.reason


def test_the_loss_stays_below_the_bound():
    for seed in range(5):
        problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.fan_out((5, 20, 30, 1), seed=seed))
        run = fs.simulate(problem, t1=0.5)
        certificate = fs.certify(problem).best
        assert (run.loss <= certificate.bound(run.time) + 1e-12 * run.loss[0]).all()
