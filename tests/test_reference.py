"""Seven networks with loss curves, lambda_min(T) and bounds from an independent program."""

import runpy

import numpy as np
import pytest
from conftest import CASES, REFERENCE

import flowsim as fs

CURVES = [(name, method) for name in sorted(CASES) for method in ("DOP853", "Dopri8", "Tsit5")]


@pytest.mark.parametrize(("reference", "method"), CURVES, indirect=["reference"])
def test_loss_curves(reference, method):
    method = (fs.Scipy if method == "DOP853" else fs.Diffrax)(method, 1e-12, 1e-14)
    numbers, problem = reference
    times = np.array(numbers["t"])
    run = fs.simulate(problem, method, t1=times[-1], save_points=times)
    assert run.status == "completed"
    assert run.time == pytest.approx(times, abs=1e-15)
    gap = np.abs(run.loss - numbers["loss"]) / numbers["loss"][0]
    assert gap.max() <= 1e-9
    assert run.network_at(times[-1]).lambda_min_T == pytest.approx(numbers["lambda_min_T1"], rel=1e-9)


def test_least_eigenvalue_and_imbalance(reference):
    numbers, problem = reference
    assert problem.network.lambda_min_T == pytest.approx(numbers["lambda_min_T0"], rel=1e-9)
    norms = [np.linalg.norm(D) for D in problem.network.imbalances]
    assert norms == pytest.approx(numbers["imbalance_norms"], rel=1e-12)


def test_theorem_2(reference):
    numbers, problem = reference
    certificate = fs.certify(problem)["theorem-2"]
    if "theorem2_alpha" not in numbers:
        assert not certificate.applies
        return
    slack = 1e-9 * max(numbers["theorem2_alpha"], numbers["lambda_min_T0"])
    assert certificate.alpha == pytest.approx(numbers["theorem2_alpha"], abs=slack)
    assert certificate.rate == 2 * certificate.alpha


@pytest.mark.parametrize(("name", "key"), [("lemma-3", "lemma3_lower_bound"), ("theorem-1-A1", "theorem1_A1_alpha")])
def test_two_layer_bounds(reference, name, key):
    numbers, problem = reference
    certificate = fs.certify(problem)[name]
    assert certificate.applies == (key in numbers)
    if certificate.applies:
        assert certificate.alpha == pytest.approx(numbers[key], rel=1e-9, abs=1e-9 * numbers["lambda_min_T0"])


def test_the_reference_is_what_its_generator_computes():
    generator = runpy.run_path(str(REFERENCE / "generate.py"))
    for name in ("two_n2m4", "three_narrow_h_lt_n", "three_fanin_n2m3"):
        gaps = generator["gaps"](CASES[name], generator["computed"](CASES[name]))
        assert max(gaps.values()) < 1e-12, gaps
