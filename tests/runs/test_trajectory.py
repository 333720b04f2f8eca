"""Trajectories: weights at any time, the dataset, saving and loading."""

from functools import cache

import numpy as np
import pytest

import flowsim as fs
from flowsim.errors import InputError
from flowsim.methods import METHODS as METHODS_BY_NAME
from flowsim.methods import method_named
from flowsim.runs import encoding
from flowsim.runs import recorder as simulation
from flowsim.runs.derived import Rows, rates_seen, resolved_times


@pytest.fixture
def problem():
    X = np.random.default_rng(0).standard_normal((20, 3))
    return fs.Problem(fs.LeastSquares(X, X @ np.ones((3, 2)) + 0.1), fs.fan_in((3, 6, 5, 2), seed=3))


METHODS = [
    fs.Scipy("DOP853"),
    fs.Diffrax("Tsit5"),
    fs.GaussLegendre(3),
    fs.Projected(fs.RKC(1e-6)),
    fs.GradientDescent(1e-3),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_save_and_load(problem, method, tmp_path):
    run = fs.simulate(problem, method, t1=0.3)
    run.save(tmp_path / "run.nc")
    back = fs.load(tmp_path / "run.nc")
    assert back.method == run.method
    assert back.status == run.status
    assert back.stats == run.stats
    for name in ("time", "loss", "gradient_norm", "imbalance_drift", "step_time", "step_loss", "energy_residual"):
        assert (getattr(back, name) == getattr(run, name)).all(), name
    for t in (0.0, 0.123, 0.3):
        for W, V in zip(run.weights_at(t), back.weights_at(t), strict=True):
            assert pytest.approx(V, abs=1e-14) == W
    assert back.problem.network.origin["seed"] == 3


def test_the_dataset_has_names_and_units(problem):
    dataset = fs.simulate(problem, t1=0.1, save_points=7).dataset
    assert dict(dataset.sizes)["time"] == 7
    assert dataset.imbalance_drift.dims == ("time", "layer")
    for name in dataset.variables:
        assert dataset[name].attrs["long_name"]
    assert dataset.attrs["status"] == "completed"


def test_singular_values_of_the_product(problem):
    run = fs.simulate(problem, t1=0.3, save_points=5)
    assert (run.checkpoints.times == run.time).all()
    for t, values in zip(run.time, run.singular_values, strict=True):
        assert values == pytest.approx(np.linalg.svd(run.product_at(t), compute_uv=False), rel=1e-12)
    assert run.dataset.singular_values.dims == ("checkpoint_time", "mode")


def test_checkpoints_stay_within_their_budget(problem, monkeypatch):
    dense = fs.simulate(problem, t1=0.3)
    monkeypatch.setattr(simulation, "CHECKPOINT_BYTES", 10 * problem.initial_state.nbytes)
    sparse = fs.simulate(problem, t1=0.3)
    assert len(sparse.checkpoints.times) <= 12 < len(dense.checkpoints.times) == 101
    for t in (0.0, 0.0517, 0.2, 0.3):
        assert np.abs(sparse.product_at(t) - dense.product_at(t)).max() < 1e-7


def test_weights_outside_the_run_are_refused(problem):
    run = fs.simulate(problem, t1=0.1)
    for t in (-0.1, 0.2, float("nan")):
        with pytest.raises(InputError, match="simulated interval"):
            run.weights_at(t)


def test_a_users_own_loss_is_asked_for(tmp_path):
    class Plain:
        shape = (1, 1)

        def value(self, W):
            return ((W - 1) ** 2).sum()

        def gradient(self, W):
            return 2 * (W - 1)

    run = fs.simulate(fs.Problem(Plain(), fs.fan_in((1, 4, 4, 1), seed=0)), t1=0.1)
    run.save(tmp_path / "run.nc")
    back = fs.load(tmp_path / "run.nc")
    assert (back.loss == run.loss).all()
    with pytest.raises(InputError, match="load"):
        back.weights_at(0.0123)
    again = fs.load(tmp_path / "run.nc", loss=Plain())
    assert again.weights_at(0.0123)[0] == pytest.approx(run.weights_at(0.0123)[0], abs=1e-12)


def test_files_that_are_no_runs_are_refused(tmp_path):
    for name, content in (("none.nc", None), ("text.nc", b"hello"), ("short.nc", b"\x89HDF\r\n\x1a\n" + b"0" * 50)):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=r"does not exist|damaged"):
            fs.load(path)


