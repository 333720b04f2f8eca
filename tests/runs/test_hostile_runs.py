"""A saved run with any entry of any wrong kind or value, or any array spoiled: refused, with one sentence."""

import json
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from hostile_runs import COMMANDS, FILES, NAMES, arrays, call, entries, runs, with_record

import flowsim as fs
from flowsim.errors import InputError
from flowsim.runs import loading


def refusal(path):
    """Why the run is not read; empty where it is. Anything but an InputError escapes."""
    try:
        fs.load(path)
    except InputError as error:
        return str(error)
    return ""


def one_sentence(text):
    return text.endswith(".") and "\n" not in text and len(text) < 400


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_and_every_wrong_value(name, tmp_path, monkeypatch):
    (tmp_path / "run.nc").write_bytes(runs()[name])
    assert fs.load(tmp_path / "run.nc").status == "completed"
    dataset = loading.read_netcdf(tmp_path / "run.nc")
    kept = []
    for path, value, record in entries(name):
        monkeypatch.setattr(loading, "read_netcdf", lambda _, r=record: dataset.assign_attrs(flowsim=json.dumps(r)))
        if not one_sentence(refusal("run.nc")):
            kept.append((path, value))
    assert not kept


@pytest.mark.parametrize("name", NAMES)
def test_every_array_and_every_way_to_spoil_it(name, tmp_path, monkeypatch):
    (tmp_path / "run.nc").write_bytes(runs()[name])
    dataset = loading.read_netcdf(tmp_path / "run.nc")
    kept = []
    for variable, how, array in arrays(name):
        spoiled = {key: value for key, value in dataset.variables.items() if key != variable}
        spoiled |= {} if array is None else {variable: SimpleNamespace(values=array)}
        found = SimpleNamespace(attrs=dataset.attrs, variables=spoiled)
        monkeypatch.setattr(loading, "read_netcdf", lambda _, found=found: found)
        if not one_sentence(refusal("run.nc")):
            kept.append((variable, how))
    assert not kept


@pytest.mark.parametrize("how", sorted(FILES))
def test_every_way_to_spoil_a_file(how, tmp_path):
    (tmp_path / "run.nc").write_bytes(FILES[how](runs()["narrow"]))
    with pytest.raises(InputError):
        fs.load(tmp_path / "run.nc")


WRONG = {
    "scale that overflows": ("narrow", ("scale",), 1e308),
    "scale of another run": ("narrow", ("scale",), 1e5),
    "provenance": ("wide", ("provenance",), [1]),
    "detail": ("wide", ("detail",), 3),
    "step size": ("masked", ("method", "step_size"), 1e-9),
}


@pytest.mark.parametrize("command", sorted(COMMANDS))
@pytest.mark.parametrize("case", sorted(WRONG))
def test_every_command_refuses(case, command):
    name, path, value = WRONG[case]
    record = next(changed for where, _, changed in entries(name) if where == path)
    record = {**record}
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    code, said = call(command, with_record(runs()[name], record))
    assert code == 2, said
    assert said.startswith("Error: Argument `path` must be a run saved by flowsim, but run.nc is damaged or foreign: ")
    assert said.count("\n") == 1


def test_no_factor_on_a_variable_is_followed(tmp_path):
    path = tmp_path / "run.nc"
    path.write_bytes(runs()["narrow"])
    before = fs.load(path)
    with h5py.File(path, "r+") as file:
        file["excess_loss"].attrs["scale_factor"] = 2.0
        file["time"].attrs["units"] = "days since 2000-01-01"
    assert (fs.load(path).excess == before.excess).all()


def test_what_is_no_json_is_not_saved(tmp_path):
    network = fs.fan_in((2, 4, 1), seed=0)
    strange = fs.LinearNetwork(network.weights, origin={"made by": {1, 2}})
    run = fs.simulate(fs.Problem(fs.SquaredLoss(np.ones((2, 1))), strange), t1=0.1)
    with pytest.raises(InputError, match="`origin`"):
        run.save(tmp_path / "run.nc")
    method = fs.Scipy("RK45", rtol=np.float32(1e-3), step_size=None)
    fs.simulate(fs.Problem(fs.SquaredLoss(np.ones((2, 1))), network), method, t1=0.1).save(tmp_path / "run.nc")
    assert fs.load(tmp_path / "run.nc").method.rtol == np.float32(1e-3)
