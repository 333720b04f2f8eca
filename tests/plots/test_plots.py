"""Figures: Axes in, Axes out, and what is drawn is what was computed."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray

import flowsim as fs
from flowsim import cli
from flowsim.plots import KINDS, instantaneous_rate, thinned

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


def test_a_loss_is_drawn_as_far_as_it_is_resolved():
    problem = fs.Problem(LOSS, fs.fan_in((2, 4, 3, 1), seed=0))
    run = fs.simulate(problem, t1=60.0)
    end = run.resolved_until
    assert 0 < end < 60
    _, ax = plt.subplots()
    lines = {line.get_label(): line for line in fs.plot(run, ax, run.certificates).lines}
    times = {name: line.get_xdata()[np.isfinite(line.get_ydata())] for name, line in lines.items()}
    assert times["simulated"].max() == end
    assert times["no longer resolved"].min() == end
    assert times["no longer resolved"].max() == 60
    assert lines["no longer resolved"].get_linewidth() < lines["simulated"].get_linewidth()
    assert "no longer resolved" not in [line.get_label() for line in fs.plot(fs.simulate(problem, t1=1.0)).lines]


def sweep_of(certified, seen, drift):
    """A table of as many members."""
    columns = {"certified_rate": certified, "rate_seen": seen, "drift": drift, "time_reached": [1.0] * len(seen)}
    table = xarray.Dataset({name: ("member", np.array(values)) for name, values in columns.items()})
    for name in ("dims", "scheme", "scale", "method", "step_size", "rtol", "atol"):
        table[name] = "member", np.array(["one"] * len(seen))
    table["status"] = "member", np.array(["converged"] * len(seen))
    return table


def test_members_without_a_certified_rate_stand_at_the_edge():
    figure = fs.sweep_figure(sweep_of([0.0, np.nan, 2.0, 0.0], [3.0, 4.0, 5.0, np.nan], [0.0, 1e-9, 1e-8, 0.0]))
    _, rates, drift = figure.axes
    inside, edge, _ = rates.lines
    assert inside.get_xydata().tolist() == [[2.0, 5.0]]
    assert edge.get_ydata().tolist() == [3.0, 4.0]
    figure.draw_without_rendering()
    shown = rates.transAxes.inverted().transform(edge.get_transform().transform(edge.get_xydata()))
    assert (shown[:, 0] < 0.03).all()
    assert ((shown > 0) & (shown < 1)).all()
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[-2:] == ["no certified rate (2)", "no rate seen, not drawn (1)"]
    assert drift.lines[0].get_ydata().tolist() == [0.5, 0.75, 1.0], "those without drift are below all others"


def test_a_sweep_without_any_rate():
    figure = fs.sweep_figure(sweep_of([0.0, 0.0], [3.0, 30.0], [0.0, 0.0]))
    assert len(figure.axes[1].get_xticks()) == 0
    assert figure.axes[1].get_ylim()[1] > 30
    nothing = fs.sweep_figure(sweep_of([1.0], [np.nan], [1e-9])).axes[1]
    assert [text.get_text() for text in nothing.texts] == ["no member has it"]


def test_quantiles_of_an_ensemble():
    draw = lambda seed: fs.Problem(LOSS, fs.fan_out((2, 8, 7, 1), seed=seed))  # noqa: E731
    runs = fs.ensemble(draw, 12, t1=0.1, method="rk45", save_points=5)
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
    assert [len(ax.texts) for ax in (reached, rates)] == ([0, 0] if "stop_loss" in changes else [1, 0])
    assert sum(len(line.get_ydata()) for line in rates.lines[:-1]) > 0, "all members have a rate seen"
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


@pytest.fixture(scope="module")
def flow():
    return fs.simulate(fs.Problem(fs.SquaredLoss(np.diag([3.0, 2.0, 1.0])), fs.fan_out((3, 9, 8, 3), seed=0)), t1=1.0)


@pytest.fixture
def descent():
    return fs.simulate(fs.Problem(LOSS, fs.fan_out((2, 9, 11, 1), seed=0)), fs.GradientDescent(1e-3), t1=0.2)


def test_several_bounds_each_with_its_rate(flow):
    certificates = fs.certify(flow.problem)
    ax = fs.plot(flow, certificate=certificates)
    simulated, *bounds = ax.lines
    assert 1 <= len(bounds) <= 3
    t = simulated.get_xdata()
    for line in bounds:
        assert (simulated.get_ydata() <= line.get_ydata() * (1 + 1e-9)).all()
        name = line.get_label().removeprefix("bound of ")
        assert line.get_ydata() == pytest.approx(np.exp(-certificates[name].rate * t), rel=1e-9)


def test_the_rate_seen_is_the_slope_of_the_logarithm_of_the_loss(flow):
    ax = fs.plot_rate(flow, certificate=fs.certify(flow.problem))
    seen, certified = ax.lines[0], ax.lines[1:]
    slope = -np.gradient(np.log(flow.excess), flow.time)
    assert seen.get_ydata()[5:-1] == pytest.approx(slope[5:-1], rel=0.02)
    assert all((seen.get_ydata() >= line.get_ydata()).all() for line in certified)


def test_the_rate_of_descent_sums_to_the_fall_of_the_loss(descent):
    t, rate = instantaneous_rate(descent)
    total = (rate * np.diff(descent.step_time)).sum()
    assert total == pytest.approx(np.log(descent.excess[0] / descent.excess[-1]))
    assert len(t) == len(descent.step_time) - 1
    assert "of the flow" in fs.plot_rate(descent, certificate=fs.certify(descent.problem).best).lines[1].get_label()
    own = fs.certify(descent.problem, method=descent.method)["descent-path"]
    own = own if own.rate else fs.Certificate("own", True, 1.0, rate=2.0, excess=1.0, discrete=True)
    assert "of the flow" not in fs.plot_rate(descent, certificate=own).lines[1].get_label()


def test_drift_a_curve_a_layer_or_their_range(flow):
    ax = fs.plot_drift(flow)
    assert ax.get_yscale() == "log"
    for line, drift in zip(ax.lines, flow.imbalance_drift.T, strict=True):
        assert line.get_ydata()[1:] == pytest.approx(drift[1:])
    deep = fs.simulate(fs.Problem(LOSS, fs.orthogonal((2, *[3] * 8, 1), seed=0)), t1=0.1, save_points=5)
    greatest, least = fs.plot_drift(deep).lines
    assert greatest.get_ydata()[1:] == pytest.approx(deep.imbalance_drift[1:].max(axis=1))
    assert (least.get_ydata()[1:] <= greatest.get_ydata()[1:]).all()


def test_singular_values_tend_to_those_of_the_minimiser(flow):
    lines = fs.plot_singular_values(flow).lines
    for line, values in zip(lines[:3], flow.singular_values.T, strict=True):
        assert line.get_ydata() == pytest.approx(values)
    assert [line.get_ydata()[0] for line in lines[3:]] == pytest.approx([3, 2, 1])


def test_gradient_and_energy(flow):
    assert fs.plot_gradient_norm(flow).lines[0].get_ydata() == pytest.approx(flow.gradient_norm)
    shown = fs.plot_energy(flow).lines[0].get_ydata()
    assert shown[1:] == pytest.approx(np.abs(flow.energy_residual[1:]))


@pytest.mark.parametrize("name", ["sharpness", "kernel_distance", "effective_rank"])
def test_series_at_the_checkpoints(name, flow):
    (line,) = getattr(fs, f"plot_{name}")(flow).lines
    assert (line.get_xdata() == flow.checkpoints.times).all()
    assert line.get_ydata() == pytest.approx(getattr(flow, name)())


def test_the_edge_of_stability_stands_beside_the_sharpness_of_descent(descent):
    sharpness, edge = fs.plot_sharpness(descent).lines
    assert sharpness.get_ydata() == pytest.approx(descent.sharpness())
    assert set(edge.get_ydata()) == {2 / 1e-3}
    assert edge.get_linestyle() == "--"


SERIES = [fs.plot_sharpness, fs.plot_kernel_distance, fs.plot_effective_rank]


@pytest.mark.parametrize(
    "draw", [fs.plot, fs.plot_drift, fs.plot_rate, fs.plot_singular_values, fs.plot_energy, *SERIES]
)
def test_a_run_that_failed_at_its_first_step_is_drawn(draw):
    run = fs.simulate(fs.Problem(LOSS, fs.fan_out((2, 9, 11, 1), seed=0)), fs.GradientDescent(1e3), t1=1e6)
    assert len(run.time) == 1
    ax = draw(run)
    ax.figure.canvas.draw()
    assert ax.lines or "no step was taken" in ax.texts[0].get_text()


@pytest.mark.parametrize("names", [("theorem-2",), ("theorem-1-A1", "theorem-1-A2", "theorem-3-homogeneous")])
def test_a_legend_hides_no_data_and_is_not_clipped(names, flow):
    bounds = [fs.Certificate(name, True, rate=k + 1.0, excess=flow.excess[0]) for k, name in enumerate(names)]
    ax = fs.plot(flow, certificate=bounds)
    ax.figure.canvas.draw()
    legend, frame = ax.get_legend().get_window_extent(), ax.get_window_extent()
    assert len(ax.get_legend().texts) == 1 + len(names)
    assert legend.y0 >= frame.y1 - 1
    assert legend.x1 <= ax.figure.bbox.x1
    assert frame.width > 0.6 * ax.figure.bbox.width
    assert ax.figure.get_size_inches()[0] == pytest.approx(3.4)
    assert fs.plot(flow, plt.figure().subplots()).get_legend() is None


def test_a_loss_of_either_sign_is_drawn_as_it_is():
    class Linear:
        shape = (2, 1)

        def value(self, W):
            return W.sum()

        def gradient(self, W):
            return np.ones_like(W)

    run = fs.simulate(fs.Problem(Linear(), fs.fan_out((2, 4, 1), seed=0)), t1=0.5)
    ax = fs.plot(run)
    assert ax.get_yscale() == "linear"
    assert ax.lines[0].get_ydata()[-1] == pytest.approx(run.loss[-1])


def test_thinning_keeps_the_ends_and_the_extremes():
    values = np.sin(np.arange(100_000) / 7)
    values[54_321], values[999] = 9, -9
    places = thinned(values, 200)
    assert len(places) <= 202
    assert (np.diff(places) > 0).all()
    assert {0, 999, 54_321, 99_999} <= set(places)
    assert thinned(np.zeros((5, 2))).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("kind", "suffix"), [*((kind, "png") for kind in (*KINDS, "all")), ("all", "pdf"), ("rate", "svg")]
)
def test_the_command_draws_a_saved_run(kind, suffix, flow, tmp_path, capsys):
    flow.save(tmp_path / "run.nc")
    out = tmp_path / f"figure.{suffix}"
    assert cli.main(["plot", str(tmp_path / "run.nc"), "--out", str(out), "--kind", kind, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(out)
    assert out.read_bytes()[:5].strip() in (b"\x89PNG", b"%PDF-", b"<?xml")


def test_the_command_refuses_other_suffixes_and_kinds(flow, tmp_path, capsys):
    flow.save(tmp_path / "run.nc")
    assert cli.main(["plot", str(tmp_path / "run.nc"), "--out", str(tmp_path / "x.jpg")]) == 2
    assert "must end in one of .png, .pdf, .svg" in capsys.readouterr().err
    assert cli.main(["plot", str(tmp_path / "run.nc"), "--kind", "los"]) == 2
    assert "did you mean loss" in capsys.readouterr().err
    assert cli.main(["plot", str(tmp_path / "run.nc")]) == 0
    assert (tmp_path / "run.png").stat().st_size > 10_000
