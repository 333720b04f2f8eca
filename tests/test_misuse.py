"""What a newcomer types first: every misuse ends with a sentence that says what to do."""

import numpy as np
import pytest

import flowsim as fs
from flowsim.errors import InputError

LOSS = fs.SquaredLoss(np.ones((2, 1)))
NETWORK = fs.fan_out((2, 5, 6, 1), seed=0)
PROBLEM = fs.Problem(LOSS, NETWORK)

MISUSES = {
    "class for method": (lambda: fs.simulate(PROBLEM, fs.Scipy, t1=1), "but it is the class Scipy"),
    "number for method": (lambda: fs.simulate(PROBLEM, 5, t1=1), "of type int"),
    "unknown name": (lambda: fs.simulate(PROBLEM, "dop583", t1=1), "did you mean dop853"),
    "lower case": (lambda: fs.Scipy("dop853"), "did you mean DOP853"),
    "network for problem": (lambda: fs.simulate(NETWORK, t1=1), "must be a Problem"),
    "list for network": (lambda: fs.Problem(LOSS, [np.ones((2, 3)), np.ones((3, 1))]), "LinearNetwork"),
    "certify a list": (lambda: fs.certify([np.ones((2, 3))]), "LinearNetwork"),
    "draw a network": (lambda: fs.ensemble(lambda seed: NETWORK, 2, t1=1), "must return a Problem"),
    "draw is a problem": (lambda: fs.ensemble(PROBLEM, 2, t1=1), "must be a function of a seed"),
    "sweep of a number": (lambda: fs.sweep(5, "x"), "SweepSpec or a TOML file"),
    "sweep of no file": (lambda: fs.sweep("none.toml", "x"), "does not exist"),
    "compare a network": (lambda: fs.compare(NETWORK, t1=1), "must be a Problem or the name"),
    "compare no name": (lambda: fs.compare("stairs", t1=1), "did you mean staircase"),
    **{
        f"{call.__name__} a path": (lambda call=call: call("run.nc"), "load reads one from its file")
        for call in (fs.diagnose, fs.plot, fs.plot_rate, fs.plot_drift, fs.plot_energy, fs.a_posteriori)
    },
    "report a path": (lambda: fs.report("run.nc", "run.html"), "load reads one"),
    "resume a path": (lambda: fs.resume("run.nc", t1=1), "load reads one"),
    "plot certificates": (lambda: fs.plot(fs.certify(PROBLEM)), "must be a Trajectory, but it is of type Certificates"),
    "no step sizes": (lambda: fs.compare(PROBLEM, ["gd"], t1=1), "`step_sizes` must be given for gd"),
}


@pytest.mark.parametrize("case", MISUSES)
def test_a_sentence(case):
    call, words = MISUSES[case]
    with pytest.raises(InputError, match=words):
        call()


def test_names_serve_as_methods():
    assert fs.simulate(PROBLEM, "rk45", t1=0.1).method == fs.Scipy("RK45")
    assert len(fs.compare(PROBLEM, "rk45", t1=0.1, rtols=(1e-4,), repeats=1).rows) == 1


def test_networks_and_problems_in_a_line():
    assert repr(PROBLEM) == "Problem(SquaredLoss, LinearNetwork(dims (2, 5, 6, 1), scale 1, fan_out))"
    assert "Krylov" in repr(fs.compress(NETWORK))
    assert "mean" in repr(fs.a_posteriori(fs.simulate(PROBLEM, t1=0.1)))


def test_an_ensemble_without_a_member_that_ran_shows_itself():
    def draw(seed):
        return fs.Problem(fs.SquaredLoss(np.ones((3, 3))), fs.fan_in((2, 4, 2), seed=seed))

    assert "2 failed" in repr(fs.ensemble(draw, 2, t1=1.0, method="dop853"))


def test_a_tolerance_that_does_not_resolve_the_change_is_remarked_on():
    wide = fs.Problem(LOSS, fs.sample_compressed("fan_out", (2, 10**9, 10**9, 1), seed=0))
    loose = fs.simulate(wide, t1=1e-9, stop_loss=1e-6)
    assert "hardly resolves: lower rtol" in loose.message
    assert "resolves" not in fs.simulate(wide, fs.Scipy(rtol=1e-12, atol=1e-14), t1=1e-9, stop_loss=1e-6).message
    assert "resolves" not in fs.simulate(PROBLEM, t1=1.0).message


def test_few_krylov_steps_have_the_least_eigenvalue_of_T():
    network = fs.fan_in((2, 30, 40, 35, 2), seed=0)
    assert fs.compress(network, 0).lambda_min_T == pytest.approx(network.lambda_min_T, rel=1e-10)
