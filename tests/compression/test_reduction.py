"""Width compression: the core's loss, the way back, the defect, and the controller, against full weights."""

from itertools import pairwise

import numpy as np
import pytest
from conftest import random_network
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array
from scipy.sparse.linalg import aslinearoperator

import flowsim as fs
from flowsim.compression import KrylovBases, control
from flowsim.errors import InputError
from flowsim.network import backpropagate, flatten, imbalance, imbalance_change, unflatten

DIMS = st.integers(2, 5).flatmap(
    lambda depth: st.tuples(st.integers(1, 3), *[st.integers(8, 20)] * (depth - 1), st.integers(1, 3))
)
METHODS = [
    fs.Scipy("DOP853"),
    fs.Scipy("Radau"),
    fs.Scipy("LSODA"),
    fs.Diffrax("Tsit5"),
    fs.Diffrax("Kvaerno5"),
    fs.GradientDescent(1e-3),
    fs.GradientDescent(1e-3, "jax"),
]


def wide_problem(dims=(2, 80, 90, 2), scheme="fan_in", seed=0):
    rng = np.random.default_rng(seed)
    Y = rng.standard_normal((dims[0], dims[-1]))
    return fs.Problem(fs.SquaredLoss(Y), fs.initialize(scheme, dims, seed=seed))


@settings(max_examples=40)
@given(dims=DIMS, steps=st.integers(0, 4), seed=st.integers(0, 999))
def test_the_bases_are_orthonormal_and_the_core_has_the_same_product(dims, steps, seed):
    network = random_network(np.random.default_rng(seed), dims, scale=0.7)
    compressed = fs.compress(network, max(steps, len(dims) - 3))
    for P in compressed.bases.vectors:
        assert pytest.approx(np.eye(P.shape[1]), abs=1e-12) == P.T @ P
    assert compressed.product == pytest.approx(network.product, rel=1e-11, abs=1e-12)
    if steps >= len(dims) - 3:
        assert compressed.dims == network.dims
    for layer, W in enumerate(network.weights, start=1):
        lifted = compressed.lift(flatten(compressed.core.weights), layer, W)
        assert np.abs(lifted - W).max() < 1e-14


@settings(max_examples=30)
@given(dims=DIMS, extra=st.integers(0, 2), seed=st.integers(0, 999))
def test_defect_and_drift_against_the_lifted_state(dims, extra, seed):
    """Any state of the core: its defect as a solution of the full flow, and the drift of D_l, from full weights."""
    rng = np.random.default_rng(seed)
    network = random_network(rng, dims, scale=0.7)
    loss = fs.SquaredLoss(rng.standard_normal((dims[0], dims[-1])))
    compressed = fs.compress(network, max(len(dims) - 3, 1) + extra)
    state = flatten(compressed.core.weights) + 0.1 * rng.standard_normal(compressed.core.size)
    lifted = [compressed.lift(state, layer, W) for layer, W in enumerate(network.weights, start=1)]
    _, whole = backpropagate(loss, lifted, 0.7)
    _, inner = backpropagate(loss, unflatten(state, compressed.core.dims), 0.7)
    bases = [np.eye(dims[0]), *compressed.bases.vectors, np.eye(dims[-1])]
    cut = [P[:, :k] for P, k in zip(bases, compressed.core.dims, strict=True)]
    rest = [G - P @ H @ Q.T for G, H, P, Q in zip(whole, inner, cut, cut[1:], strict=False)]
    size = np.sqrt(sum(np.linalg.norm(G) ** 2 for G in whole))
    expected = np.sqrt(sum(np.linalg.norm(D) ** 2 for D in rest))
    assert compressed.defect(loss, state[None])[0] == pytest.approx(expected, rel=1e-9, abs=1e-11 * size)
    drift = [np.linalg.norm(imbalance(lifted, layer) - network.imbalance(layer)) for layer in range(1, network.depth)]
    assert imbalance_change(compressed.surroundings, compressed.changes(state)) == pytest.approx(drift, rel=1e-9)


def test_the_defect_of_three_layers_in_closed_form(rng):
    """(||E What_3^T S^T||^2 + ||R What_1^T E||^2)^(1/2), R = (I - P_2 P_2^T) W_2^T P_1, S = (I - P_1 P_1^T) W_2 P_2."""
    problem = wide_problem()
    compressed = fs.compress(problem.network, 2)
    core = compressed.core
    state = flatten(core.weights) + 0.01 * rng.standard_normal(core.size)
    W1, W2, W3 = unflatten(state, core.dims)
    P1, P2 = (P[:, :k] for P, k in zip(compressed.bases.vectors, core.dims[1:-1], strict=True))
    full = problem.network.weights[1]
    R = full.T @ P1 - P2 @ (P2.T @ full.T @ P1)
    S = full @ P2 - P1 @ (P1.T @ full @ P2)
    E = problem.loss.gradient(W1 @ W2 @ W3)
    closed = np.sqrt(np.linalg.norm(E @ W3.T @ S.T) ** 2 + np.linalg.norm(R @ W1.T @ E) ** 2)
    assert compressed.defect(problem.loss, state[None])[0] == pytest.approx(closed, rel=1e-10)


