"""Each dynamics against an independent solver and closed forms, by every kind of method, compressed and not."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.special import jv

import flowsim as fs
from flowsim.dynamics import DYNAMICS, Motion, as_dynamics
from flowsim.errors import InputError
from flowsim.network import imbalance_change

OBEYED = (fs.GradientFlow(), fs.HeavyBall(0.5), fs.Nesterov(), fs.ModifiedFlow(0.02))
TIGHT = fs.Scipy("DOP853", 1e-12, 1e-14)
BY_EVERY_KIND = [
    (method, dynamics)
    for method in ("dop853", "lsoda", "radau", "bdf", "tsit5", "gauss-legendre-3", "rkc", "leapfrog-4")
    for dynamics in OBEYED
    if not (method == "rkc" and dynamics.second_order) and not (method == "leapfrog-4" and not dynamics.second_order)
]


def problem_of(seed, weight_decay=0.0):
    """Depth 2 to 5, small, a Gaussian target."""
    rng = np.random.default_rng(seed)
    depth = 2 + seed % 4
    dims = (int(rng.integers(1, 4)), *map(int, rng.integers(3, 6, depth - 1)), int(rng.integers(1, 4)))
    loss = fs.SquaredLoss(rng.standard_normal((dims[0], dims[-1])))
    return fs.Problem(loss, fs.fan_in(dims, seed=seed), weight_decay=weight_decay)


def written_out(problem, dynamics, t1, t0=1e-9):
    """The weights at t1 by scipy's DOP853 on equations written here anew, layer by layer."""
    dims, Y, x = problem.network.dims, problem.loss.Y, problem.weight_decay
    ends = np.cumsum([0, *(a * b for a, b in pairwise(dims))])

    def gradient(y):
        W = [y[s:e].reshape(shape) for (s, e), shape in zip(pairwise(ends), pairwise(dims), strict=True)]
        E = np.linalg.multi_dot([np.eye(dims[0]), *W]) - Y
        parts = []
        for k in range(len(W)):
            A, B = np.eye(dims[0]), np.eye(dims[-1])
            for V in W[:k]:
                A = A @ V
            for V in reversed(W[k + 1 :]):
                B = V @ B
            parts.append((A.T @ E @ B.T).ravel() + x * W[k].ravel())
        return np.concatenate(parts)

    start = np.concatenate([W.ravel() for W in problem.network.weights])
    size, tolerances = start.size, {"method": "DOP853", "rtol": 1e-13, "atol": 1e-15}
    if not dynamics.second_order:
        return solve_ivp(lambda _, y: -gradient(y), (0, t1), start, **tolerances).y[:, -1]
    nesterov = isinstance(dynamics, fs.Nesterov)

    def velocity(t, z):
        b = 3 / t if nesterov else dynamics.friction
        return np.concatenate([z[size:], -gradient(z[:size]) - b * z[size:]])

    first = np.zeros(size) if not nesterov else -gradient(start) * t0 / 4
    return solve_ivp(velocity, (t0 if nesterov else 0, t1), np.append(start, first), **tolerances).y[:size, -1]


@pytest.mark.parametrize("dynamics", OBEYED[:3], ids=lambda d: d.name)
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_against_equations_written_out(dynamics, weight_decay):
    for seed in range(4):
        problem = problem_of(seed, weight_decay)
        run = fs.simulate(problem, TIGHT, t1=1.5, dynamics=dynamics)
        assert run.checkpoints.states[-1] == pytest.approx(written_out(problem, dynamics, 1.5), abs=1e-10)


@pytest.mark.parametrize(("method", "dynamics"), BY_EVERY_KIND, ids=str)
def test_every_kind_of_method(method, dynamics):
    problem = problem_of(1, weight_decay=0.1)
    true = fs.simulate(problem, TIGHT, t1=2.0, dynamics=dynamics).checkpoints.states
    step = 0.02 if method.startswith("leapfrog") else None
    found = fs.simulate(problem, fs.method_named(method, step_size=step), t1=2.0, dynamics=dynamics).checkpoints.states
    assert np.abs(found - true).max() < (1e-5 if method in ("lsoda", "bdf", "rkc", "leapfrog-4") else 1e-6)