def test_a_newer_file_is_refused(problem, tmp_path, monkeypatch):
    path = tmp_path / "run.nc"
    with monkeypatch.context() as patch:
        patch.setattr(encoding, "SCHEMA", 2)
        fs.simulate(problem, t1=0.1).save(path)
    with pytest.raises(InputError, match="schema 2, but this flowsim reads up to 1; update flowsim"):
        fs.load(path)


@pytest.mark.parametrize("name", [name for name in METHODS_BY_NAME if name != "gd"])
def test_every_method_says_where_it_comes_from(name):
    method = fs.method_named(name, step_size=None if METHODS_BY_NAME[name].kind.adaptive else 0.1)
    assert len(fs.citation(method)) > len(fs.citation())


def test_what_to_cite(problem):
    text = fs.simulate(problem, "dop853", t1=0.1).citation()
    assert "Min and Ren" in text
    assert fs.__version__ in text
    assert "N{\\o}rsett" in text
    assert text.count("@") == 4


def test_a_truncated_run_is_refused(problem, tmp_path):
    path = tmp_path / "run.nc"
    fs.simulate(problem, t1=0.1).save(path)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(InputError, match="damaged"):
        fs.load(path)


def test_a_full_disk(problem, disk):
    place, _ = disk
    run = fs.simulate(problem, t1=0.1, save_points=2000)
    with pytest.raises(InputError, match=r"run\.nc could not be written: No space left on device"):
        run.save(place / "run.nc")
    assert not list(place.iterdir())


def test_the_summary_names_what_matters(problem):
    text = fs.simulate(problem, t1=0.1).summary()
    for word in ("completed", "Auto", "drift", "energy", "(3, 6, 5, 2)"):
        assert word in text


def that_falls():
    """Its loss has fallen to 1e-8 by t = 0.25, about; narrow, for projecting wide layers takes seconds."""
    return fs.Problem(fs.SquaredLoss(np.ones((3, 1))), fs.fan_out((3, 24, 20, 1), seed=0))


@cache
def true_flow_that_falls():
    return fs.simulate(that_falls(), fs.Scipy("DOP853", 1e-12, 1e-16), t1=0.4)


@pytest.mark.parametrize("method", ["dop853", "tsit5", "radau", "gauss-legendre", "projected-rk45", "rkc", "lsoda"])
def test_beyond_its_floor_the_loss_is_not_taken_for_that_of_the_flow(method):
    """Ten times the time that the loss takes to its floor changes neither the rate seen nor what it is judged by."""
    problem = that_falls()
    short, long = (fs.simulate(problem, method, t1=t1) for t1 in (0.1, 6.0))
    rate = fs.certify(problem).best.rate
    assert short.resolved_until is None
    assert "resolved" not in short.message
    assert 0.02 < long.resolved_until < 0.6
    assert f"From t = {long.resolved_until:.4g} on" in long.message
    assert rate < long.rate_seen == pytest.approx(short.rate_seen, rel=0.25)
    bounds = fs.plot(long, certificate=fs.certify(problem)).lines[1]
    assert np.nanmax(bounds.get_xdata()[np.isfinite(bounds.get_ydata())]) <= long.resolved_until


def test_a_floor_is_seen_in_nine_steps_too():
    """Gauss-Legendre's are so long that the last alone is a tenth of them."""
    problem = fs.Problem(fs.SquaredLoss(np.ones((3, 1))), fs.fan_out((3, 60, 50, 1), seed=0))
    short, long = (fs.simulate(problem, "gauss-legendre", t1=t1) for t1 in (0.05, 1.0))
    assert long.stats["steps"] < 10
    assert long.resolved_until < 0.3
    assert long.rate_seen == pytest.approx(short.rate_seen, rel=0.01)


