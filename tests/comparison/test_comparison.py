"""compare and the named problems: errors that are errors, failures as rows, the figure, the command."""

import json

import numpy as np
import pytest
from conftest import random_problem

import flowsim as fs
import flowsim.files
from flowsim import cli
from flowsim.comparison import solve_reference
from flowsim.errors import InputError, NumericalFailure
from flowsim.plots import work_precision_figure


@pytest.fixture(scope="module")
def comparison():
    named = fs.problem_named("homogeneous")
    methods = ["dop853", "rk45", "gauss-legendre-2", "gd"]
    return fs.compare(named, methods, t1=0.2, rtols=(1e-4, 1e-6, 1e-8), step_sizes=(1e-3, 5e-4), repeats=1)


def test_errors_are_those_against_the_closed_form(comparison):
    """The reference itself is compared with the Riccati solution, and a row's error with its own."""
    named = fs.problem_named("homogeneous")
    reference = comparison.reference
    for t, weights in zip(reference.times, reference.weights, strict=True):
        exact = named.closed_form(np.array([t]))[0]
        assert np.linalg.norm(weights[0] @ weights[1] - exact) < 1e-10 * np.linalg.norm(exact)
    assert reference.uncertainty < 1e-10
    row = next(row for row in comparison.rows if row.method == "rk45" and row.rtol == 1e-4)
    run = fs.simulate(named.problem, fs.Scipy("RK45", 1e-4, 1e-6), t1=0.2, save_points=reference.times)
    apart = [np.linalg.norm(W - V) for W, V in zip(run.weights_at(0.2), reference.weights[-1], strict=True)]
    assert row.error_t1 == pytest.approx(np.linalg.norm(apart) / reference.change, rel=1e-6)
    assert row.error_worst >= row.error_t1


def test_the_table_and_its_slopes(comparison):
    assert len(comparison.table) == 3 * 3 + 2
    assert set(comparison.table.status) == {"completed"}
    assert comparison.slopes()["rk45"] == pytest.approx(-5, abs=1.5)
    assert comparison.slopes()["gd"] == pytest.approx(-1, abs=0.05)
    for name in ("error_worst", "drift", "seconds", "rhs_evaluations", "steps"):
        assert (comparison.table[name] > 0).all(), name
    assert dict(comparison.dataset.sizes) == {"run": 11}
    json.dumps(comparison.to_json(), allow_nan=False)
    assert "reference" in comparison.summary()


def test_gauss_legendre_does_not_drift(comparison):
    drifts = comparison.curves("seconds", "drift")
    assert drifts["gauss-legendre-2"][1].max() < 1e-13 < drifts["rk45"][1].min()


def test_a_failure_is_a_row_with_its_reason():
    problem = random_problem(np.random.default_rng(0), (3, 60, 55, 3))
    settings = {"t1": 3.0, "times": 3, "repeats": 1, "reduce": "never"}
    rows = fs.compare(problem, ["radau", "gd", "rk45"], rtols=[1e-4], step_sizes=[5.0], **settings).rows
    assert [row.status for row in rows] == ["failed", "diverged", "completed"]
    assert "explicit" in rows[0].reason
    assert rows[1].reason
    limited = fs.compare(problem, ["gd"], step_sizes=[1e-7], time_limit=1.0, **settings)
    assert limited.rows[0].status == "wall_limit"


@pytest.mark.parametrize("drawn", [False, True])
def test_a_time_that_the_reference_cannot_reach_is_refused(drawn):
    network = (fs.sample_compressed if drawn else fs.initialize)("fan_in", (2, 40, 2), seed=0)
    problem = fs.Problem(fs.SquaredLoss(np.ones((2, 2))), network)
    with pytest.raises(InputError, match="`t1` must be a time that the reference reaches within 2 s"):
        fs.compare(problem, ["rk45"], t1=1e300, time_limit=0.2)