@pytest.mark.parametrize("dynamics", OBEYED, ids=lambda d: d.name)
def test_the_jacobian_is_the_derivative_of_the_velocity(dynamics, rng):
    """But for the third derivative of L, which the modified flow leaves out."""
    motion = Motion(problem_of(2, weight_decay=0.2), dynamics)
    state = motion.initial_state + 0.1 * rng.standard_normal(motion.initial_state.size)
    V = rng.standard_normal((3, state.size))
    told, differences = motion.jacobian_product(1.5, state, V), motion._difference(1.5, state, V)
    allowed = 1e-7 if dynamics.name != "ModifiedFlow" else 15 * dynamics.step_size
    assert np.abs(told - differences).max() < allowed * np.abs(told).max()


@pytest.mark.parametrize("dynamics", OBEYED, ids=lambda d: d.name)
def test_a_stack_of_states_and_of_times_is_each_of_them(dynamics, rng):
    motion = Motion(problem_of(1), dynamics)
    states, times = rng.standard_normal((4, motion.initial_state.size)), np.array([0.0, 0.5, 1.0, 2.0])
    stacked = motion.velocity(times, states)
    assert stacked == pytest.approx(np.array([motion.velocity(t, y) for t, y in zip(times, states, strict=True)]))


@pytest.mark.parametrize("dynamics", OBEYED[:3], ids=lambda d: d.name)
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
@pytest.mark.parametrize("dims", [(2, 30, 1), (1, 60, 80, 2), (1, 30, 40, 30, 1)])
def test_compressed_is_full(dynamics, weight_decay, dims):
    """Hidden bases commute with momentum and with decay, which shrinks what the loss does not reach."""
    problem = fs.Problem(
        fs.SquaredLoss(np.ones((dims[0], dims[-1]))), fs.fan_out(dims, seed=0), weight_decay=weight_decay
    )
    full, small = (
        fs.simulate(problem, t1=1.0, dynamics=dynamics, reduce=reduce, save_points=5) for reduce in ("never", "always")
    )
    assert small.reduction.network is not None
    for t in (0.25, 0.4, 1.0):
        gaps = [np.linalg.norm(V - W) for V, W in zip(small.weights_at(t), full.weights_at(t), strict=True)]
        assert np.linalg.norm(gaps) < 1e-6
        assert np.linalg.norm(gaps) <= 1e-7 + 3 * small.error_estimate.max()
    assert small.imbalance_change == pytest.approx(full.imbalance_change, abs=1e-6)
    assert abs(small.energy_residual).max() < 1e-7
    assert small.gradient_norm == pytest.approx(full.gradient_norm, rel=1e-6, abs=1e-5)
    size = full.steps.energy[0]
    assert small.steps.energy[[0, -1]] == pytest.approx(full.steps.energy[[0, -1]], abs=1e-7 * size)
    assert small.steps.dissipated[-1] == pytest.approx(full.steps.dissipated[-1], rel=1e-6)


def test_stopping_by_the_gradient_counts_what_decay_does_outside_of_the_core():
    """As the full weights stop: late, for x W decays slowly."""
    problem = fs.Problem(fs.SquaredLoss(np.ones((2, 2))), fs.fan_out((2, 30, 40, 2), seed=0), weight_decay=0.5)
    runs = [fs.simulate(problem, t1=20.0, stop_gradient=0.05, reduce=reduce) for reduce in ("never", "always")]
    assert [run.status for run in runs] == ["converged"] * 2
    assert runs[0].time[-1] == pytest.approx(runs[1].time[-1], rel=1e-6)
    assert runs[1].gradient_norm[-1] == pytest.approx(0.05, rel=1e-6)


