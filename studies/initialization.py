"""Which initializations do the certificates cover, at which widths, and do they tell how long the flow takes?

The left panel of Figure 1 of Min, Vidal, Mallada (ICML 2023) shows Delta* of Theorem 2 for random draws at one width.
Here: five schemes, hidden widths 10^2 to 10^6, two and three layers, 400 draws of each, in compressed form. For each
combination the study counts how often a certificate is positive, how much of lambda_min(T) at t = 0 it certifies, and
asks what the paper leaves open: whether a draw with a greater alpha is quicker. For that it simulates every draw until
L - f* has fallen by 1e-6 and takes Spearman's correlation of the time with alpha, and, beside it, with lambda_min(T(0))
and with L(0) - f*.

Of networks drawn in compressed form Theorem 2 is known by the last terms of its sums, a lower bound of Delta* that a
few products with W_2 give; the study prints what part of Delta* that is on networks drawn in full.

What it shows. Top left: alpha grows like h under fan_in and fan_out, whose layers are unbalanced the more the wider
they are, and stays bounded under ntk and xavier. Top right: for two layers the imbalance alone certifies nearly all of
lambda_min(T(0)), for three a quarter at most, and nothing for orthogonal layers, whose D_l have a sign but zero
eigenvalues as well. Bottom left: at h = 100 draws of greater alpha are quicker, by and large. Bottom right: that
correlation depends on the scheme, and beyond h = 1000 little on the width; it is perfect for two layers under fan_out,
where alpha is the rate, and -0.4 to -0.6 for three layers, where lambda_min(T(0)) says more (-0.4 to -0.9, printed).
Under orthogonal layers the start L(0) decides instead.

The draws are the sweep of studies/initialization.toml; its records stay in --records, and a second call goes on there.

    python studies/initialization.py [--out DIR] [--records DIR] [--workers 2] [--small]
"""

import argparse
import tempfile
import tomllib
from pathlib import Path

import matplotlib
import numpy as np
import xarray
from matplotlib.figure import Figure
from scipy.stats import spearmanr

import flowsim as fs
from flowsim.plots import COLOURS, MARKERS, STYLE
from flowsim.rates.theorem_2 import delta_star, last_terms

HERE = Path(__file__).parent
SCHEMES = ("fan_in", "fan_out", "ntk", "xavier", "orthogonal")
ALPHA = {2: "theorem_1_A1_alpha", 3: "theorem_2_alpha"}
"""The certificate that needs the imbalance alone, by the number of layers."""
SMALL = {"seeds": 8, "dims": [[5, 100, 1], [5, 1000, 1], [5, 100, 100, 1], [5, 1000, 1000, 1]]}


def specification(small: bool) -> fs.SweepSpec:
    """The sweep, of a few draws for a look."""
    tables = tomllib.loads((HERE / "initialization.toml").read_text("utf-8"))
    tables["sweep"] |= SMALL if small else {}
    return fs.SweepSpec.build(tables)


def cells(spec: fs.SweepSpec, table: xarray.Dataset) -> dict[tuple[int, str, int], xarray.Dataset]:
    """(layers, scheme, width) -> the members of one combination."""
    return {
        (len(sizes) - 1, scheme, sizes[1]): table.isel(
            member=np.flatnonzero((table.dims_ == ",".join(map(str, sizes))) & (table.scheme == scheme))
        )
        for sizes in spec.sweep.dims
        for scheme in spec.sweep.scheme
    }


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's; NaN where one of them does not vary."""
    return float(spearmanr(x, y).statistic) if np.ptp(x) > 1e-9 * np.abs(x).max() else np.nan


def facts(layers: int, cell: xarray.Dataset) -> dict[str, float]:
    """What is printed and drawn of one combination."""
    alpha, least, time = cell[ALPHA[layers]].values, cell.lambda_min_T.values, cell.time_reached.values
    return {
        "alpha": float(np.median(alpha)),
        "low": float(np.quantile(alpha, 0.05)),
        "high": float(np.quantile(alpha, 0.95)),
        "positive": float(np.mean(alpha > 0)),
        "share": float(np.median(alpha / least)),
        "time": float(np.median(time)),
        "with alpha": correlation(alpha, time),
        "with lambda_min": correlation(least, time),
        "with L(0)": correlation(cell.initial_loss.values, time),
    }


def part_of_delta_star(width: int, draws: int = 20) -> dict[str, float]:
    """scheme -> the median of the last terms over Delta*, of networks drawn in full."""
    networks = {
        scheme: [fs.initialize(scheme, (5, width, width, 1), seed=seed) for seed in range(draws)]
        for scheme in SCHEMES[:4]
    }
    return {
        scheme: float(np.median([last_terms(fs.compress(network, 8)) / delta_star(network) for network in drawn]))
        for scheme, drawn in networks.items()
    }


