"""ensemble: every member as simulate gives it, whatever its neighbours do."""

import os
from functools import partial

import numpy as np
import pytest
import xarray
from conftest import Huber
from scipy.stats import ks_2samp

import flowsim as fs
from flowsim.errors import InputError
from flowsim.runs import ensembles
from flowsim.runs.derived import SCALARS, scalars

LOSS = fs.SquaredLoss(np.ones((3, 1)))

MEMBERS = int(os.environ.get("FLOWSIM_MEMBERS", "5"))



@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(ensembles, "BATCH", 8)


def sampled(seed):
    return fs.Problem(LOSS, fs.sample_compressed("fan_out", (3, 60, 80, 1), seed=seed))


def full(seed):
    return fs.Problem(LOSS, fs.fan_out((3, 60, 80, 1), seed=seed))


def alone(draw, k, method="dopri8", **settings):
    return fs.simulate(draw(np.random.SeedSequence(0, spawn_key=(k,))), method, **settings)


def test_members_are_what_simulate_gives():
    runs = fs.ensemble(sampled, 11, t1=0.2, stop_loss=1e-6, save_points=9)
    assert set(runs.scalars["status"]) == {"converged"}
    for k in (0, 10):
        run = alone(sampled, k, t1=0.2, stop_loss=1e-6, save_points=9)
        assert runs.scalars["time_reached"][k] == pytest.approx(float(run.time[-1]), rel=1e-10)
        assert runs.scalars["drift"][k] < 1e-8
        assert runs.scalars["energy_residual"][k] < 1e-6
        kept = run.time[:-1]
        assert runs.excess[k, : len(kept)] == pytest.approx(run.excess[:-1], rel=1e-8)
        assert runs.excess[k, -1] == pytest.approx(1e-6 * runs.excess[k, 0], rel=1e-9)
    assert len(runs.failed) == 0
    assert list(runs.scalars) == list(SCALARS)
    assert "members a second" in runs.summary()
    assert dict(runs.dataset.sizes) == {"member": 11, "time": 9}


def agree(row, other):
    """Every scalar that both tell."""
    for name in SCALARS:
        mine, theirs = row[name], other[name]
        if isinstance(theirs, str):
            assert mine == theirs, name
        elif theirs is not None and np.isfinite(mine := np.float64(mine)):
            assert mine == pytest.approx(theirs, rel=1e-9, abs=1e-9), name


@pytest.mark.parametrize(("method", "settings"), [("dopri8", {}), ("gd", {"step_size": 1e-4})])
def test_ensemble_sweep_simulate_and_compare_tell_the_same_scalars(method, settings, tmp_path):
    """Three layers, compressed and not, stopped at a level, and at their ends."""
    chosen = fs.method_named(method, backend="jax" if method == "gd" else "numpy", **settings)
    for dims, limits in (([3, 6, 5, 1], {"t1": 0.5}), ([2, 60, 90, 2], {"t1": 1.0, "stop_loss": 1e-6})):
        table = {"dims": [dims], "seeds": MEMBERS, "method": method, "curve_points": 9, "scheme": "fan_in"}
        table["certificates"] = "cheap"
        spec = fs.SweepSpec.build({"sweep": table | limits | settings})
        members, swept = spec.members(), xarray.load_dataset(fs.sweep(spec, tmp_path / f"{dims[1]}").table)
        draw = partial(_member, members)
        drawn = fs.ensemble(draw, MEMBERS, method=chosen, save_points=9, **limits)
        for k, member in enumerate(members):
            run = fs.simulate(member.problem(), member.method(), save_points=9, **limits)
            agree({name: values[k] for name, values in drawn.scalars.items()}, scalars(run))
            agree({name: swept[name].values[k] for name in SCALARS}, scalars(run))
        row = fs.compare(members[0].problem(), [chosen], t1=0.5, times=9, repeats=1).rows[0]
        run = fs.simulate(members[0].problem(), chosen, t1=0.5, save_points=9)
        assert row.status == "completed"
        for name in ("drift", "energy_residual", "steps", "rhs_evaluations"):
            assert getattr(row, name) == pytest.approx(scalars(run)[name], abs=1e-9)


def _member(members, seed):
    return members[seed.spawn_key[0]].problem()


def own_target(seed):
    rng = np.random.default_rng(seed)
    return fs.Problem(fs.SquaredLoss(rng.standard_normal((3, 1))), fs.fan_out((3, 6, 5, 1), seed=rng))