@pytest.mark.parametrize("share", [1e-8, 1e-10, 1e-12])
def test_the_bases_are_orthonormal_where_a_direction_is_hardly_new(share):
    """W_2 maps the columns of W_3 to u and to u + share v, up to the span of W_1's rows: v is found in what is left
    after cancellation, and must be orthogonal all the same."""
    turn, other = (np.linalg.qr(np.random.default_rng(seed).standard_normal((9, 9)))[0] for seed in (0, 1))
    W2 = np.zeros((9, 9))
    W2[:, 0] = turn[:, 2] + 3 * turn[:, 0]
    W2[:, 1] = turn[:, 2] + share * turn[:, 3] + 2 * turn[:, 1]
    network = fs.LinearNetwork((turn[:, :2].T.copy(), W2 @ other.T, other[:, :2].copy()))
    compressed = fs.compress(network, 1)
    assert compressed.widths[1] == 4
    for P in compressed.bases.vectors:
        assert pytest.approx(np.eye(P.shape[1]), abs=1e-14) == P.T @ P


@pytest.mark.parametrize("dims", [(3, 60, 2), (1, 50, 1), (4, 40, 4)])
def test_two_layers_are_exact(dims):
    problem = wide_problem(dims)
    run = fs.simulate(problem, fs.Scipy("DOP853", 1e-12, 1e-14), t1=2.0, reduce="always")
    full = fs.simulate(problem, fs.Scipy("DOP853", 1e-12, 1e-14), t1=2.0, reduce="never")
    assert run.reduction.network.core.dims[1] == dims[0] + dims[-1]
    assert (run.error_estimate == 0).all()
    for W, V in zip(run.weights_at(2.0), full.weights_at(2.0), strict=True):
        assert np.abs(W - V).max() < 1e-10


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{m.name}-{getattr(m, 'backend', '')}")
def test_every_method_on_a_compressed_network(method):
    problem = wide_problem()
    run = fs.simulate(problem, method, t1=0.3, reduce="always")
    tight = fs.GradientDescent(1e-3) if method.name == "gd" else fs.Scipy("DOP853", 1e-11, 1e-13)
    full = fs.simulate(problem, tight, t1=0.3, reduce="never")
    assert run.status == "completed"
    assert run.loss == pytest.approx(full.loss, abs=2e-7 * full.loss[0])
    assert run.imbalance_drift == pytest.approx(full.imbalance_drift, rel=1e-6, abs=2e-7)
    assert 0 < run.error_estimate[-1] <= 1e-8 * run.weights_change + 1e-10
    for W, V in zip(run.weights_at(0.3), full.weights_at(0.3), strict=True):
        assert W.shape == V.shape
        assert np.linalg.norm(W - V) < 1e-6
    assert run.layer_at(0.3, 2) == pytest.approx(run.weights_at(0.3)[1], abs=0)


@pytest.mark.parametrize("scheme", ["fan_in", "fan_out", "xavier", "ntk"])
@pytest.mark.parametrize("dims", [(2, 90, 80, 2), (1, 60, 70, 60, 2)])
def test_the_estimate_is_the_error(dims, scheme):
    """With coarse tolerances the compression error dominates: the estimate is within a factor 2 (3 layers) or 5."""
    problem = wide_problem(dims, scheme)
    steps = len(dims) - 2
    compressed = fs.compress(problem.network, steps)
    tight = fs.Scipy("DOP853", 1e-12, 1e-14)
    core = fs.simulate(fs.Problem(problem.loss, compressed.core), tight, t1=0.5, save_points=201)
    states = core.checkpoints.states
    estimate = np.trapezoid(compressed.defect(problem.loss, states), core.time)
    full = fs.simulate(problem, tight, t1=0.5, reduce="never").weights_at(0.5)
    lifted = [compressed.lift(states[-1], layer, W) for layer, W in enumerate(problem.network.weights, start=1)]
    error = np.sqrt(sum(np.linalg.norm(W - V) ** 2 for W, V in zip(full, lifted, strict=True)))
    assert error > 1e-10
    low, high = (0.5, 2) if len(dims) == 4 else (0.05, 5)
    assert low < error / estimate < high


