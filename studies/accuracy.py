"""How accurate is each method, measured against closed forms and against the others?

Five tables. Orders: every method at fixed steps on a two-layer network with D_1 = 0.5 I, whose flow has a closed form
(a Riccati equation; those for momentum on its heavy ball, against a solve at rtol 1e-13); the slope of log(error) in
log(step) should be the nominal order. LSODA and BDF vary their order,
so their error stands against rtol. Gradient descent: its distance from the flow is proportional to the step size.
Drift law: one step changes D_l by exactly eta^2 (G_l^T G_l - G_{l+1} G_{l+1}^T). Cross-check: scipy's DOP853 against
diffrax's Tsit5 at rtol 1e-8 on random problems of depth 2 to 5. Takes about two minutes, most of it jax compiling for
fifty shapes.

    python studies/accuracy.py
"""

import argparse

import numpy as np

import flowsim as fs
from flowsim.exact import riccati
from flowsim.methods import METHODS, Method
from flowsim.network import backpropagate, imbalance, unflatten

STEPS: dict[str, tuple[int, ...]] = {
    "rk23": (32, 48, 64, 96),
    "rk45": (32, 48, 64, 96),
    "dop853": (6, 8, 10, 12),
    "radau": (16, 24, 32, 48),
    "euler": (64, 96, 128, 192),
    "heun": (32, 48, 64, 96),
    "midpoint": (32, 48, 64, 96),
    "ralston": (32, 48, 64, 96),
    "bosh3": (32, 48, 64, 96),
    "tsit5": (48, 64, 96, 128),
    "dopri5": (32, 48, 64, 96),
    "dopri8": (6, 8, 10, 12),
    "implicit-euler": (64, 96, 128, 192),
    "kvaerno3": (32, 48, 64, 96),
    "kvaerno4": (32, 48, 64, 96),
    "kvaerno5": (16, 24, 32, 48),
    "rkc": (32, 48, 64, 96),
    "gauss-legendre-1": (16, 24, 32, 48),
    "gauss-legendre-2": (6, 8, 12, 16),
    "gauss-legendre-3": (3, 4, 5, 6),
    "gauss-legendre-4": (8, 10, 12, 14),
    "projected-rk45": (32, 48, 64, 96),
    "projected-dop853": (6, 8, 10, 12),
    "projected-midpoint": (32, 48, 64, 96),
    "leapfrog": (32, 48, 64, 96),
    "leapfrog-4": (16, 24, 32, 48),
    "gd": (1000, 2000, 4000, 8000),
}
"""method -> numbers of steps at which its error is neither round-off nor far from the limit."""


def homogeneous_problem() -> fs.Problem:
    """n = 5, h = m = 3, D_1 = 0.5 I, a Gaussian target."""
    rng = np.random.default_rng(1)
    W2 = 0.4 * rng.standard_normal((3, 3))
    values, vectors = np.linalg.eigh(W2 @ W2.T + 0.5 * np.eye(3))
    W1 = np.linalg.qr(rng.standard_normal((5, 3)))[0] @ (np.sqrt(values)[:, None] * vectors.T)
    return fs.Problem(fs.SquaredLoss(0.5 * rng.standard_normal((5, 3))), fs.LinearNetwork((W1, W2)))


def error_at_one(problem: fs.Problem, method: Method) -> float:
    """||W(1) - the closed form||_F."""
    run = fs.simulate(problem, method, t1=1.0, save_points=2)
    return float(np.linalg.norm(run.product_at(run.time[-1]) - riccati(problem.network, problem.loss.Y, 1.0)[0]))


def momentum_error_at_one(problem: fs.Problem, method: Method) -> float:
    """||W(1) - a far tighter solve||_F of the heavy ball with friction 1/2."""
    runs = [
        fs.simulate(problem, m, t1=1.0, dynamics=fs.HeavyBall(0.5), save_points=2)
        for m in (method, fs.Scipy("DOP853", 1e-13, 1e-15))
    ]
    return float(np.linalg.norm(runs[0].product_at(runs[0].time[-1]) - runs[1].product_at(1.0)))


def measured_orders() -> list[tuple[str, int, float, float, float]]:
    """(method, nominal order, measured order, least error, greatest error)."""
    problem, rows = homogeneous_problem(), []
    for name, counts in STEPS.items():
        error = momentum_error_at_one if METHODS[name].kind.inertial else error_at_one
        errors = [error(problem, fs.method_named(name, step_size=1 / count)) for count in counts]
        slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
        rows.append((name, METHODS[name][1].order or 0, float(slope), min(errors), max(errors)))
    return rows


def variable_order_errors() -> list[tuple[float, float, float]]:
    """(rtol, error of LSODA, error of BDF) with atol = rtol / 100."""
    problem = homogeneous_problem()
    return [
        (rtol, *(error_at_one(problem, fs.Scipy(name, rtol, rtol / 100)) for name in ("LSODA", "BDF")))
        for rtol in 10.0 ** -np.arange(4, 13)
    ]


