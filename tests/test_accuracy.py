"""Orders, descent against the flow, and scipy against diffrax, through the study that prints them."""

import runpy
from pathlib import Path

import pytest

STUDY = runpy.run_path(str(Path(__file__).parent.parent / "studies" / "accuracy.py"))


def test_measured_orders():
    """Tight enough to reject the neighbouring orders."""
    for name, nominal, measured, least, _ in STUDY["measured_orders"]():
        assert abs(measured - nominal) < 0.4, name
        assert least < 1e-3, name


def test_lsoda_follows_its_tolerance():
    for rtol, error in STUDY["lsoda_errors"]():
        assert 1e-4 * rtol < error < 5 * rtol


def test_descent_approaches_the_flow_in_proportion_to_the_step():
    gaps = [gap for _, gap in STUDY["descent_gaps"]((1e-3, 1e-4))]
    assert gaps[0] / gaps[1] == pytest.approx(10, rel=0.05)


def test_drift_law():
    assert STUDY["drift_law_residual"](10) < 1e-13


def test_scipy_agrees_with_diffrax():
    rtol = 1e-8
    for _, _, gap, growth in STUDY["cross_check"](4, rtol):
        assert gap <= 10 * rtol * max(growth, 1.0)