def test_without_a_reference_there_is_no_comparison(monkeypatch):
    problem = random_problem(np.random.default_rng(0), (2, 4, 2))
    monkeypatch.setattr("flowsim.comparison.reference.CHECK", fs.Scipy("RK45", step_size=5.0))
    with pytest.raises(NumericalFailure, match="no reference"):
        fs.compare(problem, ["rk45"], t1=100.0)


@pytest.mark.parametrize("name", sorted(fs.PROBLEMS))
def test_named_problems(name):
    named = fs.problem_named(name)
    run = fs.simulate(named.problem, t1=named.t1 / 100, save_points=3)
    assert run.status == "completed"
    assert run.loss[-1] < run.loss[0]
    assert named.problem.loss.shape == named.problem.network.product.shape


def test_the_reference_of_a_network_without_full_weights():
    network = fs.sample_compressed("fan_out", (2, 10**6, 10**6, 1), seed=0)
    problem = fs.Problem(fs.SquaredLoss(np.ones((2, 1))), network)
    reference = solve_reference(problem, np.linspace(0, 2e-6, 3))
    assert reference.uncertainty < 1e-8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"methods": ["dop583"]}, "did you mean dop853"),
        ({"methods": []}, "at least one"),
        ({"methods": ["gd"]}, "`step_sizes` must be given"),
        ({"t1": -1.0}, "`t1`"),
        ({"times": 1}, "`times`"),
        ({"time_limit": 0.0}, "`time_limit`"),
        ({"reduce": "sometimes"}, "`reduce`"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    problem = random_problem(np.random.default_rng(0), (2, 4, 2))
    with pytest.raises(InputError, match=words):
        fs.compare(problem, **{"methods": ["rk45"], "t1": 1.0, **arguments})
    with pytest.raises(InputError, match="`t1` must be given"):
        fs.compare(problem)
    with pytest.raises(InputError, match="did you mean staircase"):
        fs.problem_named("stairs")


def test_the_figure(comparison, tmp_path):
    work_precision_figure(comparison, "homogeneous").savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_the_command(tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["homogeneous", "--t1", "0.1", "--methods", "dop853,rk45", "--rtols", "1e-4,1e-6", "--repeats", "1"]
    assert cli.main(["compare", *arguments, "--json", "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert len(result["rows"]) == 4
    assert {path.name for path in out.iterdir()} == {"compare.json", "compare.nc", "compare.png"}
    assert cli.main(["compare", "no-such-file"]) == 2
    assert "paper-middle" in capsys.readouterr().err
    assert cli.main(["compare", "homogeneous", "--rtols", "tight"]) == 2
    assert cli.main(["compare", "homogeneous", "--target", "y.npy"]) == 2
    assert cli.main(["problems"]) == 0
    assert "staircase" in capsys.readouterr().out


def test_the_command_on_weights(tmp_path, capsys):
    fs.files.save_weights(tmp_path / "w.npz", fs.fan_in((2, 5, 3), seed=0), np.ones((2, 3)))
    assert cli.main(["compare", str(tmp_path / "w.npz"), "--t1", "0.5", "--methods", "dop853", "--rtols", "1e-6"]) == 0
    assert cli.main(["compare", str(tmp_path / "w.npz"), "--methods", "dop853", "--rtols", "1e-6"]) == 2
    assert "`t1`" in capsys.readouterr().err


def test_ctrl_c_keeps_the_rows_so_far(monkeypatch, capsys):
    """The signal comes within a step of the second method."""
    from flowsim.methods.runge_kutta_steps import RungeKuttaSteps

    advance, told = RungeKuttaSteps.advance, []

    def interrupted(self):
        if told and told[-1].startswith("rk45"):
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(RungeKuttaSteps, "advance", interrupted)
    problem = fs.problem_named("homogeneous").problem
    found = fs.compare(problem, ["dop853", "rk45", "lsoda"], t1=0.1, rtols=(1e-4,), repeats=1, note=told.append)
    assert [row.status for row in found.rows] == ["completed", "interrupted"]
    assert found.interrupted