def descent_gaps(step_sizes: tuple[float, ...] = (1e-3, 1e-4, 1e-5)) -> list[tuple[float, float]]:
    """(step size, greatest |L_descent - L_flow| / L(0)) for a network of widths (1, 30, 50, 1) until t = 0.1."""
    problem = fs.Problem(fs.SquaredLoss(np.full((1, 1), 2.0)), fs.fan_out((1, 30, 50, 1), seed=0))
    times = np.linspace(0.0, 0.1, 21)
    flow = fs.simulate(problem, fs.Scipy("DOP853", 1e-12, 1e-14), t1=0.1, save_points=times)
    gaps = []
    for eta in step_sizes:
        descent = fs.simulate(problem, fs.GradientDescent(eta), t1=0.1, save_points=times)
        gaps.append((eta, float(np.abs(descent.loss - flow.loss).max() / flow.loss[0])))
    return gaps


def drift_law_residual(steps: int = 50) -> float:
    """The greatest ||D_l(k+1) - D_l(k) - eta^2 (G_l^T G_l - G_{l+1} G_{l+1}^T)||_F / max(1, ||D_l||_F) over steps."""
    eta, worst = 5e-3, 0.0
    problem = fs.Problem(fs.SquaredLoss(np.ones((3, 2))), fs.fan_in((3, 8, 9, 7, 2), seed=0))
    run = fs.simulate(problem, fs.GradientDescent(eta), t1=steps * eta, save_points=steps + 1)
    for k in range(steps):
        before, after = run.weights_at(run.time[k]), run.weights_at(run.time[k + 1])
        _, G = backpropagate(problem.loss, before)
        for layer in range(1, problem.network.depth):
            D = imbalance(before, layer)
            law = eta**2 * (G[layer - 1].T @ G[layer - 1] - G[layer] @ G[layer].T)
            residual = np.linalg.norm(imbalance(after, layer) - D - law) / max(1.0, float(np.linalg.norm(D)))
            worst = max(worst, float(residual))
    return worst


def random_problem(index: int) -> fs.Problem:
    """Depth 2 to 5, ends 1 to 4, hidden widths 4 to 10, several schemes; the target Gaussian."""
    rng = np.random.default_rng([7, index])
    depth = 2 + index % 4
    dims = (int(rng.integers(1, 5)), *map(int, rng.integers(4, 11, depth - 1)), int(rng.integers(1, 5)))
    scheme = ("fan_in", "fan_out", "xavier", "orthogonal", "balanced")[index % 5]
    network = fs.initialize(scheme, dims, seed=index, scale=float(rng.choice([0.3, 1.0])))
    return fs.Problem(fs.SquaredLoss(rng.standard_normal((dims[0], dims[-1]))), network)


def cross_check(count: int = 50, rtol: float = 1e-8) -> list[tuple[int, tuple[int, ...], float, float]]:
    """(case, dims, greatest |L_scipy - L_diffrax| / L(0), growth of a small change of the start) until t = 2."""
    rows = []
    for index in range(count):
        problem = random_problem(index)
        one = fs.simulate(problem, fs.Scipy("DOP853", rtol, rtol / 100), t1=2.0)
        two = fs.simulate(problem, fs.Diffrax("Tsit5", rtol, rtol / 100), t1=2.0)
        gap = float(np.abs(one.loss - two.loss).max() / one.loss[0])
        rows.append((index, problem.network.dims, gap, _growth(problem, one)))
    return rows


def _growth(problem: fs.Problem, run: fs.Trajectory) -> float:
    """How much an early difference of the weights has grown at its greatest."""
    rng = np.random.default_rng(0)
    state = problem.initial_state
    nudge = 1e-6 * rng.standard_normal(state.size) / np.sqrt(state.size)
    moved = problem.network.with_weights(unflatten(state + nudge, problem.network.dims))
    other = fs.simulate(fs.Problem(problem.loss, moved), run.method, t1=float(run.time[-1]))
    apart = np.linalg.norm(other.checkpoints.states - run.checkpoints.states, axis=1)
    return float(apart.max() / apart[0])


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer cases, seconds")
    small = parser.parse_args().small
    print("method              nominal  measured  errors")
    for name, nominal, measured, low, high in measured_orders():
        print(f"{name:18}  {nominal:7}  {measured:8.2f}  {low:.1e} to {high:.1e}")
    print("\nrtol    LSODA error  BDF error")
    for rtol, lsoda, bdf in variable_order_errors():
        print(f"{rtol:.0e}  {lsoda:11.1e}  {bdf:9.1e}")
    print("\nstep size  gap between descent and flow")
    for eta, gap in descent_gaps():
        print(f"{eta:9.0e}  {gap:.3e}")
    print(f"\ndrift law: worst relative residual {drift_law_residual():.1e}")
    rtol = 1e-8
    rows = cross_check(5 if small else 50, rtol)
    print(f"\nDOP853 against Tsit5, rtol {rtol:.0e}, {len(rows)} problems: worst gap {max(row[2] for row in rows):.1e}")
    over = [row for row in rows if row[2] > 10 * rtol]
    print(
        f"{len(over)} above 10 rtol"
        + "".join(f"\n  case {i}, dims {d}: {g:.1e}, growth {a:.0f}" for i, d, g, a in over)
    )


if __name__ == "__main__":
    main()
