"""Backward differentiation with conjugate gradients: its formulas, its solver, and its runs against closed forms."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from numpy.polynomial import Polynomial
from test_stiff import TIMES, stiff, truth

import flowsim as fs
from flowsim.dynamics import Motion
from flowsim.errors import InputError
from flowsim.methods import krylov_bdf_steps, linearized
from flowsim.methods.krylov_bdf_steps import ALPHA, ERROR, KrylovBDFSteps, _newton, _slopes_squared
from flowsim.methods.linearized import conjugate_gradients, has_few_coordinates
from flowsim.methods.steps import IntegrationFailure

ORDERS = [1, 2, 3, 4, 5]


def scalar(s=2.0, u0=0.3):
    """W_1 = W_2 = a, and a^2 is fs.exact.saxe_mode."""
    return fs.Problem(fs.SquaredLoss([[s]]), fs.LinearNetwork(([[u0**0.5]], [[u0**0.5]])))


def steps_of(problem, rtol=1e-6, atol=None, t1=1.0):
    method = fs.KrylovBDF(rtol, rtol / 100 if atol is None else atol)
    return KrylovBDFSteps(Motion(problem), method, 0.0, problem.initial_state, t1)


def by(problem, rtol, t1, **options):
    return fs.simulate(problem, fs.KrylovBDF(rtol, rtol / 100), t1=t1, **options)


def wide(k=20.0, dims=(2, 30, 30, 2), seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((20, dims[0])) * np.geomspace(1, k, dims[0]) / 4
    return fs.Problem(fs.LeastSquares(X, X @ rng.standard_normal((dims[0], dims[-1]))), fs.fan_in(dims, seed=seed))


def differences(p, order, h):
    """D_0 .. D_order at 0, of values h apart."""
    values = p(-h * np.arange(order, -1.0, -1.0))
    return np.array([np.diff(values, j)[-1] for j in range(order + 1)])


# ------------------------------------------------------------------------------------------------------- its formulas


@pytest.mark.parametrize("order", ORDERS)
def test_a_step_of_each_order_errs_by_what_it_estimates(order):
    """From exact differences: by h^(k+1), and ERROR / ALPHA times the exact D_(k+1) to first order."""

    def step(h):
        steps = steps_of(scalar(2.0, 1e-9), 1e-13, 0.0)
        exact = np.sqrt(fs.exact.saxe_mode(0.5 + h * np.arange(-order, 2.0), 2.0, 1e-9))
        past = exact[:-1]
        for j in range(order + 1):
            steps.D[j] = np.diff(past, j)[-1]
        steps.order, steps.h, steps.t = order, h, 0.5
        d = steps._solve()
        return exact[-1] - (steps.predicted + d)[0], d[0]

    h = {1: 1e-3, 2: 4e-3, 3: 1e-2, 4: 1e-2, 5: 4e-2}[order]
    (coarse, _), (fine, difference) = step(h), step(h / 2)
    assert np.log2(coarse / fine) == pytest.approx(order + 1, abs=0.25)
    assert -fine * ALPHA[order] == pytest.approx(ERROR[order] * (difference + fine), rel=0.05)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("factor", [0.2, 0.9, 1.0, 3.7])
def test_differences_of_other_steps_are_those_of_the_same_polynomial(order, factor):
    p = Polynomial(np.random.default_rng(order).standard_normal(order + 1))
    steps = steps_of(scalar())
    steps.order, steps.h = order, 0.1
    steps.D[: order + 1] = differences(p, order, 0.1)[:, None]
    steps._rescale(factor)
    assert steps.h == pytest.approx(0.1 * factor)
    assert steps.equal_steps == 0
    assert steps.D[: order + 1, 1] == pytest.approx(differences(p, order, 0.1 * factor), abs=1e-11)


@pytest.mark.parametrize("order", [*ORDERS, 6])
def test_the_polynomial_of_differences_and_the_square_of_its_slopes(order):
    p, h = Polynomial(np.random.default_rng(order).standard_normal(order + 1)), 0.7
    D, s = differences(p, order, h), np.array([-1.0, -0.3, 0.0, 0.4])
    assert sum(C(s) * d for C, d in zip(_newton(order), D, strict=True)) == pytest.approx(p(s * h), abs=1e-12)
    square = (p.deriv() ** 2).integ()
    assert D[1:] @ _slopes_squared(order) @ D[1:] / h == pytest.approx(square(0.0) - square(-h), rel=1e-9)


def test_the_equations_of_a_step_are_solved_to_a_share_of_the_tolerance(monkeypatch):
    steps = steps_of(wide(), 1e-6)
    while steps.t < 0.3:
        steps.advance()
    steps._rescale(1.5)
    d = steps._solve().copy()
    monkeypatch.setattr(krylov_bdf_steps, "LINEAR", 1e-6)
    monkeypatch.setattr(krylov_bdf_steps, "SOLVED", 1e-6)
    monkeypatch.setattr(krylov_bdf_steps, "MOST_NEWTON", 20)
    assert steps._size(d - steps._solve()) < 0.1
    assert steps._size(d) > 1
    monkeypatch.setattr(krylov_bdf_steps, "MOST_NEWTON", 1)
    assert steps._solve() is None


def test_orders_rise_to_five_and_steps_of_one_size_are_kept():
    steps, orders, sizes = steps_of(scalar(), 1e-9, t1=3.0), [], []
    while steps.t < steps.t1:
        steps.advance()
        orders.append(steps.order)
        sizes.append(steps.h)
    assert set(orders) == set(ORDERS)
    assert np.mean(np.array(sizes[1:]) == sizes[:-1]) > 0.79


# --------------------------------------------------------------------------------------------------------- its solver


@pytest.mark.parametrize("share", [np.inf, 0.1, 1e-3])
@pytest.mark.parametrize("allowed", [1e-2, 1e-6])
@pytest.mark.parametrize(("stiffness", "times"), [(10.0, 1), (1e6, 4)])
def test_conjugate_gradients_err_by_what_is_allowed(stiffness, times, allowed, share):
    """Where eigenvalues spread evenly over decades, by a few times that."""
    rng = np.random.default_rng(0)
    V, _ = np.linalg.qr(rng.standard_normal((40, 40)))
    A = V * np.append(np.ones(25), 1 + np.geomspace(0.1, stiffness, 15)) @ V.T
    products = []

    def product(v):
        products.append(v)
        return A @ v

    for b in rng.standard_normal((5, 40)) * [[1e-3], [1.0], [1.0], [30.0], [1e3]]:
        x, true = conjugate_gradients(product, b, allowed, share), np.linalg.solve(A, b)
        error = (x - true) @ A @ (x - true)
        assert error**0.5 <= times * allowed
        assert share == np.inf or error <= (times * share) ** 2 * (true @ A @ true)
    assert len(products) < 5 * 60


def test_conjugate_gradients_end_before_they_are_exact():
    """A hundred different eigenvalues: a loose solution is had in a few products, one of no error in many."""
    A, b = np.linspace(1, 50, 100), np.ones(100)
    counts = []
    for allowed in (1.0, 1e-2, 1e-8):
        products = []
        assert conjugate_gradients(lambda v, p=products: p.append(v) or A * v, b, allowed) is not None
        counts.append(len(products))
    assert counts[0] < counts[1] < counts[2]
    assert counts[0] < 10
    products, A, b = [], np.geomspace(1, 1e6, 60), np.geomspace(1, 1e3, 60)  # the residual is large much longer
    assert conjugate_gradients(lambda v: products.append(v) or A * v, b, 1.0) is not None
    assert len(products) < 90


def test_conjugate_gradients_know_what_they_cannot_solve(monkeypatch):
    b = np.ones(3)
    assert conjugate_gradients(lambda v: np.array([1.0, 2.0, -0.5]) * v, b, 1e-8) is None
    assert conjugate_gradients(lambda v: 0 * v, b, 1e-8) is None
    assert conjugate_gradients(lambda v: np.nan * v, b, 1e-8) is None
    assert conjugate_gradients(lambda v: np.nan * v, 0 * b, 0.0, 0.1).tolist() == [0, 0, 0]
    monkeypatch.setattr(linearized, "MOST_PRODUCTS", 2)
    assert conjugate_gradients(lambda v: np.array([1.0, 20.0, 300.0]) * v, b, 1e-8) is None


def test_conjugate_gradients_begin_with_the_best_multiple(rng):
    """What lies along the direction alone is solved by one product; an indefinite matrix is seen there too."""
    A, along = np.array([1.0, 1.0, 1e6]), np.array([3.0, -4.0, 0.0])
    products = []
    x = conjugate_gradients(lambda v: products.append(1) or A * v, 2 * along, 1e-12, 0.1, along)
    assert x == pytest.approx(2 * along, rel=1e-15)
    assert len(products) == 1
    assert conjugate_gradients(lambda v: -v, 2 * along, 1e-12, 0.1, along) is None
    b, anywhere = rng.standard_normal((2, 3))
    assert conjugate_gradients(lambda v: A * v, b, 1e-12, 1e-12, anywhere) == pytest.approx(b / A, rel=1e-9)


# ----------------------------------------------------------------------------------------------------------- its runs


@pytest.mark.parametrize("rtol", [1e-3, 1e-5, 1e-7, 1e-9])
def test_a_mode_is_learned_as_in_closed_form(rtol):
    run = by(scalar(2.0, 1e-3), rtol, 6.0, save_points=40)
    error = np.abs(run.products[:, 0, 0] - fs.exact.saxe_mode(run.time, 2.0, 1e-3)).max()
    assert 0.01 * rtol < error < 100 * rtol
    assert np.abs(run.energy_residual).max() < 40 * rtol


@pytest.mark.parametrize("rtol", [1e-4, 1e-8])
def test_a_matrix_is_learned_as_in_closed_form(rtol):
    network, Y = fs.lambda_balanced((4, 3, 3), imbalance=1.5, seed=0), np.ones((4, 3))
    run = by(fs.Problem(fs.SquaredLoss(Y), network), rtol, 4.0, save_points=30)
    assert np.abs(run.products - fs.exact.riccati(network, Y, run.time)).max() < 30 * rtol
    assert run.imbalance_drift.max() < 30 * rtol


@pytest.mark.parametrize("k", [30.0, 1000.0])
def test_a_stiff_flow_takes_few_steps(k):
    problem = stiff(k)
    run, true = by(problem, 1e-4, 3.0, save_points=TIMES), truth(problem, TIMES)
    assert run.status == "completed"
    assert run.loss[:6] == pytest.approx(true[:6], rel=0.05, abs=1e-4)
    assert run.stats["steps"] < 120
    assert run.stats["rhs_evaluations"] < 3000
    assert np.abs(run.energy_residual).max() < 20e-4


def test_between_its_steps_there_are_no_spikes():
    """A stiff component of 1e-5 in the weights would add 0.4 to the gradient's norm."""
    problem, times = stiff(200.0), np.linspace(0.1, 2.0, 150)
    run = by(problem, 1e-6, 2.0, save_points=times)
    tight = fs.simulate(problem, fs.Scipy("Radau", 1e-9, 1e-11), t1=2.0, save_points=times)
    assert run.gradient_norm == pytest.approx(tight.gradient_norm, rel=0.05, abs=0.06)
    assert np.abs(run.products - tight.products).max() < 1e-5


