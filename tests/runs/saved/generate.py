"""Runs as a version of flowsim saved them, and the numbers that it showed of them: what later versions must read.

    python tests/runs/saved/generate.py FOLDER

makes the files of the installed version. They are made anew only where a schema ends.
"""

import json
import sys
from pathlib import Path

import numpy as np

import flowsim as fs


def runs():
    X = np.random.default_rng(0).standard_normal((20, 3))
    squares = fs.LeastSquares(X, X @ np.ones((3, 2)) + 0.1)
    some = fs.MaskedSquaredLoss(np.ones((3, 2)), np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    labelled = X[:6], np.sign(X[:6, :1])
    narrow = fs.xavier((3, 4, 1), seed=0)
    projected = fs.simulate(fs.Problem(fs.ExponentialLoss(*labelled), narrow), "projected-rk45", t1=0.5, save_points=3)
    wide = fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.fan_out((2, 30, 20, 1), seed=1))
    drawn = fs.Problem(fs.SquaredLoss([[1.0]]), fs.sample_compressed("fan_out", (1, 10**6, 10**6, 1), seed=1))
    return {
        "flow": fs.simulate(fs.Problem(squares, fs.fan_in((3, 6, 5, 2), seed=3)), t1=0.3, save_points=5),
        "compressed": fs.simulate(wide, t1=0.05, save_points=5, reduce="always"),
        "drawn": fs.simulate(drawn, t1=1e-6, save_points=3),
        "descent": fs.simulate(
            fs.Problem(some, fs.ntk((3, 5, 4, 2), seed=0)), fs.GradientDescent(1e-2), t1=0.5, save_points=5
        ),
        "resumed": fs.resume(projected, t1=1.0, save_points=3),
        "stiff": fs.simulate(
            fs.Problem(fs.LogisticLoss(*labelled), narrow),
            fs.GaussLegendre(3),
            t1=2.0,
            save_points=5,
            stop_gradient=0.1,
        ),
    }


def numbers(run, drawn):
    """What a run shows; the weights half way, but of a network too wide for them."""
    at = 0.505 * float(run.time[-1])
    best = fs.certify(run.problem).best
    return {
        "status": run.status,
        "message": run.message,
        "key": str(run.method),
        "loss": run.loss.tolist(),
        "time": run.time.tolist(),
        "rate_seen": run.rate_seen,
        "drift": float(run.imbalance_drift.max()),
        "energy_residual": float(np.abs(run.energy_residual).max()),
        "product": run.product_at(at).tolist(),
        "steps": run.stats["steps"],
        "restarts": list(run.restarts),
        "certified": None if best is None else best.rate,
        "weights": None if drawn else [W.tolist() for W in run.weights_at(at)],
    }


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, run in runs().items():
        run.save(folder / f"{name}.nc")
        found[name] = numbers(run, name == "drawn")
    (folder / "numbers.json").write_text(json.dumps(found, indent=0))


if __name__ == "__main__":
    main()
