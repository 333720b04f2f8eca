"""Integrators that keep the imbalance to round-off: Gauss-Legendre collocation and projection."""

import numpy as np
import pytest
from conftest import Huber, random_problem
from hypothesis import given, settings
from hypothesis import strategies as st

import flowsim as fs
from flowsim.methods import gauss_legendre_steps, projected_steps
from flowsim.methods.rkc_steps import coefficients, stages_for

KEEPERS = ["gauss-legendre-1", "gauss-legendre-2", "gauss-legendre-4", "projected-rk45", "projected-dop853"]


@pytest.mark.parametrize("name", KEEPERS)
@pytest.mark.parametrize("rtol", [1e-3, 1e-8])
@pytest.mark.parametrize("problem", ["paper-right", "homogeneous"])
def test_named_problems_do_not_drift(name, rtol, problem):
    if name == "gauss-legendre-1":
        rtol = max(rtol, 1e-5)
    named = fs.problem_named(problem)
    method = fs.method_named(name, rtol=rtol, atol=rtol / 100)
    run = fs.simulate(named.problem, method, t1=named.t1 / 10, save_points=21)
    assert run.status == "completed"
    assert run.imbalance_drift.max() < 1e-12


@settings(max_examples=15)
@given(
    depth=st.integers(2, 5),
    seed=st.integers(0, 10**6),
    name=st.sampled_from(KEEPERS),
    rtol=st.sampled_from([1e-2, 1e-4]),
)
def test_random_problems_do_not_drift(depth, seed, name, rtol):
    rng = np.random.default_rng(seed)
    dims = (int(rng.integers(1, 4)), *map(int, rng.integers(3, 9, depth - 1)), int(rng.integers(1, 4)))
    problem = random_problem(rng, dims, float(rng.choice([0.3, 1.0])))
    run = fs.simulate(problem, fs.method_named(name, rtol=rtol, atol=rtol / 100), t1=1.0, save_points=7)
    assert run.imbalance_drift.max() < 1e-12


def test_a_users_own_loss_does_not_drift():
    problem = fs.Problem(Huber(), fs.fan_in((2, 6, 5, 1), seed=0))
    for name in KEEPERS:
        run = fs.simulate(problem, fs.method_named(name, rtol=1e-4, atol=1e-6), t1=2.0, save_points=7)
        assert run.imbalance_drift.max() < 1e-12


def test_lanczos_and_dense_eigenvectors_give_the_same_flow(monkeypatch):
    problem = fs.problem_named("staircase").problem
    small = fs.Problem(problem.loss, fs.fan_in((10, 12, 10), seed=0, scale=1e-2))
    method = fs.GaussLegendre(3, 1e-6, 1e-8)
    dense = fs.simulate(small, method, t1=3.0, save_points=7)
    monkeypatch.setattr(gauss_legendre_steps, "DENSE_EIGENVECTORS", 0)
    lanczos = fs.simulate(small, method, t1=3.0, save_points=7)
    assert np.abs(dense.product_at(3.0) - lanczos.product_at(3.0)).max() < 1e-6
    assert abs(lanczos.stats["steps"] - dense.stats["steps"]) <= 1  # shorter without a Jacobian
    assert max(dense.imbalance_drift.max(), lanczos.imbalance_drift.max()) < 1e-12


def test_factored_and_iterated_projections_agree(monkeypatch):
    problem = random_problem(np.random.default_rng(0), (3, 8, 7, 2))
    method = fs.Projected(fs.Scipy("RK45", 1e-4, 1e-6))
    factored = fs.simulate(problem, method, t1=1.0, save_points=7)
    monkeypatch.setattr(projected_steps, "MOST_FACTORED", 0)
    iterated = fs.simulate(problem, method, t1=1.0, save_points=7)
    assert max(factored.imbalance_drift.max(), iterated.imbalance_drift.max()) < 1e-12
    assert np.abs(factored.product_at(1.0) - iterated.product_at(1.0)).max() < 1e-5


