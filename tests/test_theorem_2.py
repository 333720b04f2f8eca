"""Theorem 2 as a lower bound on lambda_min(T), and the printed form that is none."""

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


@settings(max_examples=300, deadline=None)
@given(dims=st.tuples(SIZES, SIZES, SIZES, SIZES), seed=st.integers(0, 10**6), spread=st.floats(-2, 2))
def test_it_never_exceeds_the_least_eigenvalue(dims, seed, spread):
    """Hidden widths below n or m included, layers of very different size too."""
    rng = np.random.default_rng(seed)
    network = random_network(rng, dims)
    network = network.with_weights([10 ** (spread * factor) * W for factor, W in enumerate(network.weights, -1)])
    slack = 1e-9 * max(1.0, network.lambda_min_T, *(np.linalg.norm(D) ** 2 for D in network.imbalances))
    assert theorem_2(network).alpha <= network.lambda_min_T + slack


@pytest.mark.parametrize("seed", range(5))
def test_eigenvalues_that_are_zero_by_rank_make_no_rate(seed):
    """D_21 (30 x 30) is W_2 W_2^T of rank 10 less W_1^T W_1 of rank 12: eight of its eigenvalues are 0, not 1e-15."""
    assert theorem_2(fs.fan_in((12, 30, 10, 10), seed=seed)).alpha == 0.0


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