ENDS = [
    *(("dop853", 1e-8), ("gauss-legendre", 1e-8), ("radau", 1e-6), ("projected-rk45", 1e-5)),
    *(("rk45", 1e-3), ("bdf", 1e-3), ("lsoda", 1e-3), ("rkc", 1e-4), ("rk23", 1e-4)),
]


@pytest.mark.parametrize(("name", "rtol"), ENDS)
def test_the_rate_seen_is_that_of_the_flow_wherever_the_run_ends(name, rtol):
    """Just at the floor, before it, far beyond it."""
    problem, true = that_falls(), true_flow_that_falls()
    for t1 in (0.1, 0.2, 0.4, 0.6, 1.0, 1.6):
        run = fs.simulate(problem, method_named(name, rtol=rtol, atol=rtol / 100), t1=t1)
        end = run.resolved_until or t1
        fall = np.interp(end, true.step_time, np.log(true.steps.excess[0] / true.steps.excess))
        assert run.rate_seen == pytest.approx(fall / end, rel=0.1), t1


def test_a_stiff_part_at_its_floor_leaves_the_slow_part_resolved():
    """Errors of the stiff part, the least of the loss, make the gradient ten times what the slow part has."""
    X, Y = np.diag([1.0, 1000.0**0.5]), np.array([[1.0], [2.0 * 1000.0**0.5]])
    problem = fs.Problem(fs.LeastSquares(X, Y), fs.fan_out((2, 4, 1), seed=0))
    run = fs.simulate(problem, fs.GaussLegendre(3, rtol=3e-7, atol=3e-9), t1=3.0)
    assert run.gradient_norm[-1] > 3 * fs.simulate(problem, "radau", t1=3.0).gradient_norm[-1]
    assert run.resolved_until is None
    assert run.rate_seen == pytest.approx(fs.simulate(problem, "radau", t1=3.0).rate_seen, rel=0.01)


FIXED = [fs.Diffrax("Tsit5", step_size=0.01), fs.Scipy("RK45", step_size=0.01), fs.GradientDescent(0.002)]


@pytest.mark.parametrize("beyond", [1.05, 1.4, 20.0])
@pytest.mark.parametrize("method", FIXED, ids=lambda method: method.name)
def test_what_rounding_leaves_of_a_loss_does_not_count_without_a_tolerance_either(method, beyond):
    """The loss rests at 1e-31 of its start, for a small or a great part of the run; the last that counts is right to a
    factor e."""
    problem = fs.Problem(fs.SquaredLoss([[1.0], [-2.0]]), fs.fan_in((2, 8, 8, 1), seed=0, scale=1.5))
    early = fs.simulate(problem, method, t1=1.0, reduce="never")
    assert early.resolved_until is None
    left = early.steps.excess[-1] / early.steps.excess[0]
    slope = -np.polyfit(early.steps.time[-20:], np.log(early.steps.excess[-20:]), 1)[0]
    at_rest = 1.0 + (np.log(left) - np.log(1e-31)) / slope
    late = fs.simulate(problem, method, t1=beyond * at_rest, reduce="never")
    assert late.resolved_until < at_rest
    expected = (slope * (late.resolved_until - 1.0) - np.log(left)) / late.resolved_until
    assert late.rate_seen == pytest.approx(expected, abs=1 / late.resolved_until)


@pytest.mark.parametrize("t1", [1e-200, 1e-30])
def test_a_loss_that_has_changed_by_rounding_alone_shows_no_rate(t1):
    for seed in range(4):
        problem = fs.Problem(fs.SquaredLoss([[1.0], [2.0], [3.0]]), fs.fan_in((3, 80, 90, 1), seed=seed))
        assert fs.simulate(problem, "dopri8", t1=t1, save_points=3).rate_seen is None
        assert fs.simulate(problem, t1=t1, save_points=3, reduce="never").rate_seen is None


