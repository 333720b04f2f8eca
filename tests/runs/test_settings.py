"""The settings of a run: declared once, the same by every way to a run, and kept with it."""

import inspect
import json
from dataclasses import replace

import numpy as np
import pytest

import flowsim as fs
from flowsim import cli
from flowsim.cli import simulations
from flowsim.methods import DEFAULT_METHOD, METHODS
from flowsim.runs.record import Reduction
from flowsim.runs.settings import RunConfig
from flowsim.sweeps.specification import SweepTable


def defaults(function):
    return {name: p.default for name, p in inspect.signature(function).parameters.items() if p.default is not p.empty}


@pytest.fixture
def problem():
    return fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.fan_out((2, 6, 5, 1), seed=0))


def test_every_signature_has_the_defaults_of_the_schema():
    """The command's flags are its signature; sweeps keep no curve, ensembles fewer times."""
    schema = {name: field.default for name, field in RunConfig.model_fields.items() if not field.is_required()}
    for function in (fs.simulate, fs.resume, fs.method_named, simulations.simulate):
        told = defaults(function)
        shared = told.keys() & schema.keys()
        assert {name: told[name] for name in shared} == {name: schema[name] for name in shared}
        assert len(shared) >= 4
    for name, field in SweepTable.model_fields.items():
        if name in schema:
            usual = DEFAULT_METHOD if name == "method" else schema[name]
            listed = usual if field.annotation is type(usual) else [usual]
            assert field.default in (usual, listed, []), name


def test_the_schema_refuses_what_simulate_refuses(problem):
    for wrong in ({"t1": 0.0}, {"stop_loss": 0.0}, {"max_steps": 0}, {"wall_limit": -1.0}, {"reduce": "some"}):
        with pytest.raises(fs.errors.InputError, match=next(iter(wrong))):
            RunConfig.build(**{"t1": 1.0, **wrong})
        with pytest.raises(fs.errors.InputError, match=next(iter(wrong))):
            fs.simulate(problem, **{"t1": 1.0, **wrong})


def test_the_least_rtol_is_the_same_for_methods_and_schemas():
    for rtol, fine in ((1e-13, True), (9e-14, False)):
        for make in (
            lambda r: fs.Scipy(rtol=r),
            lambda r: RunConfig.build(t1=1.0, rtol=r),
            lambda r: fs.SweepSpec.build({"sweep": {"dims": [[1, 2, 1]], "seeds": 1, "t1": 1.0, "rtol": r}}),
        ):
            if fine:
                make(rtol)
            else:
                with pytest.raises(fs.errors.InputError, match="rtol"):
                    make(rtol)


def test_a_run_in_python_keeps_what_made_it(problem, tmp_path):
    run = fs.simulate(problem, fs.Scipy("RK45", 1e-6, 1e-9), t1=0.2, save_points=[0.1, 0.2], stop_loss=1e-9)
    run.save(tmp_path / "run.nc")
    kept = fs.load(tmp_path / "run.nc").provenance
    assert kept["numpy"] == np.__version__
    assert kept["configuration"] == {
        **{"method": "rk45", "rtol": 1e-6, "atol": 1e-9, "step_size": None, "t1": 0.2, "save_points": [0.1, 0.2]},
        **{"stop_loss": 1e-9, "stop_gradient": None, "max_steps": None, "wall_limit": None, "reduce": "auto"},
    }
    assert fs.resume(run, t1=0.3).provenance["configuration"]["t1"] == 0.3


def test_a_run_of_the_command_keeps_the_same_and_its_inputs(problem, tmp_path, capsys):
    fs.save_weights(tmp_path / "w.npz", problem.network)
    np.save(tmp_path / "y.npy", np.ones((2, 1)))
    words = ["simulate", f"{tmp_path}/w.npz", "--target", f"{tmp_path}/y.npy", "--t1", "0.2", "--method", "rk45"]
    assert cli.main([*words, "--out", f"{tmp_path}/run.nc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["method"] == "rk45"
    kept = fs.load(tmp_path / "run.nc").provenance["configuration"]
    python = fs.simulate(problem, "rk45", t1=0.2).provenance["configuration"]
    assert {name: kept[name] for name in python} == python
    assert kept["target"].endswith("y.npy")


@pytest.mark.parametrize("key", sorted(METHODS))
def test_a_row_of_a_comparison_has_a_name_that_makes_the_method(key):
    """implicit-euler was called impliciteuler, which nothing knew."""
    method = fs.method_named(key, step_size=0.1) if not METHODS[key].kind.adaptive else fs.method_named(key)
    assert METHODS[method.key].kind == method.kind
    assert key in (method.key, "gauss-legendre")


def test_the_compression_law_holds_a_method_to_what_it_promises():
    """A method that keeps the invariants promises a compression error of 1e-13, whatever its rtol."""
    problem = fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.fan_out((2, 40, 30, 1), seed=0))
    for method, share, holds in (("gauss-legendre", 1e-9, False), ("dop853", 1e-9, True), ("dop853", 1e-6, False)):
        run = fs.simulate(problem, method, t1=0.1, save_points=9, reduce="always")
        errors = share * run.weights_change * run.time / run.time[-1]
        forged = replace(run, reduction=Reduction(run.reduction.network, errors, run.reduction.reason))
        judged = {law.name: law.holds for law in fs.diagnose(forged).laws}
        assert judged["compression"] == holds, method