def test_a_core_that_grows_on_the_way_counts_what_decay_does_outside_of_it():
    """Energy and gradient norms of before are those of the finer core."""
    problem = fs.Problem(fs.SquaredLoss([[1.0, 2.0], [-1.0, 1.0]]), fs.fan_in((2, 12, 9, 2), seed=0), weight_decay=0.2)
    for dynamics in (fs.GradientFlow(), fs.HeavyBall(1.0)):
        run = fs.simulate(problem, t1=5.0, dynamics=dynamics, reduce="always")
        assert run.reduction.network.steps > 1
        assert abs(run.energy_residual).max() < 1e-7
        diagnosis = fs.diagnose(run)
        assert diagnosis.exit_code == 0, diagnosis


@pytest.mark.parametrize("dims", [(2, 900, 1), (2, 60, 300, 1), (1, 40, 1)])
def test_the_change_of_the_imbalance_in_a_small_basis(dims, rng):
    """Where ranks are small it is the same, to the rounding of the terms that cancel."""
    weights = [rng.standard_normal(shape) for shape in pairwise(dims)]
    A, E = rng.standard_normal((dims[0], dims[0])), fs.SquaredLoss(np.ones((dims[0], dims[-1])))
    _, G = fs.Problem(E, fs.LinearNetwork(tuple(weights))).gradients(weights)
    for changes in ([1e-6 * g for g in G], [A[0, 0] * g for g in G], [rng.standard_normal(g.shape) for g in G]):
        halves = [
            C.T @ (W + 0.5 * C) - (V + 0.5 * B) @ B.T
            for W, C, V, B in zip(weights, changes, weights[1:], changes[1:], strict=False)
        ]
        plain = np.array([np.linalg.norm(half + half.T) for half in halves])
        sizes = np.array([np.linalg.norm(C) * np.linalg.norm(W) for W, C in zip(weights, changes, strict=True)])
        assert np.abs(imbalance_change(weights, changes) - plain).max() < 1e-14 * sizes.max() + 1e-12 * plain.max()


@given(x=st.floats(0.0, 4.0), t=st.floats(0.0, 5.0), friction=st.floats(0.0, 4.0))
def test_what_decay_leaves(x, t, friction):
    """q'' + b q' + x q = 0 from q = 1 at rest, by quadrature of a solver; q' too. Critical damping among them."""
    for dynamics in (fs.HeavyBall(friction), fs.HeavyBall(2 * x**0.5)):
        q, slope = dynamics.remaining(x, np.array(t))
        b = dynamics.friction
        if t:
            found = solve_ivp(
                lambda _, z, b=b: [z[1], -b * z[1] - x * z[0]], (0, t), [1.0, 0.0], rtol=1e-10, atol=1e-12
            )
            assert (q, slope) == (pytest.approx(found.y[0, -1], abs=1e-7), pytest.approx(found.y[1, -1], abs=1e-7))
    z = x**0.5 * t
    assert fs.Nesterov().remaining(x, np.array(t))[0] == pytest.approx(2 * jv(1, z) / z if z > 1e-9 else 1.0, abs=1e-12)


@given(s=st.floats(0.0, 3.0), h=st.floats(1e-3, 2.0), friction=st.floats(0.0, 5.0))
def test_friction_alone_and_a_constant_force(s, h, friction):
    """V' = -b V - 1: faded and kicked, against a solver; reach is the integral of faded."""
    for dynamics in (fs.HeavyBall(friction), fs.Nesterov()):
        begun = 0.1 + s
        end = begun + h
        told = dynamics.faded(begun, end) * 2.0 - dynamics.kicked(begun, end)
        found = solve_ivp(lambda t, V, d=dynamics: -d.damping(t) * V - 1, (begun, end), [2.0], rtol=1e-10, atol=1e-12)
        assert told == pytest.approx(found.y[0, -1], abs=1e-7)
        nodes, weights = np.polynomial.legendre.leggauss(40)
        inside = begun + 0.5 * h * (1 + nodes)
        area = 0.5 * h * weights @ dynamics.faded(begun, inside)
        assert dynamics.reach(np.array(begun), end) == pytest.approx(area, rel=1e-8)
        pushed = 0.5 * h * weights @ dynamics.kicked(begun, inside)
        assert dynamics.swept(begun, end) == pytest.approx(pushed, rel=1e-8)


