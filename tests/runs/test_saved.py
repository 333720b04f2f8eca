"""Files of earlier versions: tests/runs/saved holds runs as flowsim wrote them before its rooms were built anew."""

import json
import runpy
from pathlib import Path

import pytest

import flowsim as fs

SAVED = Path(__file__).parent / "saved"
NUMBERS = json.loads((SAVED / "numbers.json").read_text())
GENERATE = runpy.run_path(str(SAVED / "generate.py"))


def same(found, told, name):
    if name.endswith(".certified") and told is not None:
        assert found >= told * (1 - 1e-12), name  # later versions prove more
    elif isinstance(told, dict):
        for key, value in told.items():
            same(found[key], value, f"{name}.{key}")
    elif isinstance(told, list):
        assert len(found) == len(told), name
        for mine, theirs in zip(found, told, strict=True):
            same(mine, theirs, name)
    elif isinstance(told, float):
        assert found == pytest.approx(told, rel=1e-12, abs=1e-14), name
    else:
        assert found == told, name


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_a_file_of_an_earlier_version_shows_the_same_numbers(name):
    same(GENERATE["numbers"](fs.load(SAVED / f"{name}.nc"), name == "drawn"), NUMBERS[name], name)


@pytest.mark.parametrize("name", sorted(NUMBERS))
def test_it_can_be_resumed_and_saved_again(name, tmp_path):
    old = fs.load(SAVED / f"{name}.nc")
    longer = fs.resume(old, t1=1.5 * float(old.time[-1]), save_points=3)
    assert longer.restarts[-1] == old.time[-1]
    longer.save(tmp_path / "longer.nc")
    assert fs.load(tmp_path / "longer.nc").loss == pytest.approx(longer.loss, rel=1e-14)
