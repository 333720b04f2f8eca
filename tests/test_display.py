"""How results show themselves: plain, by rich, as HTML."""

import io

import numpy as np
import pytest
from rich.console import Console

import flowsim as fs
from flowsim.display import Table

LOSS = fs.SquaredLoss(np.ones((2, 1)))


@pytest.fixture(scope="module")
def problem():
    return fs.Problem(LOSS, fs.fan_out((2, 40, 50, 1), seed=0))


@pytest.fixture(scope="module")
def results(problem):
    flow = fs.simulate(problem, t1=0.1)
    return {
        "trajectory": (flow, ("completed", "Auto", "certified", "drift", "MiB")),
        "certificates": (fs.certify(problem), ("theorem-2", "alpha", "best: path")),
        "diagnosis": (fs.diagnose(flow), ("imbalance D_1", "residual", "every law")),
        "comparison": (fs.compare(problem, ["rk45"], t1=0.1, rtols=(1e-4,), repeats=1), ("rk45", "seconds")),
        "ensemble": (fs.ensemble(lambda s: problem, 3, t1=0.1, method=fs.Scipy()), ("3 completed", "quantiles")),
    }


@pytest.mark.parametrize("name", ["trajectory", "certificates", "diagnosis", "comparison", "ensemble"])
def test_every_result_in_every_place(name, results):
    result, words = results[name]
    console = Console(file=io.StringIO(), width=200)
    console.print(result)
    for text in (repr(result), result._repr_html_(), console.file.getvalue()):
        for word in words:
            assert word in text, word
    assert result._repr_html_().count("<table>") == 1


def test_columns_are_aligned_and_words_escaped():
    table = Table([("a", "1.5", "<b>"), ("long", "-", "x")], ("name", "number", "remark"), "title", "foot & end")
    assert table.text().splitlines() == [
        "title",
        "name  number  remark",
        "a        1.5  <b>",
        "long       -  x",
        "foot & end",
    ]
    assert "&lt;b&gt;" in table.html()
    assert "foot &amp; end" in table.html()
    assert Table([("a", "1")]).text() == "a  1"


def test_a_run_that_went_nowhere_shows_itself(problem):
    wild = fs.simulate(problem, fs.GradientDescent(50.0), t1=100.0)
    assert wild.status == "diverged"
    assert "lower step_size" in repr(wild)
    still = fs.simulate(problem, t1=1.0, max_steps=1, stop_loss=1e9)
    assert still.rate_seen is None
    assert "seen not known: no step was taken" in repr(still)


def test_a_certificate_shows_itself():
    problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
    certificates = fs.certify(problem)
    assert "10" in certificates["lemma-3"].summary()
    assert "at these weights only" in certificates["lemma-3"].summary()
    assert "exp(-rate t)" in certificates["theorem-1-A1"]._repr_html_()
    assert "three layers" in repr(certificates["theorem-2"])