@pytest.mark.parametrize("dynamics", OBEYED, ids=lambda d: d.name)
@pytest.mark.parametrize("t1", [5e-324, 1e-200, 1e-12])
def test_tiny_spans_end(dynamics, t1):
    problem = problem_of(0, weight_decay=0.1)
    methods = [
        fs.Scipy(),
        fs.Scipy("LSODA"),
        fs.GaussLegendre(2),
        *([fs.Leapfrog(t1)] if dynamics.second_order else []),
    ]
    for method in methods:
        run = fs.simulate(problem, method, t1=t1, dynamics=dynamics, save_points=3)
        assert run.status == "completed" or t1 == 5e-324
        assert run.excess[-1] == pytest.approx(run.excess[0], rel=1e-9)


@pytest.mark.parametrize("dynamics", OBEYED, ids=lambda d: d.name)
@pytest.mark.parametrize("method", [fs.Scipy(), fs.Scipy("Radau"), fs.GaussLegendre(2), fs.Leapfrog(1.0)], ids=str)
def test_what_overflows_is_a_status(dynamics, method):
    """A target of 1e150, or steps far too long: never a traceback, never a number that is none."""
    if isinstance(method, fs.Leapfrog) and not dynamics.second_order:
        return
    for target, t1 in ((1e150, 1e-70), (50.0, 30.0)):
        problem = fs.Problem(fs.SquaredLoss(np.full((2, 1), target)), fs.fan_in((2, 4, 1), seed=0))
        run = fs.simulate(problem, method, t1=t1, dynamics=dynamics, max_steps=200)
        assert run.status in ("completed", "diverged", "step_limit")
        assert run.detail or run.status != "diverged"
        assert np.isfinite(run.excess).all()
        assert np.isfinite(run.checkpoints.states).all()


def test_two_oscillators_with_decay():
    """A target of 0 at the weights 0 but one: that layer obeys q'' + b q' + x q = 0 and the loss says nothing."""
    network = fs.LinearNetwork((np.array([[2.0]]), np.array([[0.0]])))
    problem = fs.Problem(fs.SquaredLoss([[0.0]]), network, weight_decay=3.0)
    for dynamics in (fs.HeavyBall(0.5), fs.Nesterov(), fs.GradientFlow()):
        run = fs.simulate(problem, TIGHT, t1=4.0, dynamics=dynamics)
        q, _ = dynamics.remaining(3.0, run.checkpoints.times)
        assert run.checkpoints.states[:, 0] == pytest.approx(2.0 * q, abs=1e-10)


@pytest.mark.parametrize("dynamics", [fs.HeavyBall(0.5), fs.Nesterov()], ids=lambda d: d.name)
@pytest.mark.parametrize("order", [2, 4])
def test_leapfrog_keeps_its_laws_and_its_order_between_steps(dynamics, order):
    problem, t = problem_of(2, weight_decay=0.1), 1.234
    true = fs.simulate(problem, TIGHT, t1=2.0, dynamics=dynamics, save_points=[t]).checkpoints.whole(1)
    errors = []
    for h in (0.1, 0.05):
        run = fs.simulate(problem, fs.Leapfrog(h, order), t1=2.0, dynamics=dynamics, save_points=[t])
        state = run.checkpoints.whole(1)
        assert max(run.motion.residuals(t, state).values()) < 1e-14
        errors.append(np.linalg.norm(state - true))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4)


@pytest.mark.parametrize("friction", [1e2, 1e6])
def test_leapfrog_with_friction_that_stops_at_once(friction):
    """In far less than a step: the weights creep along gradient flow, 1 / friction as fast, and energy is accounted."""
    problem = problem_of(0)
    run = fs.simulate(problem, fs.Leapfrog(0.05), t1=5.0, dynamics=fs.HeavyBall(friction))
    flow = fs.simulate(problem, TIGHT, t1=5.0 / friction)
    assert run.status == "completed"
    assert run.weights_change == pytest.approx(flow.weights_change, rel=0.1)
    assert abs(run.energy_residual).max() < 5e-3 * (1 - run.excess[-1] / run.excess[0])