def test_thin_coordinates_change_nothing(monkeypatch):
    problem = wide()
    assert has_few_coordinates(Motion(problem))
    thin = by(problem, 1e-6, 5.0, save_points=9, reduce="never")
    monkeypatch.setattr(linearized, "has_few_coordinates", lambda motion: False)
    whole = by(problem, 1e-6, 5.0, save_points=9, reduce="never")
    assert thin.stats["steps"] == pytest.approx(whole.stats["steps"], rel=0.03)
    assert thin.products == pytest.approx(whole.products, abs=1e-6)
    assert thin.checkpoints.states == pytest.approx(whole.checkpoints.states, abs=1e-6)
    assert 1.4 * thin.stats["rhs_evaluations"] < whole.stats["rhs_evaluations"]  # a product is one gradient, or two


@pytest.mark.parametrize(
    ("dims", "decay", "thin"),
    [((2, 30, 30, 2), 0.0, True), ((2, 30, 30, 2), 0.1, False), ((2, 4, 2), 0.0, False), ((5, 9, 5), 0.0, False)],
)
def test_thin_coordinates_are_for_thin_products_without_decay(dims, decay, thin):
    problem = fs.Problem(fs.SquaredLoss(np.ones((dims[0], dims[-1]))), fs.fan_in(dims, seed=0), weight_decay=decay)
    assert has_few_coordinates(Motion(problem)) is thin


