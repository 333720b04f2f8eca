"""Orders, descent against the flow, and scipy against diffrax, through the study that prints them."""

import runpy
from pathlib import Path

import numpy as np
import pytest

import flowsim as fs
import flowsim.methods
from flowsim.methods import rkc_steps

STUDY = runpy.run_path(str(Path(__file__).parents[2] / "studies" / "accuracy.py"))


def test_measured_orders():
    """Tight enough to reject the neighbouring orders."""
    for name, nominal, measured, least, _ in STUDY["measured_orders"]():
        assert abs(measured - nominal) < 0.4, name
        assert least < 5e-3, name


def test_every_fixed_order_method_is_measured():
    fixed = {name for name, (_, kind) in fs.methods.METHODS.items() if kind.order is not None}
    plain = {name for name in fixed if not name.startswith("projected-")} - {"gauss-legendre"}
    assert plain <= set(STUDY["STEPS"])


def test_variable_order_methods_follow_their_tolerance():
    for rtol, *errors in STUDY["variable_order_errors"]():
        for error in errors:
            assert 1e-4 * rtol < error < 30 * rtol


@pytest.mark.parametrize("stages", [2, 3, 4, 7, 20])
def test_order_of_rkc_at_any_number_of_stages(stages, monkeypatch):
    monkeypatch.setattr(rkc_steps, "stages_for", lambda z: stages)
    problem, counts = STUDY["homogeneous_problem"](), (32, 48, 64, 96)
    errors = [STUDY["error_at_one"](problem, fs.RKC(step_size=1 / count)) for count in counts]
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(2, abs=0.1)


def test_descent_approaches_the_flow_in_proportion_to_the_step():
    gaps = [gap for _, gap in STUDY["descent_gaps"]((1e-3, 1e-4))]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.05)


def test_drift_law():
    assert STUDY["drift_law_residual"](10) < 1e-13


def test_scipy_agrees_with_diffrax():
    rtol = 1e-8
    for _, _, gap, growth in STUDY["cross_check"](4, rtol):
        assert gap <= 10 * rtol * max(growth, 1.0)