def test_leapfrog_is_reversible_and_symplectic_without_friction(rng):
    """A step forth and one back with the velocities turned; M^T J M = J for the derivative M of a step."""
    motion = Motion(problem_of(2), fs.HeavyBall(0.0))
    size = motion.size
    y = np.concatenate([motion.initial_state[:size], rng.standard_normal(size)])

    def step(y, order=4):
        integrator = fs.Leapfrog(0.1, order).start(motion, 0.0, y, 0.1)
        return integrator.advance().evaluate(np.array([0.1]))[0]

    turned = np.concatenate([np.ones(size), -np.ones(size)])
    assert turned * step(turned * step(y)) == pytest.approx(y, abs=1e-12)
    h = 1e-5
    M = np.array([(step(y + h * e) - step(y - h * e)) / (2 * h) for e in np.eye(2 * size)]).T
    J = np.block([[np.zeros((size, size)), np.eye(size)], [-np.eye(size), np.zeros((size, size))]])
    assert np.abs(M.T @ J @ M - J).max() < 1e-7


@pytest.mark.parametrize("dynamics", OBEYED[1:3], ids=lambda d: d.name)
@pytest.mark.parametrize("method", [fs.Scipy(), fs.GaussLegendre(3), fs.Leapfrog(0.05), fs.Diffrax("Dopri8")], ids=str)
def test_resumed_is_uninterrupted_and_files_hold_velocities(dynamics, method, tmp_path):
    problem = problem_of(1, weight_decay=0.1)
    half = fs.simulate(problem, method, t1=1.0, dynamics=dynamics)
    half.save(tmp_path / "run.nc")
    back = fs.load(tmp_path / "run.nc")
    assert back.dynamics == dynamics
    assert back.problem.weight_decay == 0.1
    assert (back.checkpoints.beside == half.checkpoints.beside).all()
    assert (back.steps.stored == half.steps.stored).all()
    whole = fs.simulate(problem, method, t1=2.0, dynamics=dynamics)
    for run in (fs.resume(half, t1=2.0), fs.resume(back, t1=2.0)):
        assert run.products[-1] == pytest.approx(whole.products[-1], abs=1e-7)
    again = 1e-5 if method.step_size else 1e-7  # steps of one size start anew at a checkpoint
    assert half.weights_at(0.777)[0] == pytest.approx(whole.weights_at(0.777)[0], abs=again)


def test_a_resumed_compressed_run_with_momentum_and_decay_has_the_estimate_of_the_whole():
    problem = fs.Problem(fs.SquaredLoss([[1.0, 2.0]]), fs.fan_out((1, 60, 80, 2), seed=0), weight_decay=0.5)
    half = fs.simulate(problem, t1=0.5, dynamics=fs.HeavyBall(1.0), reduce="always")
    both, whole = fs.resume(half, t1=1.0), fs.simulate(problem, t1=1.0, dynamics=fs.HeavyBall(1.0), reduce="always")
    assert both.products[-1] == pytest.approx(whole.products[-1], abs=1e-7)
    full = fs.simulate(problem, t1=1.0, dynamics=fs.HeavyBall(1.0), reduce="never")
    for run in (both, whole):
        gap = [np.linalg.norm(V - W) for V, W in zip(run.weights_at(1.0), full.weights_at(1.0), strict=True)]
        assert np.linalg.norm(gap) < 1e-7 + 3 * run.error_estimate[-1]


def test_decay_of_a_network_too_wide_to_store():
    """Of 10^6 hidden units, drawn compressed: D_1 of the core as the law has it, and the loss as a smaller width's."""
    loss = fs.SquaredLoss([[1.0], [2.0]])
    for width in (10**6, 10**9):
        network = fs.sample_compressed("fan_out", (2, width, 1), seed=0)
        problem = fs.Problem(loss, network, weight_decay=width / 300)  # its rates are about the width
        run = fs.simulate(problem, t1=5 / width)
        assert run.status == "completed"
        assert run.excess[-1] < 0.1 * run.excess[0]
        assert run.imbalance_drift.max() < 1e-6
        assert fs.diagnose(run).exit_code == 0


