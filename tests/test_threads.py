"""One thread of linear algebra for matrices of middling size, in every entry point; all threads for others."""

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

import flowsim as fs
from flowsim.methods import stages
from flowsim.network import LinearNetwork, gradient_factors
from flowsim.problem import Problem
from flowsim.threads import threads_for


def threads():
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


@pytest.fixture
def many():
    import scipy.linalg  # noqa: F401

    with threadpool_limits(2, user_api="blas"):
        if threads() != {2}:
            pytest.skip("this linear algebra has no threads to limit")
        yield


@pytest.mark.parametrize(("order", "within"), [(10, 2), (64, 2), (65, 1), (999, 1), (1000, 2)])
def test_the_order_decides(order, within, many):
    with threads_for(order):
        assert threads() == {within}
    assert threads() == {2}


def test_every_entry_point_limits_them(many, monkeypatch):
    seen = set()
    velocity, eigenvalues = Problem.velocity, LinearNetwork.imbalance_eigenvalues.func

    def watched(function):
        def call(*arguments):
            if not seen:  # asking takes as long as the call
                seen.update(threads())
            return function(*arguments)

        return call

    monkeypatch.setattr(Problem, "velocity", watched(velocity))
    monkeypatch.setattr(stages, "gradient_factors", watched(gradient_factors))
    monkeypatch.setattr(LinearNetwork, "imbalance_eigenvalues", property(watched(eigenvalues)))
    problem = fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.fan_in((2, 70, 1), seed=0))
    half = fs.simulate(problem, t1=0.1, save_points=3, reduce="never")
    whole = fs.resume(half, t1=0.2, save_points=3)
    for call in (fs.certify, lambda _: fs.diagnose(whole), lambda _: fs.a_posteriori(whole)):
        seen.clear()
        call(problem)
        assert seen == {1}
    seen.clear()
    fs.compare(problem, ["dop853"], t1=0.1, rtols=[1e-4], times=2, repeats=1, reduce="never")
    assert seen == {1}