def test_the_rounding_of_a_minimum_of_a_users_own_hides_what_is_below():
    class Shifted(fs.Loss):
        shape, minimum = (1, 1), 1e6

        def value(self, W):
            return 1e6 + 0.5 * (W[..., 0, 0] - 1) ** 2

        def gradient(self, W):
            return W - 1

    problem = fs.Problem(Shifted(), fs.LinearNetwork(([[0.5]], [[0.5]])))
    run = fs.simulate(problem, fs.Scipy("DOP853", 1e-12, 1e-14), t1=13.0)
    assert run.steps.excess[-1] < 1e-8
    assert run.excess[run.time <= run.resolved_until].min() > 1e-9


def test_a_plateau_of_the_flow_is_no_floor():
    """Near a saddle the loss rests as well, but there the gradient promises no fall; nor in the middle of a fall."""
    weights = (1e-3 * np.eye(3), np.eye(3), 1e-3 * np.eye(3))
    problem = fs.Problem(fs.SquaredLoss(np.diag([3.0, 2.0, 1.0])), fs.LinearNetwork(weights))
    for t1 in (1.0, 2.0, 3.0, 5.0, 8.0, 10.0):
        assert fs.simulate(problem, t1=t1).resolved_until is None, t1
    assert fs.simulate(problem, t1=20.0).resolved_until > 10


def test_a_run_says_that_it_rests_or_that_its_loss_rose():
    zero = fs.Problem(fs.SquaredLoss(np.ones((2, 2))), fs.LinearNetwork((np.zeros((2, 3)), np.zeros((3, 2)))))
    assert "stationary point" in fs.simulate(zero, t1=1.0).message
    problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[1.0]], [[1.5]])))
    assert "lower the step size" in fs.simulate(problem, fs.GradientDescent(1.0), t1=1.0).message
    assert fs.simulate(problem, t1=1.0).message == "The end time was reached."


@pytest.mark.parametrize("method", ["dop853", "radau", "gauss-legendre", "rkc"])
@pytest.mark.parametrize("seed", range(12))
def test_a_loss_that_stopped_in_its_fall_is_resolved(seed, method):
    rng = np.random.default_rng(seed)
    dims = (*rng.integers(1, 5, 1), *rng.integers(5, 30, rng.integers(1, 4)), *rng.integers(1, 5, 1))
    network = fs.initialize(str(rng.choice(["fan_in", "xavier", "ntk", "orthogonal"])), dims, seed=seed)
    problem = fs.Problem(fs.SquaredLoss(rng.standard_normal((dims[0], dims[-1]))), network)
    run = fs.simulate(problem, method, t1=1e4, stop_loss=1e-8, max_steps=2000)
    assert run.status == "converged"
    assert run.resolved_until is None