@pytest.mark.parametrize("name", DYNAMICS)
def test_dynamics_by_name(name):
    text = {"heavy-ball": "heavy-ball:0.5", "modified-flow": "modified-flow:1e-3"}.get(name, name)
    found = as_dynamics(text)
    assert isinstance(found, DYNAMICS[name])
    assert fs.Dynamics.described(found.describe()) == found


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("heavy", "dynamics.*heavy-ball"),
        ("heavy-ball", "heavy-ball friction, as in heavy-ball:0.5"),
        ("nesterov:1", "nesterov no setting"),
        ("heavy-ball:slow", "a number as friction"),
        (3.0, "of type float"),
        ("heavy-ball:-1", "friction"),
        ("modified-flow:0", "step_size"),
    ],
)
def test_what_is_no_dynamics_is_refused(value, words):
    with pytest.raises(InputError, match=words):
        fs.simulate(problem_of(0), t1=1.0, dynamics=value)


@pytest.mark.parametrize(
    ("method", "dynamics"),
    [
        (fs.RKC(), fs.HeavyBall(0.5)),
        (fs.Projected(fs.Scipy("RK45")), fs.Nesterov()),
        (fs.Projected(fs.Scipy("RK45")), fs.ModifiedFlow(0.1)),
        (fs.GradientDescent(0.1), fs.HeavyBall(0.5)),
        (fs.Leapfrog(0.1), fs.GradientFlow()),
        (fs.Leapfrog(0.1), fs.ModifiedFlow(0.1)),
    ],
    ids=str,
)
def test_a_method_that_is_not_made_for_a_dynamics_refuses_it(method, dynamics):
    with pytest.raises(InputError):
        fs.simulate(problem_of(0), method, t1=1.0, dynamics=dynamics)


def test_no_theorem_is_on_decay_or_momentum():
    problem = problem_of(0)
    for certificates in (
        fs.certify(fs.Problem(problem.loss, problem.network, weight_decay=0.1)),
        fs.simulate(problem, t1=1.0, dynamics=fs.HeavyBall(0.5)).certificates,
    ):
        assert certificates.best is None
        assert all(not entry.rate for entry in certificates)
    for run in (
        fs.simulate(problem, t1=1.0, dynamics=fs.HeavyBall(0.5)),
        fs.simulate(fs.Problem(problem.loss, problem.network, weight_decay=0.1), t1=1.0),
    ):
        assert run.certify_tail().rate is None
        with pytest.raises(InputError, match="weight decay"):
            fs.a_posteriori(run)


@pytest.mark.parametrize("dynamics", OBEYED, ids=lambda d: d.name)
def test_the_global_error_of_every_dynamics(dynamics):
    """Against a solve at 1e-12: the estimate is of the size of the error."""
    problem = problem_of(2, weight_decay=0.1)
    run = fs.simulate(problem, "rk45", t1=3.0, dynamics=dynamics, save_points=4)
    true = fs.simulate(problem, TIGHT, t1=3.0, dynamics=dynamics, save_points=4)
    errors = np.linalg.norm(run.checkpoints.states - true.checkpoints.states, axis=1)
    assert run.global_error().weights[1:] == pytest.approx(errors[1:], rel=0.2)


@pytest.mark.parametrize("dynamics", OBEYED, ids=lambda d: d.name)
def test_the_vector_field_in_jax_of_every_dynamics(dynamics, rng):
    import jax
    import jax.numpy as jnp

    problem = problem_of(0, weight_decay=0.1)
    motion = Motion(problem, dynamics)
    state = motion.initial_state + 0.1 * rng.standard_normal(motion.initial_state.size)
    with jax.enable_x64(True):
        found = fs.vector_field(problem, dynamics)(0.7, tuple(map(jnp.asarray, motion.split(state))))
    assert np.concatenate([np.ravel(V) for V in found]) == pytest.approx(motion.velocity(0.7, state), abs=1e-12)


