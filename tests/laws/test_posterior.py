"""The a-posteriori bound holds for the exact flow: rounding, quadrature, solver and compression are in its error."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import flowsim as fs
from flowsim.errors import InputError
from flowsim.laws.observed import eigenvalues
from flowsim.laws.observed.eigenvalues import Certain, sensitivity
from flowsim.laws.observed.quadrature import Integral
from flowsim.methods.steps import IntegrationFailure
from flowsim.network import unflatten
from flowsim.runs.tight import Tight, WallLimit

METHODS = (fs.Scipy("DOP853"), fs.Scipy("RK45"), fs.GaussLegendre(2), fs.RKC(), fs.Scipy("Radau"))


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def exact(problem, times):
    """The states of a far tighter, independent solve."""
    run = fs.simulate(problem, fs.Scipy("DOP853", 1e-13, 1e-16), t1=times[-1], save_points=times, reduce="never")
    return run.excess, run.checkpoints.states


@pytest.mark.parametrize("seed", range(30))
def test_the_bound_holds_for_the_exact_flow_and_the_error_covers_the_integrals(seed):
    rng = np.random.default_rng(seed)
    depth, rtol = 2 + seed % 3, 10.0 ** -rng.integers(3, 11)
    n, *hidden, m = (*rng.integers(1, 4, 1), *rng.integers(3, 6, depth - 1), *rng.integers(1, 4, 1))
    weights = [0.8 * rng.standard_normal(shape) / shape[0] ** 0.25 for shape in pairwise((n, *hidden, m))]
    problem = fs.Problem(fs.SquaredLoss(rng.standard_normal((n, m))), fs.LinearNetwork(tuple(weights)))
    kind = METHODS[seed % len(METHODS)]
    kind = type(kind)(**{**vars(kind), "rtol": max(rtol, 1e-6 if kind.name == "rkc" else rtol), "atol": rtol / 100})
    edges = np.append(0.0, np.geomspace(1e-4, 1.0, 40))
    found = fs.a_posteriori(fs.simulate(problem, kind, t1=1.0, save_points=edges))
    nodes, gauss = np.polynomial.legendre.leggauss(5)
    half = 0.5 * np.diff(edges)
    grid = np.union1d((edges[:-1, None] + half[:, None] * (1 + nodes)).ravel(), edges)
    excess, states = exact(problem, grid)
    inner = states[~np.isin(grid, edges)]
    values = [problem.network.with_weights(unflatten(y, problem.network.dims)).lambda_min_T for y in inner]
    true = np.append(0.0, np.cumsum(half * (np.reshape(values, (-1, 5)) @ gauss)))
    roots = np.sqrt(excess[np.isin(grid, edges)])
    assert (roots <= np.sqrt(found.bound) * (1 + 1e-13) + 1e-12).all()  # the exact flow itself is known to 1e-13
    assert (np.abs(true - found.integral) <= found.error + 1e-13 * true).all()


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
def test_rounding_does_not_count_as_positive(size):
    """W = 0 and the target in the kernel of what can move: the loss stays, and lambda_min(T) is 0."""
    R, S = rotation(0.7), rotation(0.3)
    weights = R @ np.diag([size, 0.0]) @ S, S.T @ np.diag([size, 1.0]), np.zeros((2, 2))
    assert Certain(1.0)(weights) == 0.0
    wide = weights[0], weights[1], np.zeros((2, 60))
    assert Certain(1.0)(wide) == 0.0
    if size == 1.0:
        problem = fs.Problem(fs.SquaredLoss(np.outer(R[:, 1], [0.6, 0.8])), fs.LinearNetwork(weights))
        found = fs.a_posteriori(fs.simulate(problem, t1=20.0))
        assert found.least == found.alpha == 0.0
        assert found.integral[-1] <= 1e-16
        assert found.bound == pytest.approx(0.5, rel=1e-14)


@pytest.mark.parametrize("dense", [100, 1], ids=["all eigenvalues", "Cholesky"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), dims=st.sampled_from([(2, 3, 2), (2, 2, 2, 2), (1, 4, 3), (2, 3, 2, 2, 1)]))
def test_no_certain_value_is_above_the_true_one(seed, dims, dense, monkeypatch):
    """Entries from 1e-6 to 1e6, against multiple precision; one network after the other, as along a path."""
    monkeypatch.setattr(eigenvalues, "DENSE", dense)
    rng = np.random.default_rng(seed)
    certain = Certain(1.0)
    for size in (0.0, 3.0, 6.0):
        weights = [rng.standard_normal(s) * 10.0 ** rng.uniform(-size, size, s) for s in pairwise(dims)]
        network = fs.LinearNetwork(tuple(weights))
        assert certain(weights) <= fs.exact.least_eigenvalue_of_T(network)


@pytest.mark.parametrize("dims", [(2, 3, 2), (3, 4, 5, 2), (1, 4, 3), (11, 14, 12, 11), (12, 12, 12, 12)])
def test_the_certain_value_is_near_the_true_one(dims, rng):
    certain = Certain(1.0)
    network = fs.fan_in(dims, seed=0)
    slack = 1e-12 * network.size * np.linalg.norm(network.jacobian_factors, 2) ** 2
    for _ in range(4):
        value = certain(network.weights)
        assert network.lambda_min_T - slack <= value <= network.lambda_min_T + 1e-3 * slack
        network = network.with_weights([W + 0.01 * rng.standard_normal(W.shape) for W in network.weights])


def test_a_wrong_eigenvector_to_begin_with_does_not_mislead():
    """At an eigenvector of another eigenvalue a search stands still; what Cholesky refuses is computed densely."""
    network = fs.fan_in((11, 14, 12, 11), seed=0)
    values, vectors = np.linalg.eigh(network.dense_T())
    certain = Certain(1.0)
    certain.vector = vectors[:, 40]
    assert certain(network.weights) == pytest.approx(values[0], rel=1e-9)


@pytest.mark.parametrize("dims", [(2, 4, 3), (2, 4, 5, 3), (1, 3, 3, 3, 2)])
def test_sensitivity_bounds_the_change_of_sigma_min(dims, rng):
    network = fs.fan_out(dims, seed=1)
    for size in (1e-6, 1e-2, 0.5):
        kappa = sensitivity(network.weights, 1.0, size)
        for _ in range(30):
            step = [rng.standard_normal(W.shape) for W in network.weights]
            length = np.sqrt(sum((D * D).sum() for D in step))
            other = network.with_weights([W + size / length * D for W, D in zip(network.weights, step, strict=True)])
            assert abs(other.lambda_min_T**0.5 - network.lambda_min_T**0.5) <= kappa * size + 1e-13


def integral_of(function, rtol, wanted):
    seen = []
    integral = Integral(lambda t: seen.append(t) or function(t), 0.0, lambda times, end: None)
    integral.add(0.0, 1.0, rtol, np.array(wanted))
    return np.array(integral.at), np.array(integral.errors), len(set(seen))


@pytest.mark.parametrize("rtol", [1e-4, 1e-8, 1e-11])
def test_quadrature_of_smooth_and_kinked_functions(rtol):
    wanted = np.array([0.1, 0.35, 0.7, 1.0])
    found, errors, count = integral_of(lambda t: np.exp(-3 * t), rtol, wanted)
    assert (np.abs(found - (1 - np.exp(-3 * wanted)) / 3) <= errors + 1e-15).all()
    assert errors[-1] <= 2 * rtol
    assert count <= 65
    found, errors, count = integral_of(lambda t: abs(t - 0.3), rtol, wanted)
    true = np.where(wanted < 0.3, 0.3 * wanted - wanted**2 / 2, 0.045 + (wanted - 0.3) ** 2 / 2)
    assert (np.abs(found - true) <= errors + 1e-15).all()
    assert errors[-1] <= 5 * rtol
    assert count <= 400


def test_the_solvers_error_and_the_compressions_are_in_the_error():
    problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_out((3, 60, 90, 2), seed=0))
    loose, tight = (fs.simulate(problem, fs.Scipy("DOP853", rtol, rtol / 100), t1=0.05) for rtol in (1e-3, 1e-8))
    wide, narrow = fs.a_posteriori(loose), fs.a_posteriori(tight)
    assert wide.error[-1] > 100 * narrow.error[-1]
    assert abs(wide.integral[-1] - narrow.integral[-1]) <= wide.error[-1]
    compressed = fs.simulate(problem, fs.Scipy(), t1=0.05, reduce="always")
    assert compressed.reduction.network is not None
    found = fs.a_posteriori(compressed)
    assert abs(found.integral[-1] - narrow.integral[-1]) <= found.error[-1] + narrow.error[-1]
    forged = dataclasses.replace(
        compressed, reduction=dataclasses.replace(compressed.reduction, error=compressed.error_estimate + 1e-3)
    )
    assert fs.a_posteriori(forged).error[-1] > found.error[-1] + 1e-3 * 0.05 * found.least**0.5


def test_many_outputs_take_few_eigenproblems(monkeypatch):
    """n m = 144: a few hundred for the whole curve at the default rtol."""
    count, call = [0], Certain.__call__

    def counted(self, weights):
        count[0] += 1
        return call(self, weights)

    monkeypatch.setattr(Certain, "__call__", counted)
    rng = np.random.default_rng(0)
    problem = fs.Problem(fs.SquaredLoss(rng.standard_normal((12, 12))), fs.fan_out((12, 12, 12, 12), seed=1))
    found = fs.a_posteriori(fs.simulate(problem, t1=0.5, save_points=11))
    assert count[0] < 500
    assert 0 < found.error[-1] < 1e-4 * found.integral[-1]


def test_a_run_that_took_no_step_is_refused():
    problem = fs.Problem(fs.SquaredLoss([[1.0]]), fs.LinearNetwork(([[1.0]], [[0.5]])))
    with pytest.raises(InputError, match="must have taken a step"):
        fs.a_posteriori(fs.simulate(problem, t1=1.0, stop_loss=2.0))


@pytest.mark.parametrize("status", ["interrupted", "wall_limit", "diverged"])
def test_what_was_integrated_before_an_early_end_still_bounds_the_loss(status, monkeypatch):
    problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_out((3, 6, 5, 2), seed=0))
    run = fs.simulate(problem, t1=0.5)
    whole, told = fs.a_posteriori(run), []
    solve = Tight.end
    reason = {"interrupted": KeyboardInterrupt, "wall_limit": WallLimit, "diverged": IntegrationFailure}

    def ended(self, t, state, t1, deadline):
        if t1 > 0.3:
            raise reason[status]
        return solve(self, t, state, t1, deadline)

    monkeypatch.setattr(Tight, "end", ended)
    part = fs.a_posteriori(run, progress=lambda *at: told.append(at))
    assert (whole.status, part.status) == ("completed", status)
    assert status in repr(part)
    reached = np.searchsorted(run.time, told[-1][0])
    assert 0.1 < run.time[reached] <= 0.3
    assert part.integral[: reached + 1] == pytest.approx(whole.integral[: reached + 1], rel=1e-12)
    assert (part.bound[reached:] == part.bound[reached]).all()
    assert (part.bound >= whole.bound * (1 - 1e-12)).all()
    assert part.least == 0.0


def test_a_wall_limit_ends_it_at_once():
    problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_out((3, 6, 5, 2), seed=0))
    found = fs.a_posteriori(fs.simulate(problem, t1=0.5), wall_limit=1e-9)
    assert found.status == "wall_limit"
    assert found.bound == pytest.approx(found.bound[0])