def test_a_run_from_the_minimum_has_no_rate():
    """L - f* is 0, or a rounding of either sign, from the start."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        X, weights = rng.standard_normal((9, 3)), (rng.standard_normal((3, 4)), rng.standard_normal((4, 2)))
        problem = fs.Problem(fs.LeastSquares(X, X @ weights[0] @ weights[1]), fs.LinearNetwork(weights))
        run = fs.simulate(problem, t1=1.0)
        assert run.status == "completed"
        assert not run.resolved_until
        assert run.rate_seen is None
        assert "rate" in run.summary()


def resolved_until(time, excess, dissipated, gradient, tolerance):
    """resolved_times of one run, without rounding; None for inf."""
    rows = Rows(time[None], excess[None], dissipated[None], np.ones((1, len(time)), bool))
    allowed, none = None if tolerance is None else np.array([tolerance]), np.zeros(1)
    (found,) = resolved_times(rows, np.array([gradient]), allowed, none, none)
    return found if found < np.inf else None


@pytest.mark.parametrize("controlled", [True, False])
def test_many_runs_are_told_as_each_alone(controlled):
    """Of all lengths, with rows repeated at the end and between, resolved and not, one at its minimum at the start."""
    rng, runs = np.random.default_rng(0), []
    for k, length in enumerate((1, 2, 9, 30, 40, 40, 25)):
        time = np.append(0.0, np.sort(rng.uniform(0.1, 4.0, length)))
        excess = 2.0 * np.exp(-9 * time) + (2e-12 if k % 2 else 0.0)
        runs.append((time, excess if k < 6 else 0 * excess))
    gradient, size = np.full(len(runs), 1e-2), np.ones(len(runs))
    tolerance, none = (1e-7 * size if controlled else None), 0 * size
    repeats = [np.append(rng.integers(1, 3, len(t) - 1), 0) for t, _ in runs]
    width = 2 + max(sum(more) for more in repeats)
    places = [np.repeat(np.arange(len(more)), np.append(more[:-1], width - more.sum())) for more in repeats]
    time, excess = (np.array([run[i][at] for run, at in zip(runs, places, strict=True)]) for i in (0, 1))
    kept = np.array([np.append(True, np.diff(at) > 0) for at in places])
    many = Rows(time, excess, excess[:, :1] - excess, kept)
    until = resolved_times(many, gradient, tolerance, size, none)
    rates = rates_seen(many, until)
    assert 0 < np.isfinite(until).sum() < len(runs)
    for k, (t, e) in enumerate(runs):
        one, at = Rows(t[None], e[None], (e[0] - e)[None], np.ones((1, len(t)), bool)), slice(k, k + 1)
        allowed = None if tolerance is None else tolerance[at]
        assert resolved_times(one, gradient[at], allowed, size[at], none[at]) == until[at]
        np.testing.assert_array_equal(rates_seen(one, until[at]), rates[at])


@pytest.mark.parametrize("first", [0.0, -1e-16])
def test_where_nothing_was_above_the_minimum_no_loss_is_unresolved(first):
    time = np.linspace(0.0, 1.0, 50)
    for tolerance in (None, 1e-8):
        assert resolved_until(time, np.full(50, first), np.zeros(50), 1e-9, tolerance) is None


@pytest.mark.parametrize(("level", "floor"), [(0.5e-6, True), (2e-6, False)])
def test_a_floor_lies_below_a_millionth_of_the_first_value(level, floor):
    """Above that a loss that rests, whatever the gradient promises, is at a saddle."""
    time = np.linspace(0.0, 1.0, 101)
    excess = 3.0 * np.maximum(np.exp(-40 * time), level)
    gradient = np.sqrt(1000 * excess[-1])  # promises a fall by exp(-50) in a twentieth of the time
    found = resolved_until(time, excess, 3.0 - excess, gradient, None)
    assert found == (time[excess > 3e-6][-1] if floor else None)


def test_a_floor_of_rounding_below_the_minimum():
    """A loss that falls to 1e-12 and then is -1e-16 is resolved to the end of the last step above 0."""
    time = np.linspace(0.0, 1.0, 50)
    excess = np.where(time < 0.5, 10.0 ** (-25 * time), -1e-16)
    for tolerance in (None, 1e-8):
        assert resolved_until(time, excess, 1 - excess, 1e-3, tolerance) == time[time < 0.5][-1]


@pytest.mark.parametrize(("slope", "t1", "rose"), [(1.0, 1e-3, False), (0.0, 1.0, False), (-1.0, 0.1, True)])
def test_only_a_loss_that_rose_is_said_to_have_risen(slope, t1, rose):
    """Of a loss below 0 whose minimum is not known, excess is the loss itself: falling from -5 to -5.002 is no rise."""

    class Line:
        shape = (1, 1)

        def value(self, W):
            return W[0, 0] - 6.0

        def gradient(self, W):
            return np.full((1, 1), slope)  # -1 has the wrong sign: the flow goes up

    run = fs.simulate(fs.Problem(Line(), fs.LinearNetwork(([[1.0]], [[1.0]]))), t1=t1)
    assert ("rose" in run.message) == rose, run.message