def test_the_flow_map_of_momentum_and_its_derivative_in_the_decay():
    import jax
    import jax.numpy as jnp

    problem, dynamics = problem_of(0, weight_decay=0.1), fs.HeavyBall(0.5)
    flow = fs.FlowMap(problem, fs.Diffrax("Dopri5", 1e-10, 1e-12), t1=1.0, dynamics=dynamics)
    with jax.enable_x64(True):
        ends = flow(problem.network.weights)
        slope = float(jax.grad(lambda x: flow.loss(problem.network.weights, {"weight_decay": x}))(jnp.asarray(0.1)))
    run = fs.simulate(problem, TIGHT, t1=1.0, dynamics=dynamics)
    assert np.concatenate([np.ravel(W) for W in ends]) == pytest.approx(run.checkpoints.states[-1], abs=1e-8)
    problems = [fs.Problem(problem.loss, problem.network, weight_decay=x) for x in (0.1 + 1e-4, 0.1 - 1e-4)]
    above, below = (fs.simulate(p, TIGHT, t1=1.0, dynamics=dynamics).loss[-1] for p in problems)
    assert slope == pytest.approx((above - below) / 2e-4, rel=1e-6)


def test_training_elsewhere_with_decay_is_judged_by_its_law():
    """Descent on 2 L + 0.2/2 ||W||^2, as torch.optim.SGD(weight_decay=0.2) does it: D shrinks by exp(-0.1 2 t) near."""
    W, records = [np.array([[1.0, 0.3]]), np.array([[0.5], [0.2]])], []
    for _ in range(1001):
        records.append([V.copy() for V in W])
        E = 2 * (W[0] @ W[1] - 2.0)
        W = [W[0] - 1e-3 * (E @ W[1].T + 0.2 * W[0]), W[1] - 1e-3 * (W[0].T @ E + 0.2 * W[1])]
    settings = {"steps": range(1001), "step_size": 1e-3, "loss_scale": 2.0}
    run, other = (fs.observe(records, fs.SquaredLoss([[2.0]]), weight_decay=x, **settings) for x in (0.2, 0.0))
    assert run.problem.weight_decay == 0.1
    assert run.imbalance_drift.max() < 1e-3 < 0.01 < other.imbalance_drift.max()
    assert abs(run.energy_residual).max() < 5e-3 < abs(other.energy_residual).max()


@pytest.mark.parametrize("dynamics", OBEYED[:3], ids=lambda d: d.name)
def test_gone_on_with_from_the_very_start(dynamics):
    """A compressed run that stopped before its first step has an error estimate, 0, when it goes on."""
    problem = fs.Problem(fs.SquaredLoss([[1.0, 2.0]]), fs.fan_out((1, 60, 80, 2), seed=0), weight_decay=0.1)
    stood = fs.simulate(problem, t1=0.1, dynamics=dynamics, reduce="always", stop_gradient=1e9)
    assert (stood.status, stood.time[-1]) == ("converged", 0.0)
    longer = fs.resume(stood, t1=0.2)
    assert np.isfinite(longer.error_estimate).all()
    assert longer.products[-1] == pytest.approx(
        fs.simulate(problem, t1=0.2, dynamics=dynamics, reduce="always").products[-1], abs=1e-7
    )


def test_a_drawn_network_that_is_refined_on_the_way_accounts_for_its_energy():
    """Weights that a finer core adds decay before it has them."""
    network = fs.sample_compressed("fan_in", (2, 30, 30, 30, 1), seed=0, steps=2)
    problem = fs.Problem(fs.SquaredLoss(np.full((2, 1), 2.0)), network, weight_decay=0.5)
    for dynamics in (fs.GradientFlow(), fs.HeavyBall(1.0)):
        run = fs.simulate(problem, t1=3.0, dynamics=dynamics)
        assert run.reduction.network.steps > 2
        assert abs(run.energy_residual).max() < 1e-6
        assert fs.diagnose(run).exit_code == 0
