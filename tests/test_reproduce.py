"""Figure 1 at small size, through the study that draws it."""

import json
import runpy
import sys
from pathlib import Path

import pytest

STUDY = Path(__file__).parent.parent / "studies" / "figure1.py"


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("figure1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["figure1.py", "--small", "--out", str(out)])
        runpy.run_path(str(STUDY), run_name="__main__")
    assert (out / "figure1.png").stat().st_size > 10_000
    assert (out / "figure1.pdf").read_bytes()[:4] == b"%PDF"
    return json.loads((out / "figure1.json").read_text())


def test_no_bound_is_below_its_loss(result):
    assert len(result["rows"]) == 4
    for row in result["rows"]:
        assert row["steps"] > 50
        assert row["steps_above_bound"] == 0
        assert row["delta_star"] > 0
        assert 0 < row["bound_over_rate"] < 1


def test_medians_increase_with_width(result):
    assert all(result["holds"].values())


def test_the_flow_conserves_what_descent_does_not(result):
    for row in result["rows"]:
        assert row["drift_flow"] < 1e-8 < row["drift_descent"]
        assert row["gap_descent_flow"] < 0.05