@pytest.mark.parametrize("stages", [1, 2])
def test_steps_of_gauss_legendre_below_a_rounding_of_the_weights_add_up(stages):
    """From w_1 = w_2 = 1 and a residual of 1e-13: d(residual)/dt = -2 residual, half of it in 500 steps of which the
    greatest is a tenth of a rounding of a weight."""
    target, count = 1.0 + 1e-13, 500
    problem = fs.Problem(fs.SquaredLoss([[target]]), fs.LinearNetwork(([[1.0]], [[1.0]])))
    end = 0.5 * np.log(2.0)
    run = fs.simulate(problem, fs.GaussLegendre(stages, step_size=end / count), t1=end, save_points=2)
    assert target - run.product_at(end).item() == pytest.approx(0.5 * (target - 1.0), abs=1e-15)


@pytest.mark.parametrize("seed", range(3))
def test_a_projection_disturbs_the_outer_levels_of_a_core_little(seed):
    """Corrections as large there as near the ends would show in the defect, and 3 to 8 more Krylov steps be taken."""
    rng = np.random.default_rng(seed)
    problem = fs.Problem(fs.SquaredLoss(rng.standard_normal((2, 2))), fs.fan_in((2, 80, 90, 2), seed=seed))
    steps = [
        fs.simulate(problem, method, t1=0.3, save_points=11, reduce="always").reduction.network.steps
        for method in (fs.Projected(fs.Scipy("RK45", 1e-2, 1e-4)), fs.GaussLegendre(2, 1e-2, 1e-4))
    ]
    assert steps[0] <= steps[1] + 1


def test_rkc_takes_longer_steps_than_stability_lets_an_explicit_method():
    """Near the end of a stiff flow: fewer right-hand sides than RK45 at the same loose tolerance."""
    X = np.diag(10.0 ** np.linspace(0, -2, 6))
    problem = fs.Problem(fs.LeastSquares(30 * X, 30 * X @ np.ones((6, 2))), fs.fan_in((6, 12, 2), seed=0))
    runs = [
        fs.simulate(problem, method, t1=4.0, reduce="never")
        for method in (fs.RKC(1e-3, 1e-5), fs.Scipy("RK45", 1e-3, 1e-5))
    ]
    assert runs[0].stats["rhs_evaluations"] < 0.5 * runs[1].stats["rhs_evaluations"]
    assert runs[0].loss[-1] == pytest.approx(runs[1].loss[-1], abs=1e-2 * runs[1].loss[0])


@pytest.mark.parametrize("stages", [2, 3, 8, 40])
def test_rkc_is_the_method_of_its_source(stages):
    """R(z) = 1 + b (T_s(w0 + w1 z) - T_s(w0)) with w0 = 1 + (2/13) / s^2, w1 = T' / T'', b = T'' / T'^2 at w0, from
    Chebyshev series (Sommeijer, Shampine and Verwer, J. Comput. Appl. Math. 88, 1998)."""
    T = np.polynomial.Chebyshev.basis(stages)
    w0 = 1 + 2 / 13 / stages**2
    first, second = T.deriv()(w0), T.deriv(2)(w0)
    z = np.linspace(-0.65 * stages**2, 0.0, 50)
    expected = 1 + second / first**2 * (T(w0 + first / second * z) - T(w0))
    assert growth(stages, z) == pytest.approx(expected, rel=1e-9, abs=1e-11)


def growth(stages, z):
    """y_1 / y_0 of a step of RKC on y' = z y."""
    k = coefficients(stages)
    before, now = np.ones_like(z), 1 + k.first * z
    for mu, nu, mu_tilde, gamma_tilde in zip(k.mu, k.nu, k.mu_tilde, k.gamma_tilde, strict=True):
        before, now = now, (1 - mu - nu) + mu * now + nu * before + mu_tilde * z * now + gamma_tilde * z
    return now


@pytest.mark.parametrize("stages", [2, 3, 5, 10, 50])
def test_stability_of_rkc(stages):
    """|R(z)| <= 1 on its whole interval, where stages_for asks for just that many stages."""
    ends = [z for z in np.linspace(0.01, 0.66 * stages**2, 4000) if stages_for(z) <= stages]
    z = -np.array(ends)
    assert np.abs(growth(stages, z)).max() <= 1 + 1e-12
    assert -z.min() > 0.6 * (stages**2 - 1)
