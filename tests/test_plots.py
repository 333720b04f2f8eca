"""Figures: Axes in, Axes out, and what is drawn is what was computed."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray

import flowsim as fs
from flowsim import cli

LOSS = fs.SquaredLoss(np.ones((2, 1)))


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_the_loss_and_its_bound_on_axes_that_are_given():
    problem = fs.Problem(LOSS, fs.fan_out((2, 9, 11, 1), seed=0))
    flow, best = fs.simulate(problem, t1=0.2), fs.certify(problem).best
    _, ax = plt.subplots()
    assert fs.plot(flow, ax, best) is ax
    curve, bound = (line.get_ydata() for line in ax.lines)
    assert curve[0] == bound[0] == 1
    assert (curve <= bound * (1 + 1e-9)).all()
    assert "t" in ax.get_xlabel()


def test_quantiles_of_an_ensemble():
    runs = fs.ensemble(lambda seed: fs.Problem(LOSS, fs.fan_out((2, 8, 7, 1), seed=seed)), 12, t1=0.1, save_points=5)
    ax = fs.plot_quantiles(runs)
    assert ax.lines[0].get_ydata() == pytest.approx(runs.quantiles((0.5,))[0])
    assert len(ax.collections) == 2


TABLE = {"dims": [[2, 8, 7, 1], [2, 9, 1]], "scheme": ["fan_in", "fan_out", "xavier"], "seeds": 3, "t1": 5.0}


@pytest.mark.parametrize("changes", [{"stop_loss": 0.5}, {"certificates": "none", "scheme": "ntk"}])
def test_a_sweep_drawn_by_request(changes, tmp_path):
    spec = fs.SweepSpec.build({"sweep": {**TABLE, **changes}})
    result = fs.sweep(spec, tmp_path / "out")
    with xarray.open_dataset(result.table) as table:
        reached, rates, drift = fs.sweep_figure(table.load()).axes
    assert [len(ax.texts) for ax in (reached, rates)] == ([0, 0] if "stop_loss" in changes else [1, 1])
    if "stop_loss" in changes:
        shares = [line.get_ydata()[-1] for line in reached.lines]
        assert len(shares) == 6
        assert max(shares) == 1
        assert rates.get_yscale() == "log"
    assert drift.lines


def test_a_figure_beside_the_table(tmp_path):
    path = tmp_path / "spec.toml"
    path.write_text("[sweep]\ndims = [[2, 8, 1]]\nseeds = 2\nt1 = 0.1\n")
    assert cli.main(["sweep", str(path), "--out", str(tmp_path / "out"), "--plot"]) == 0
    assert (tmp_path / "out" / "table.png").stat().st_size > 10_000