def test_steps_are_added_as_the_estimate_grows():
    """Small weights: what matters later is invisible at first. The run goes on from where it stood."""
    problem = fs.Problem(fs.SquaredLoss(2 * np.eye(4)), fs.fan_out((4, 150, 160, 4), seed=0, scale=0.05))
    run = fs.simulate(problem, t1=60.0)
    full = fs.simulate(problem, t1=60.0, reduce="never")
    assert run.reduction.network.steps > 3
    assert run.excess == pytest.approx(full.excess, abs=1e-6 * full.excess[0])
    assert (np.diff(run.step_time) > 0).all()
    assert run.time == pytest.approx(full.time, abs=1e-12)
    assert (np.diff(run.error_estimate) >= 0).all()
    assert run.error_estimate[-1] <= 1e-8 * run.weights_change + 1e-10
    early = run.weights_at(float(run.time[3]))
    assert early[1] == pytest.approx(full.weights_at(float(run.time[3]))[1], abs=1e-7)


def test_auto_declines_where_it_cannot_pay():
    corner = wide_problem((50, 60, 60, 50))
    run = fs.simulate(corner, t1=0.05)
    never = fs.simulate(corner, t1=0.05, reduce="never")
    assert run.reduction.network is None
    assert "too near" in run.reduction.reason
    assert (run.loss == never.loss).all()
    few = fs.simulate(wide_problem((2, 10, 10, 2)), t1=0.05)
    assert "too few" in few.reduction.reason
    always = fs.simulate(corner, t1=0.05, reduce="always")
    assert always.reduction.network is not None
    assert always.loss == pytest.approx(never.loss, abs=1e-7 * never.loss[0])


def test_auto_goes_over_to_the_full_weights_when_the_bases_fill_up():
    problem = fs.Problem(fs.SquaredLoss(2 * np.eye(8)), fs.fan_out((8, 80, 80, 8), seed=0, scale=0.1))
    run = fs.simulate(problem, t1=30.0)
    full = fs.simulate(problem, t1=30.0, reduce="never")
    assert "full weights from t" in run.reduction.reason
    assert run.reduction.network is None
    assert run.excess == pytest.approx(full.excess, abs=1e-6 * full.excess[0])
    assert run.weights_at(0.0)[1] == pytest.approx(problem.network.weights[1], abs=1e-14)
    assert 0 < run.error_estimate[-1] < 1e-6


@pytest.mark.parametrize("kind", ["sparse", "operator", "memory-mapped"])
def test_hidden_layers_as_operators(kind, tmp_path):
    rng = np.random.default_rng(0)
    sparse = random_array((80, 90), density=0.2, rng=rng, data_sampler=lambda size: rng.standard_normal(size))
    dense = sparse.toarray()
    if kind == "memory-mapped":
        np.save(tmp_path / "W2.npy", dense)
    hidden = {
        "sparse": lambda: csr_array(sparse),
        "operator": lambda: aslinearoperator(dense),
        "memory-mapped": lambda: np.load(tmp_path / "W2.npy", mmap_mode="r"),
    }[kind]()
    W1, W3 = rng.standard_normal((2, 80)) / 9, rng.standard_normal((90, 3)) / 9
    loss = fs.SquaredLoss(np.ones((2, 3)))
    run = fs.simulate(fs.Problem(loss, fs.LinearNetwork((W1, hidden, W3))), t1=0.2, reduce="always")
    plain = fs.Problem(loss, fs.LinearNetwork((W1, dense, W3)))
    full = fs.simulate(plain, t1=0.2, reduce="never")
    assert run.loss == pytest.approx(full.loss, abs=1e-7 * full.loss[0])
    assert run.imbalance_drift.max() < 1e-6
    lifted = run.layer_at(0.2, 2)
    W2 = lifted if isinstance(lifted, np.ndarray) else lifted @ np.eye(90)
    assert pytest.approx(full.layer_at(0.2, 2), abs=1e-6) == W2
    if kind != "memory-mapped":
        with pytest.raises(InputError, match="never"):
            fs.simulate(fs.Problem(loss, fs.LinearNetwork((W1, hidden, W3))), t1=0.2, reduce="never")


def test_norms_of_wide_imbalances_without_the_matrices(rng, monkeypatch):
    dims = (3, 400, 500, 450, 2)
    network = random_network(rng, dims)
    exact = network.imbalance_norms
    monkeypatch.setattr("flowsim.network.linear_network.DIRECT_IMBALANCE", 0)
    estimated = network.with_weights(network.weights).imbalance_norms
    assert estimated == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("dims", [(2, 80, 90, 2), (2, 90, 3)])