@pytest.mark.parametrize("method", [fs.Diffrax("Dopri8"), fs.GradientDescent(1e-3, "jax"), fs.Scipy("RK45")])
def test_scalars_are_those_of_simulate(method):
    """Before the loss has fallen to its floor, up to the rounding of another order of summation."""
    members = fs.ensemble(own_target, 5, t1=0.2, method=method, save_points=5)
    for k in range(5):
        problem = own_target(np.random.SeedSequence(0, spawn_key=(k,)))
        run = fs.simulate(problem, method, t1=0.2, save_points=5)
        assert run.resolved_until is None
        row = {name: values[k] for name, values in members.scalars.items()}
        agree(row, scalars(run))


def test_beyond_its_floor_the_loss_of_a_member_is_not_taken_for_that_of_the_flow():
    """The rate of a run of 60 is that of 3, the time in which the loss falls, not a twentieth of it."""
    members = fs.ensemble(own_target, 5, t1=60.0, save_points=5)
    for k in range(5):
        run = alone(own_target, k, t1=60.0, save_points=5)
        assert run.resolved_until < 20
        assert members.scalars["rate_seen"][k] == pytest.approx(run.rate_seen, rel=1e-4)
        fell = run.step_time <= run.resolved_until
        seen = np.log(run.steps.excess[0] / run.steps.excess[fell][-1]) / run.resolved_until
        assert run.rate_seen == pytest.approx(seen, rel=1e-12)


def test_full_networks_and_other_methods_agree():
    settings = {"t1": 0.05, "save_points": 5}
    batched = fs.ensemble(full, 5, **settings)
    for method in (fs.Scipy(), fs.GaussLegendre(3)):
        other = fs.ensemble(full, 5, method=method, **settings)
        assert other.excess == pytest.approx(batched.excess, rel=1e-5, abs=1e-9 * batched.excess.max())
    assert (fs.ensemble(full, 5, method=fs.GradientDescent(1e-3), **settings).scalars["status"] == "completed").all()


def test_a_member_does_not_depend_on_its_neighbours():
    """The same digits in a batch of other members, and in a batch that is not full."""
    whole = fs.ensemble(sampled, 8, t1=0.1, save_points=5)
    part = fs.ensemble(sampled, 3, t1=0.1, save_points=5)
    assert (whole.excess[:3] == part.excess).all()

    def stormy(seed):
        problem = sampled(seed)
        if seed.spawn_key[0] % 2:
            return fs.Problem(fs.SquaredLoss(np.full((3, 1), 1e12)), problem.network)
        return problem

    mixed = fs.ensemble(stormy, 8, t1=0.1, save_points=5, max_steps=64)
    assert (mixed.excess[::2] == whole.excess[::2]).all()
    assert (mixed.scalars["status"][::2] == "completed").all()
    assert set(mixed.scalars["status"][1::2]) <= {"step_limit", "diverged"}
    assert set(mixed.failed) == {1, 3, 5, 7}
    assert all(mixed.scalars["reason"][k] for k in mixed.failed)


def test_a_member_that_cannot_be_drawn_is_a_row():
    def draw(seed):
        if seed.spawn_key[0] == 2:
            raise InputError("Argument `dims` must be sensible, but it is not.")
        return sampled(seed)

    runs = fs.ensemble(draw, 4, t1=0.1, save_points=3)
    assert list(runs.scalars["status"]) == ["completed", "completed", "failed", "completed"]
    assert "sensible" in runs.scalars["reason"][2]
    assert np.isnan(runs.excess[2]).all()
    assert np.isfinite(runs.quantiles()).all()


@pytest.mark.parametrize("dims", [(2, 9, 3), (1, 30, 40, 30, 2)])
def test_shapes_and_depths_of_all_kinds(dims):
    loss = fs.SquaredLoss(np.ones((dims[0], dims[-1])))
    draw = lambda seed: fs.Problem(loss, fs.fan_in(dims, seed=seed))  # noqa: E731
    runs = fs.ensemble(draw, 4, t1=0.5, method="tsit5", save_points=3)
    assert (runs.scalars["status"] == "completed").all()
    run = alone(draw, 3, fs.Scipy(rtol=1e-11), t1=0.5, save_points=3)
    assert runs.excess[3] == pytest.approx(run.excess, rel=1e-6)