def test_many_blocks_of_weights_are_one(monkeypatch):
    one = by(wide(), 1e-6, 1.0, reduce="never")
    monkeypatch.setattr(krylov_bdf_steps, "BLOCK", 100)
    many = by(wide(), 1e-6, 1.0, reduce="never")
    assert many.step_time == pytest.approx(one.step_time, rel=1e-6)
    assert many.steps.dissipated == pytest.approx(one.steps.dissipated, rel=1e-8)


def test_compressed_and_full_runs_agree():
    problem = wide(dims=(3, 40, 50, 2))
    small, full = (by(problem, 1e-7, 2.0, save_points=9, reduce=reduce) for reduce in ("always", "never"))
    assert small.reduction.network is not None
    assert small.products == pytest.approx(full.products, abs=1e-5)


@dataclass(frozen=True)
class Twice(fs.Dynamics):
    """dW_l/dt = -2 dL/dW_l: L falls by half the square of the slopes."""

    structure = "gradient"

    def velocity(self, problem, t, state):
        _, gradients = problem.gradients(state)
        return [-2 * G for G in gradients]

    def power(self, t):
        return 0.5 + 0 * t


@pytest.mark.parametrize("dynamics", [None, fs.ModifiedFlow(0.02), Twice()])
@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_other_gradient_flows(dynamics, decay):
    rng = np.random.default_rng(0)
    problem = fs.Problem(
        fs.SquaredLoss(rng.standard_normal((3, 2))), fs.fan_in((3, 6, 2), seed=1), weight_decay=decay
    )
    run = by(problem, 1e-7, 3.0, save_points=9, dynamics=dynamics)
    tight = fs.simulate(problem, fs.Scipy("DOP853", 1e-11, 1e-13), t1=3.0, save_points=9, dynamics=dynamics)
    assert run.status == "completed"
    assert run.products == pytest.approx(tight.products, abs=3e-6)
    assert np.abs(run.energy_residual).max() < 1e-5