def draw(found: dict[tuple[int, str, int], dict[str, float]], members: dict[str, xarray.Dataset]) -> Figure:
    """alpha and the share of lambda_min(T) against the width; time against alpha draw by draw; the correlations."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.0, 5.6), layout="constrained")
        (ax_alpha, ax_share), (ax_draws, ax_rho) = figure.subplots(2, 2)
        for k, scheme in enumerate(SCHEMES):
            widths = sorted({width for layers, name, width in found if layers == 3 and name == scheme})
            style = {"color": COLOURS[k], "marker": MARKERS[k], "markersize": 4}
            three = [found[3, scheme, width] for width in widths]
            if max(row["alpha"] for row in three) > 0:
                middle = np.array([row["alpha"] for row in three])
                bars = np.abs([[row["low"], row["high"]] for row in three] - middle[:, None]).T
                ax_alpha.errorbar(widths, middle, bars, capsize=2, label=scheme, **style)
            for layers, line in ((2, "--"), (3, "-")):
                rows = [found[layers, scheme, width] for width in widths]
                ax_share.semilogx(widths, [row["share"] for row in rows], line, **style)
                ax_rho.semilogx(widths, [row["with alpha"] for row in rows], line, **style)
            if scheme in members:
                cell = members[scheme]
                alpha, time = cell[ALPHA[3]].values, cell.time_reached.values
                keep = {"linestyle": "none", "markersize": 2, "alpha": 0.6}
                ax_draws.plot(alpha / np.median(alpha), time / np.median(time), **{**style, **keep})
        ax_alpha.set(xscale="log", yscale="log", xlabel="hidden width $h$", ylabel=r"$\alpha$ of Theorem 2")
        ax_share.set(xlabel="hidden width $h$", ylabel=r"median of $\alpha\,/\,\lambda_{\min}(T(0))$")
        ax_share.set_ylim(-0.03, 1.05)
        ax_draws.set(xlabel=r"$\alpha$ / its median, three layers, $h = 100$", ylabel=r"time to $10^{-6}$ / its median")
        ax_rho.set(xlabel="hidden width $h$", ylabel=r"Spearman's $\rho$ of time and $\alpha$")
        ax_rho.axhline(0, color="0.7", linewidth=0.8)
        ax_rho.set_ylim(-1.05, 1.05)
        handles = [
            matplotlib.lines.Line2D([], [], color=COLOURS[k], marker=MARKERS[k], markersize=4, label=scheme)
            for k, scheme in enumerate(SCHEMES)
        ]
        handles += [
            matplotlib.lines.Line2D([], [], color="0.3", linestyle=line, label=f"{layers} layers, {name}")
            for layers, line, name in ((2, "--", "Theorem 1"), (3, "-", "Theorem 2"))
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return figure


def main() -> None:
    """Run what is missing of the sweep, print the table, write initialization.png."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--records", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    spec = specification(arguments.small)
    with tempfile.TemporaryDirectory() as temporary:
        place = arguments.records or Path(temporary) / "records"
        result = fs.sweep(spec, place, workers=arguments.workers, note=print)
        with xarray.open_dataset(result.table, engine="h5netcdf") as opened:
            table = opened.load().rename(dims="dims_")
    print(f"{result.members} draws, {result.failed} failed")
    split = cells(spec, table)
    found = {key: facts(key[0], cell) for key, cell in split.items()}
    print(
        "| layers | scheme | h | alpha > 0 | alpha: 5 %, median, 95 % | alpha / lambda_min(T) | time to 1e-6"
        " | rho(time, alpha) | rho(time, lambda_min) | rho(time, L(0)) |\n" + "|---" * 10 + "|"
    )
    for (layers, scheme, width), row in found.items():
        print(
            f"| {layers} | {scheme} | {width} | {row['positive']:.1%} | {row['low']:.3g}, {row['alpha']:.3g},"
            f" {row['high']:.3g} | {row['share']:.3f} | {row['time']:.3g} | {row['with alpha']:.2f}"
            f" | {row['with lambda_min']:.2f} | {row['with L(0)']:.2f} |"
        )
    for width in (100,) if arguments.small else (100, 300):
        parts = ", ".join(f"{scheme} {part:.2f}" for scheme, part in part_of_delta_star(width).items())
        print(f"last terms / Delta*, h = {width}, medians: {parts}")
    narrow = min(width for *_, width in found)
    shown = {scheme: split[3, scheme, narrow] for scheme in SCHEMES if found[3, scheme, narrow]["alpha"] > 0}
    arguments.out.mkdir(parents=True, exist_ok=True)
    draw(found, shown).savefig(arguments.out / "initialization.png", dpi=200)
    print(f"Wrote {arguments.out / 'initialization.png'}")


if __name__ == "__main__":
    main()
