"""resume: going on gives what one simulation would have given."""

import numpy as np
import pytest

import flowsim as fs
from flowsim.errors import InputError

LOSS = fs.SquaredLoss(np.ones((3, 2)))
SMALL = fs.Problem(LOSS, fs.fan_in((3, 9, 8, 2), seed=0))
WIDE = fs.Problem(LOSS, fs.fan_in((3, 150, 140, 2), seed=0))
DRAWN = fs.Problem(
    LOSS, fs.sample_compressed("fan_in", (3, 10**6, 10**6, 2), seed=np.random.SeedSequence(4).spawn(2)[1])
)
METHODS = [
    fs.Scipy(),
    fs.Diffrax("Tsit5"),
    fs.GaussLegendre(2),
    fs.Projected(fs.Scipy("RK45")),
    fs.RKC(),
    fs.GradientDescent(1e-3),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("problem", [SMALL, WIDE], ids=["small", "wide"])
def test_two_halves_are_the_whole(problem, method, tmp_path):
    whole = fs.simulate(problem, method, t1=0.6, save_points=7)
    half = fs.simulate(problem, method, t1=0.3, save_points=4)
    half.save(tmp_path / "half.nc")
    allowed = 1e-6 * whole.excess[0]
    for start in (half, fs.load(tmp_path / "half.nc")):
        both = fs.resume(start, t1=0.6, save_points=4)
        assert both.status == "completed"
        assert both.time == pytest.approx(whole.time, rel=1e-12)
        assert both.excess == pytest.approx(whole.excess, abs=allowed)
        assert both.error_estimate[-1] >= half.error_estimate[-1]
        assert both.stats["steps"] > half.stats["steps"]
        assert (np.diff(both.step_time) > 0).all()
        assert np.abs(both.energy_residual).max() < 10 * max(np.abs(whole.energy_residual).max(), 1e-9)
        for t in (0.15, 0.45, 0.6):
            gaps = [np.abs(W - V).max() for W, V in zip(both.weights_at(t), whole.weights_at(t), strict=True)]
            assert max(gaps) < 1e-6
    both.save(tmp_path / "both.nc")
    assert fs.load(tmp_path / "both.nc").excess == pytest.approx(both.excess, rel=0)


def test_gradient_descent_goes_on_bit_by_bit():
    whole = fs.simulate(SMALL, fs.GradientDescent(1e-2), t1=0.6)
    both = fs.resume(fs.simulate(SMALL, fs.GradientDescent(1e-2), t1=0.25), t1=0.6)
    assert (both.step_loss == whole.step_loss).all()


def test_networks_drawn_in_compressed_form_are_drawn_again(tmp_path):
    half = fs.simulate(DRAWN, t1=1e-5)
    half.save(tmp_path / "half.nc")
    whole, both = fs.simulate(DRAWN, t1=2e-5), fs.resume(fs.load(tmp_path / "half.nc"), t1=2e-5)
    assert both.excess[-1] == pytest.approx(whole.excess[-1], rel=1e-6)
    assert not both.problem.network.is_dense


def test_bases_grow_on_where_the_error_asks_for_it(tmp_path):
    """A loose start in a few levels, gone on with for long: the same bases are found again and grow."""
    problem = fs.Problem(fs.SquaredLoss(3 * np.ones((2, 1))), fs.fan_in((2, 200, 190, 1), seed=2))
    short = fs.simulate(problem, t1=1e-4, reduce="always")
    short.save(tmp_path / "short.nc")
    back = fs.load(tmp_path / "short.nc")
    long = fs.resume(back, t1=3.0)
    assert long.reduction.network.steps > back.reduction.network.steps
    plain = fs.simulate(problem, t1=3.0, reduce="never")
    gaps = [np.linalg.norm(W - V) for W, V in zip(long.weights_at(3.0), plain.weights_at(3.0), strict=True)]
    assert max(gaps) < 1e-6


def test_a_level_is_relative_to_the_first_start():
    half = fs.simulate(SMALL, t1=0.05)
    both = fs.resume(half, t1=50.0, stop_loss=1e-4)
    once = fs.simulate(SMALL, t1=50.0, stop_loss=1e-4)
    assert both.status == "converged"
    assert both.time[-1] == pytest.approx(once.time[-1], rel=1e-6)
    again = fs.resume(both, t1=60.0, stop_loss=1e-2)
    assert (again.status, again.time[-1]) == ("converged", both.time[-1])
    limited = fs.resume(half, t1=50.0, max_steps=3)
    assert (limited.status, limited.stats["steps"]) == ("step_limit", half.stats["steps"] + 3)


def test_what_cannot_be_gone_on_with(tmp_path):
    half = fs.simulate(SMALL, t1=0.3)
    with pytest.raises(InputError, match="t1"):
        fs.resume(half, t1=0.3)
    wild = fs.simulate(SMALL, fs.GradientDescent(9.0), t1=90.0)
    assert wild.status == "diverged"
    with pytest.raises(InputError, match="diverged"):
        fs.resume(wild, t1=99.0)
    generator = np.random.default_rng(0)
    drawn = fs.Problem(LOSS, fs.sample_compressed("fan_in", (3, 10**6, 10**6, 2), seed=generator))
    run = fs.simulate(drawn, t1=1e-5)
    assert fs.resume(run, t1=2e-5).status == "completed"
    run.save(tmp_path / "run.nc")
    with pytest.raises(InputError, match="seed is not known"):
        fs.resume(fs.load(tmp_path / "run.nc"), t1=2e-5)


def stiff():
    loss = fs.LeastSquares(np.diag([1.0, 30.0]), np.ones((2, 1)))
    return fs.Problem(loss, fs.fan_in((2, 3, 1), seed=0))


def test_another_method_goes_on(tmp_path):
    half = fs.simulate(stiff(), fs.Scipy(rtol=1e-6, atol=1e-8), t1=1.0)
    whole, both = fs.simulate(stiff(), "dop853", t1=6.0), fs.resume(half, t1=6.0, method="krylov-bdf")
    assert both.method == fs.KrylovBDF(1e-6, 1e-8)
    assert both.status == "completed"
    assert both.stats["steps"] < 0.5 * whole.stats["steps"]
    assert both.product_at(6.0) == pytest.approx(whole.product_at(6.0), abs=1e-5)
    both.save(tmp_path / "both.nc")
    back = fs.load(tmp_path / "both.nc")
    assert (back.method, back.restarts) == (both.method, (1.0,))
    assert back.provenance["configuration"]["method"] == "krylov-bdf"
    assert fs.diagnose(back).verdict == fs.diagnose(half).verdict


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("gauss-legendre", "promise more"),
        (fs.GradientDescent(1e-3), "controlled by tolerances"),
        (fs.Scipy("Radau", 1e-10, 1e-10), "no tighter"),
        (fs.Scipy("Radau", 1e-8, 1e-12), "no tighter"),
        ("radua", "did you mean radau"),
        (3, "must be a method"),
    ],
)
def test_another_method_must_stand_for_the_whole_run(method, words):
    half = fs.simulate(stiff(), t1=0.1)
    with pytest.raises(InputError, match=words):
        fs.resume(half, t1=0.2, method=method)


def test_descent_is_not_gone_on_with_as_a_flow():
    with pytest.raises(InputError, match="controlled by tolerances"):
        fs.resume(fs.simulate(stiff(), fs.GradientDescent(1e-3), t1=0.1), t1=0.2, method="dop853")


def test_another_method_must_be_made_for_the_dynamics():
    half = fs.simulate(stiff(), t1=0.1, dynamics=fs.HeavyBall(1.0))
    with pytest.raises(InputError, match="HeavyBall"):
        fs.resume(half, t1=0.2, method="krylov-bdf")