@pytest.mark.parametrize("size", [1e-60, 1e-9, 1e9, 1e40])
def test_the_size_of_the_weights_is_none_of_its_business(size):
    """W_l -> c W_l, Y -> c^2 Y, t -> t / c^2 is the same flow, with atol 0 to the last step."""
    one, other = scalar(), scalar(2.0 * size**2, 0.3 * size**2)
    first = fs.simulate(one, fs.KrylovBDF(1e-6, 0.0), t1=2.0)
    scaled = fs.simulate(other, fs.KrylovBDF(1e-6, 0.0), t1=2.0 / size**2)
    assert scaled.status == "completed"
    assert size < 1 or scaled.stats["steps"] < first.stats["steps"] + 12  # of small ones the first step is very short
    assert scaled.products[-1] / size**2 == pytest.approx(first.products[-1], rel=3e-5)


@pytest.mark.parametrize("t1", [1e-300, 1e-200, 1e-20])
def test_tiny_spans_end_where_they_shall(t1):
    run = by(scalar(), 1e-6, t1, save_points=3)
    assert run.status == "completed"
    assert run.time[-1] == t1
    assert run.products[-1] == pytest.approx(run.products[0], rel=1e-12)


def test_zero_weights_stay():
    weights = tuple(np.zeros(shape) for shape in pairwise((2, 30, 30, 1)))
    for reduce in ("never", "always"):
        run = by(fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.LinearNetwork(weights)), 1e-4, 1.0, reduce=reduce)
        assert run.status == "completed"
        assert "stationary" in run.detail
        assert run.weights_change == 0


def test_a_saddle_is_left_when_the_flow_leaves_it():
    """The growing modes make I - h J indefinite where steps are long: they are shortened."""
    run = by(scalar(2.0, 1e-12), 1e-7, 12.0, save_points=60)
    assert run.products[:, 0, 0] == pytest.approx(fs.exact.saxe_mode(run.time, 2.0, 1e-12), rel=1e-2, abs=1e-4)
    assert run.stats["rejected_steps"] > 0


# ---------------------------------------------------------------------------------------- its steps, and where they end


@pytest.mark.parametrize("ulps", [1, 3, 8, 30])
def test_a_rest_of_a_few_units_in_the_last_place_is_a_step(ulps):
    start = 1.0 - ulps * 2.0**-53
    steps = KrylovBDFSteps(Motion(scalar()), fs.KrylovBDF(), start, scalar().initial_state, 1.0)
    while steps.t < steps.t1:
        segment = steps.advance()
    assert steps.t == segment.times[-1] == 1.0


def test_a_first_step_that_is_too_long_is_rejected():
    problem = scalar()
    steps = steps_of(problem, 1e-6, t1=1e-3)
    while steps.t < steps.t1:
        steps.advance()
    assert steps.counts.rejected_steps == 0
    steps.resume(0.0, problem.initial_state, 3.0, 3.0)
    assert steps.h == 3.0
    first = steps.advance()
    assert first.times[-1] < 0.1
    assert steps.counts.rejected_steps >= 2
    while steps.t < steps.t1:
        last = steps.advance()
    assert last.products[-1, 0, 0] == pytest.approx(float(fs.exact.saxe_mode(3.0, 2.0, 0.3)), abs=1e-5)