def test_saved_runs_keep_the_way_back(dims, tmp_path):
    problem = wide_problem(dims)
    run = fs.simulate(problem, t1=0.2, reduce="always")
    run.save(tmp_path / "run.nc")
    back = fs.load(tmp_path / "run.nc")
    for t in (0.0, 0.0713, 0.2):
        for W, V in zip(run.weights_at(t), back.weights_at(t), strict=True):
            assert pytest.approx(V, abs=1e-13) == W
    assert (back.error_estimate == run.error_estimate).all()
    assert back.imbalance_drift == pytest.approx(run.imbalance_drift)
    assert back.reduction.reason == run.reduction.reason


def test_unknown_words_are_refused():
    with pytest.raises(InputError, match="one of auto, always, never"):
        fs.simulate(wide_problem(), t1=0.1, reduce="sometimes")


def test_bases_know_that_they_are_complete_without_having_grown():
    for level, complete in ((0, False), (20, True)):
        assert KrylovBases(fs.fan_in((2, 7, 6, 2), seed=0).weights).is_complete(level) == complete


def test_the_drift_of_wide_full_runs_is_estimated_within_its_error(monkeypatch, rng):
    """From 16 vectors of signs: over 200 random changes of rank 1 to 8 the deviation of the quotient is as stated."""
    network = fs.fan_in((8, 60, 70, 8), seed=0)
    problem = fs.Problem(fs.SquaredLoss(np.ones((8, 8))), network)
    assert not control.estimates_drift(network)
    monkeypatch.setattr(control, "LEAST_EXACT", 0.0)
    monkeypatch.setattr(control, "EXACT", 0.0)
    quotients = []
    for _ in range(200):
        rank = int(rng.integers(1, 9))
        pairs = [rng.standard_normal((a, rank)) @ rng.standard_normal((rank, b)) for a, b in pairwise(network.dims)]
        state = problem.initial_state + 1e-3 * flatten(pairs)
        probes = [rng.choice((-1.0, 1.0), (h, control.PROBES)) for h in network.dims[1:-1]]
        exact, estimate = (control.imbalance_changes(problem, None, state[None], 1.0, p)[0] for p in (None, probes))
        quotients.append(estimate / exact)
    assert np.std(quotients) < (2 * control.PROBES) ** -0.5
    assert np.mean(quotients) == pytest.approx(1.0, abs=0.05)
    flow = fs.simulate(problem, "rk45", t1=0.5, reduce="never")
    assert flow.drift_is_estimated
    assert "imbalance about" in flow.summary()
    monkeypatch.undo()
    true = fs.simulate(problem, "rk45", t1=0.5, reduce="never")
    assert not true.drift_is_estimated
    late = slice(20, None)
    assert flow.imbalance_change[late] == pytest.approx(true.imbalance_change[late], rel=0.6)
    assert fs.diagnose(flow).exit_code == 0


@pytest.mark.parametrize("zero", [(0,), (0, 1), (1, 2), (0, 2), (0, 1, 2), (1,), (0, 1, 2, 3)])
@pytest.mark.parametrize("dims", [(2, 90, 3), (2, 90, 80, 3), (2, 50, 90, 60, 3), (1, 30, 40, 40, 30, 20, 1)])
@pytest.mark.parametrize("dynamics", [fs.GradientFlow(), fs.HeavyBall(0.5)], ids=str)
def test_layers_of_zeros_are_compressed_too(zero, dims, dynamics, rng):
    """Where nothing reaches a hidden layer its basis would be empty; decay moves what is not zero."""
    shapes = list(pairwise(dims))
    weights = tuple(
        0.0 * rng.standard_normal(s) if k in zero else 0.2 * rng.standard_normal(s) for k, s in enumerate(shapes)
    )
    problem = fs.Problem(fs.SquaredLoss(np.ones((dims[0], dims[-1]))), fs.LinearNetwork(weights), weight_decay=0.3)
    runs = [
        fs.simulate(problem, t1=0.5, dynamics=dynamics, reduce=r, save_points=3) for r in ("never", "always", "auto")
    ]
    for run in runs[1:]:
        gaps = [np.linalg.norm(V - W) for V, W in zip(run.weights_at(0.5), runs[0].weights_at(0.5), strict=True)]
        assert np.linalg.norm(gaps) < 1e-6
        assert run.gradient_norm == pytest.approx(runs[0].gradient_norm, abs=1e-5)
    assert fs.certify(problem.network, cheap=True).lambda_min_T == pytest.approx(
        fs.certify(problem.network).lambda_min_T, abs=1e-9
    )