def test_targets_of_their_own():
    runs = fs.ensemble(own_target, 4, t1=0.1, save_points=3)
    run = alone(own_target, 2, fs.Scipy(rtol=1e-11), t1=0.1, save_points=3)
    assert runs.excess[2] == pytest.approx(run.excess, rel=1e-7)


def test_a_users_own_loss():
    """One loss for all, side by side; one each, by themselves."""
    loss, settings = Huber(), {"method": fs.Diffrax("Bosh3", 1e-6, 1e-8), "t1": 0.5}
    runs = fs.ensemble(lambda s: fs.Problem(loss, fs.fan_in((2, 5, 4, 1), seed=s)), 3, save_points=3, **settings)
    assert (runs.scalars["status"] == "completed").all()
    each = fs.ensemble(lambda s: fs.Problem(Huber(), fs.fan_in((2, 5, 4, 1), seed=s)), 2, save_points=3, **settings)
    assert (each.scalars["status"] == "completed").all()
    assert each.excess == pytest.approx(runs.excess[:2], rel=1e-9)
    runs = fs.ensemble(lambda s: fs.Problem(loss, fs.fan_in((2, 5, 4, 1), seed=s)), 2, stop_loss=0.1, **settings)
    assert (runs.scalars["status"] == "failed").all()
    assert all("minimum" in reason for reason in runs.scalars["reason"])


def test_certificates():
    runs = fs.ensemble(full, 4, t1=0.1, save_points=5, certificates="all")
    assert (runs.scalars["theorem_2_alpha"] > 0).all()
    bound = runs.excess[:, :1] * np.exp(-runs.scalars["certified_rate"][:, None] * runs.time)
    assert (runs.excess <= bound * (1 + 1e-6) + 1e-12).all()


def test_sampled_and_full_networks_have_the_same_distribution():
    settings = {"t1": 0.05, "save_points": 5, "stop_loss": 1e-6}
    ensembles.BATCH = 64
    drawn, whole = (fs.ensemble(draw, 120, **settings) for draw in (sampled, full))
    for name in ("time_reached", "rate_seen"):
        assert ks_2samp(drawn.scalars[name], whole.scalars[name]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"t1": 0.0}, "`t1`"),
        ({"members": 0}, "`members`"),
        ({"save_points": 1}, "`save_points`"),
        ({"save_points": [0.2, 0.1]}, "ascend"),
        ({"stop_loss": -1.0}, "`stop_loss`"),
        ({"certificates": "some"}, "`certificates`"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    settings = {"members": 2, "t1": 0.1, **arguments}
    with pytest.raises(InputError, match=words):
        fs.ensemble(sampled, settings.pop("members"), **settings)


def test_descent_side_by_side():
    settings = {"t1": 0.05, "save_points": 5, "stop_loss": 1e-4}
    compiled = fs.ensemble(sampled, 9, method=fs.GradientDescent(1e-4, "jax"), **settings)
    for k in (0, 4, 8):
        problem = sampled(np.random.SeedSequence(0, spawn_key=(k,)))
        run = fs.simulate(problem, fs.GradientDescent(1e-4), **settings)
        assert compiled.scalars["status"][k] == run.status
        assert compiled.scalars["time_reached"][k] == pytest.approx(float(run.time[-1]), rel=1e-12)
        assert compiled.scalars["final_excess"][k] == pytest.approx(float(run.excess[-1]), rel=1e-9)
        assert compiled.scalars["steps"][k] == run.stats["steps"]
        shared = np.isin(compiled.time, run.time)
        assert compiled.excess[k, shared] == pytest.approx(run.excess[np.isin(run.time, compiled.time)], rel=1e-9)
        assert compiled.scalars["energy_residual"][k] == pytest.approx(np.abs(run.energy_residual[-1]), rel=1e-6)
    wild = fs.ensemble(sampled, 3, method=fs.GradientDescent(0.05, "jax"), t1=5.0, save_points=3)
    assert (wild.scalars["status"] == "diverged").all()
    assert all("step_size" in reason for reason in wild.scalars["reason"])


def test_ctrl_c_keeps_the_members_that_are_finished():
    def draw(seed):
        if seed.spawn_key == (19,):
            raise KeyboardInterrupt
        return sampled(seed)

    runs = fs.ensemble(draw, 40, t1=0.05, stop_loss=1e-3, save_points=3)
    words = list(runs.scalars["status"])
    assert set(words[:16]) == {"converged"}
    assert set(words[16:]) == {"interrupted"}
    assert np.isfinite(runs.excess[:16]).all()
    assert len(runs.failed) == 24