def test_dense_output_of_a_step_that_is_over_is_refused():
    steps = steps_of(scalar(), 1e-6)
    first = steps.advance()
    middle = np.array([0.5 * first.times[-1]])
    ends = first.evaluate(first.times)
    first.evaluate(middle)
    second = steps.advance()
    with pytest.raises(IntegrationFailure, match="after the next"):
        first.evaluate(middle)
    assert (first.evaluate(first.times) == ends).all()
    assert (second.evaluate(second.times)[0] == ends[1]).all()
    middle = np.array([second.times.mean()])
    second.evaluate(middle)
    steps._solve = lambda: None  # no step more: the differences are changed all the same
    with pytest.raises(IntegrationFailure, match="no step size"):
        steps.advance()
    with pytest.raises(IntegrationFailure, match="after the next"):
        second.evaluate(middle)


class Walled:
    """1/2 ||W - 1||^2, known where all W < 0.7."""

    shape, minimum = (2, 1), 0.0

    def value(self, W):
        return 0.5 * np.sum((W - 1) ** 2) if (W < 0.7).all() else np.nan

    def gradient(self, W):
        return W - 1.0 if (W < 0.7).all() else np.full_like(W, np.nan)


@pytest.mark.parametrize("dims", [(2, 4, 1), (2, 60, 60, 1)])
def test_a_loss_that_becomes_nan_is_met_and_not_passed(dims):
    run = by(fs.Problem(Walled(), fs.fan_in(dims, seed=0, scale=0.3)), 1e-6, 20.0, reduce="never")
    assert run.status == "diverged"
    assert "no step size was accepted" in run.detail
    assert 0.699 < run.products[-1].max() < 0.7
    assert np.isfinite(run.excess).all()


def test_a_run_goes_on_where_it_ended():
    problem = wide()
    half, whole = by(problem, 1e-7, 1.0, save_points=5), by(problem, 1e-7, 2.0, save_points=5)
    both = fs.resume(half, t1=2.0, save_points=5)
    assert both.status == "completed"
    assert both.products[-1] == pytest.approx(whole.products[-1], abs=1e-5)
    assert both.stats["steps"] > half.stats["steps"]


def test_what_it_is_not_made_for_is_refused():
    with pytest.raises(InputError, match="varies its step and order"):
        fs.KrylovBDF(step_size=0.1)
    with pytest.raises(InputError, match="rtol"):
        fs.KrylovBDF(rtol=1e-15)

    class General(Twice):
        structure = "general"

    for dynamics in (fs.HeavyBall(1.0), General()):
        with pytest.raises(InputError, match="symmetric Jacobian"):
            fs.simulate(scalar(), "krylov-bdf", t1=1.0, dynamics=dynamics)


def ill_conditioned(k, seed=0):
    """X^T X of condition number k^2."""
    X, Y = np.diag(np.geomspace(1.0, k, 12)), np.random.default_rng(seed).standard_normal((12, 3)) / k**0.5
    return fs.Problem(fs.LeastSquares(X, X @ Y), fs.fan_in((12, 30, 30, 3), seed=0))


def test_at_rest_among_minima_it_stays_and_costs_little():
    """Errors of conjugate gradients in directions without curvature add up: nothing drives them back."""
    run = by(ill_conditioned(1e3), 1e-6, 1e6, save_points=3)
    assert run.status == "completed"
    assert run.stats["rhs_evaluations"] < 20_000
    size = np.linalg.norm(run.checkpoints.states[-1])
    allowed = run.method.step_tolerance(size, run.motion.size)
    assert run.imbalance_change.max() < 8**0.5 * size * allowed  # one tolerance of error at most


def test_steps_whose_equations_are_not_solved_are_not_tried_at_once_again(monkeypatch):
    monkeypatch.setattr(linearized, "MOST_PRODUCTS", 14)
    patient = by(ill_conditioned(30.0), 1e-6, 5.0)
    monkeypatch.setattr(krylov_bdf_steps, "RELAXED", np.inf)
    at_once = by(ill_conditioned(30.0), 1e-6, 5.0)
    assert patient.status == at_once.status == "completed"
    assert 2 * patient.stats["rejected_steps"] < at_once.stats["rejected_steps"]
