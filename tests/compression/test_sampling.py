"""Networks drawn in compressed form against networks drawn in full: the same distribution, at any width."""

import numpy as np
import pytest
from scipy.stats import ks_2samp

import flowsim as fs
from flowsim import cli, files
from flowsim.errors import InputError
from flowsim.network import product, unflatten

LEVEL = 0.01
"""The family-wise level of all Kolmogorov-Smirnov tests here together (Bonferroni), at fixed seeds."""
CASES = [
    ((2, 12, 1), "fan_in", 1.0),
    ((1, 14, 17, 1), "fan_out", 1.0),
    ((3, 15, 14, 2), "fan_in", 0.7),
    ((2, 16, 15, 2), "xavier", 1.0),
    ((1, 14, 16, 1), "ntk", 2.0),
    ((1, 13, 15, 14, 1), "fan_in", 1.0),
    ((2, 12, 14, 13, 1), "fan_out", 1.0),
    ((3, 7, 2), "orthogonal", 1.0),
    ((2, 6, 6, 3), "orthogonal", 0.8),
    ((2, 5, 5, 5, 1), "orthogonal", 1.2),
]
TIMES = (0.02, 0.1, 0.4)
FLOOR = 1e-7
"""What integration errors leave of a loss is not compared."""
MEMBERS = 200


def losses_drawn(dims, scheme, scale, seeds):
    """(members, times) of networks drawn in compressed form, each simulated."""
    loss, method = fs.SquaredLoss(np.ones((dims[0], dims[-1]))), fs.Scipy("DOP853", 1e-7, 1e-9)
    problems = (fs.Problem(loss, fs.sample_compressed(scheme, dims, seed=seed, scale=scale)) for seed in seeds)
    found = [fs.simulate(p, method, t1=TIMES[-1], save_points=(0.0, *TIMES)).loss for p in problems]
    return np.maximum(found, FLOOR)


def losses_full(dims, scheme, scale, seeds):
    """(members, times) of full networks, all at once by Runge's and Kutta's steps of order 4, whose errors are far
    below how much members differ."""
    loss = fs.SquaredLoss(np.ones((dims[0], dims[-1])))
    networks = [fs.initialize(scheme, dims, seed=seed, scale=scale) for seed in seeds]
    problem, h = fs.Problem(loss, networks[0]), 0.0025
    velocity, states, found = problem.velocity, np.array([fs.Problem(loss, N).initial_state for N in networks]), []
    for step in range(round(TIMES[-1] / h) + 1):
        if min(abs(step * h - t) for t in (0.0, *TIMES)) < h / 2:
            W = product(unflatten(states, dims), problem.network.scale)
            found.append(0.5 * ((W - 1) ** 2).sum(axis=(1, 2)))
        k1 = velocity(states)
        k2 = velocity(states + 0.5 * h * k1)
        k3 = velocity(states + 0.5 * h * k2)
        states = states + h / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(states + h * k3))
    return np.maximum(np.transpose(found), FLOOR)


@pytest.mark.parametrize(("dims", "scheme", "scale"), CASES, ids=lambda value: str(value))
def test_the_same_distribution_as_full_networks(dims, scheme, scale):
    full = losses_full(dims, scheme, scale, range(MEMBERS))
    drawn = losses_drawn(dims, scheme, scale, range(10**6, 10**6 + MEMBERS))
    worst = min(ks_2samp(full[:, k], drawn[:, k]).pvalue for k in range(full.shape[1]))
    assert worst > LEVEL / (len(CASES) * full.shape[1])


def test_wrong_degrees_of_freedom_would_be_found():
    """The test above has power: slightly narrower hidden layers are told apart."""
    full = losses_full((2, 16, 15, 2), "xavier", 1.0, range(MEMBERS))
    wrong = losses_drawn((2, 10, 10, 2), "xavier", 1.0, range(10**6, 10**6 + MEMBERS))
    assert min(ks_2samp(full[:, k], wrong[:, k]).pvalue for k in range(full.shape[1])) < LEVEL / 30


@pytest.mark.parametrize("dims", [(2, 3, 4, 2), (2, 9, 3), (1, 3, 3, 1), (3, 5, 4, 2)])
def test_every_vector_of_a_basis_brings_one_length(dims):
    """A length is positive in every draw, all other entries are 0 or have both signs: also where a basis is full."""
    drawn = [fs.sample_compressed("xavier", dims, seed=seed, steps=20).core for seed in range(100)]
    layers = [np.stack(weights) for weights in zip(*(core.weights for core in drawn), strict=True)]
    assert sum((W > 0).all(axis=0).sum() for W in layers) == sum(drawn[0].dims[1:-1])


@pytest.mark.parametrize("dims", [(2, 9, 3), (2, 7, 6, 2), (3, 8, 5, 7, 2)])
def test_complete_bases_have_the_full_widths(dims):
    network = fs.sample_compressed("fan_in", dims, seed=0, steps=20)
    needed = [min(h, dims[0] + dims[-1]) for h in dims[1:-1]] if len(dims) == 3 else dims[1:-1]
    assert network.core.dims == (dims[0], *needed, dims[-1])
    assert network.exact


def test_same_seed_same_network_however_it_is_grown():
    small = fs.sample_compressed("fan_out", (2, 10**6, 10**7, 1), seed=3)
    large = fs.sample_compressed("fan_out", (2, 10**6, 10**7, 1), seed=3, steps=6)
    for W, V in zip(small.core.weights, large.core.weights, strict=True):
        assert (V[: W.shape[0], : W.shape[1]] == W).all()
    for W, V in zip(small.with_steps(6).core.weights, large.core.weights, strict=True):
        assert (V == W).all()


def test_a_billion_wide():
    problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.sample_compressed("fan_out", (1, 10**9, 10**9, 1), seed=0))
    flow = fs.simulate(problem, t1=1e-6, stop_loss=1e-10)
    assert flow.status == "converged"
    assert flow.problem.network.dims == (1, 10**9, 10**9, 1)
    descent = fs.simulate(problem, fs.GradientDescent(1e-11), t1=float(flow.time[-1]))
    assert descent.loss[-1] < 1e-6 * descent.loss[0]
    with pytest.raises(InputError, match="no full weights"):
        flow.weights_at(0.0)
    assert flow.core_at(0.0).dims[0] == 1
    certificate = fs.certify(problem)["theorem-2"]
    assert 0 < certificate.alpha <= problem.network.lambda_min_T
    assert (flow.excess <= certificate.bound(flow.time) * (1 + 1e-7)).all()
    with pytest.raises(InputError, match="never"):
        fs.simulate(problem, t1=1e-9, reduce="never")


def test_imbalance_norms_in_expectation():
    exact = np.mean([fs.fan_in((2, 300, 250, 280, 1), seed=s).imbalance_norms for s in range(3)], axis=0)
    drawn = fs.sample_compressed("fan_in", (2, 300, 250, 280, 1), seed=0).imbalance_norms
    assert np.array(drawn) == pytest.approx(np.array(exact), rel=0.05)


@pytest.mark.parametrize("dims", [(3, 40, 2), (2, 30, 30, 3), (2, 20, 20, 20, 1)])
def test_orthogonal_networks_have_the_invariants_of_full_ones(dims):
    drawn = fs.sample_compressed("orthogonal", dims, seed=1, scale=1.3)
    full = fs.orthogonal(dims, seed=1, scale=1.3)
    if len(dims) > 3:  # for two layers it depends on the draw
        assert drawn.imbalance_norms == pytest.approx(full.imbalance_norms, abs=1e-10)
    else:  # ||D||^2 = ||W_1||_F^2 + ||W_2||_F^2 - 2 ||W||_F^2 in units of their singular value 1.3
        norm = 1.69 * np.sqrt(dims[0] + dims[-1] - 2 * np.sum((drawn.product / 1.69) ** 2))
        assert drawn.imbalance_norms == pytest.approx([norm], rel=1e-12)
    assert drawn.exact
    last = drawn.core.weights[-1]
    assert last.T @ last == pytest.approx(1.69 * np.eye(dims[-1]), abs=1e-12)
    wide = fs.sample_compressed("orthogonal", (2, *[10**9] * (len(dims) - 2), 1), seed=0)
    flow = fs.simulate(fs.Problem(fs.SquaredLoss(np.ones((2, 1))), wide), t1=20.0, stop_loss=1e-10)
    assert flow.status == "converged"
    assert flow.imbalance_drift.max() < 1e-8


def test_through_the_command_and_a_file(tmp_path, capsys):
    path, target, out = tmp_path / "w.npz", tmp_path / "y.npy", tmp_path / "run.nc"
    np.save(target, np.ones((2, 1)))
    words = ["initialize", "--dims", "2,1000000,2000000,1", "--compressed", "--seed", "5", "--out", str(path)]
    assert cli.main(words) == 0
    network = files.read_weights(path)
    assert network.dims == (2, 10**6, 2 * 10**6, 1)
    assert (network.core.weights[1] == fs.sample_compressed("fan_out", network.dims, seed=5).core.weights[1]).all()
    assert cli.main(["simulate", str(path), "--target", str(target), "--t1", "1e-4", "--out", str(out), "--json"]) == 0
    assert '"used": true' in capsys.readouterr().out
    back = fs.load(out)
    assert back.problem.network.dims == network.dims
    assert np.isfinite(back.product_at(3e-5)).all()


def test_the_seed_of_a_spawned_draw_travels(tmp_path):
    network = fs.sample_compressed("fan_in", (3, 40, 40, 1), seed=np.random.SeedSequence(4).spawn(3)[2])
    files.save_weights(tmp_path / "w.npz", network)
    again = files.read_weights(tmp_path / "w.npz")
    assert (again.product == network.product).all()
    drawn = fs.sample_compressed("fan_in", (3, 40, 40, 1), seed=np.random.default_rng(0))
    with pytest.raises(InputError, match="from a generator"):
        files.save_weights(tmp_path / "w.npz", drawn)


@pytest.mark.parametrize("seed", [3, "generator"])
def test_a_saved_run_knows_no_more_than_its_levels(seed, tmp_path):
    """Certificates from a file are those of the run; what its bases do not hold is found again or refused."""
    seed = np.random.default_rng(0) if seed == "generator" else seed
    problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.sample_compressed("fan_in", (5, 40, 40, 1), seed=seed))
    run = fs.simulate(problem, t1=1e-3)
    run.save(tmp_path / "run.nc")
    back = fs.load(tmp_path / "run.nc").problem
    least = back.network.lambda_min_T
    assert least == pytest.approx(problem.network.lambda_min_T, rel=1e-10)
    alpha, found = (fs.certify(p)["theorem-2"].alpha for p in (problem, back))
    assert found <= alpha * (1 + 1e-9)
    if back.network.bases.can_grow:
        assert found == pytest.approx(alpha, rel=1e-9)
        assert fs.simulate(back, t1=5.0).excess == pytest.approx(fs.simulate(problem, t1=5.0).excess, rel=1e-9)
    else:
        assert not back.network.exact
        with pytest.raises(InputError, match="levels of its bases"):
            fs.simulate(back, t1=5.0)


def test_a_folder_is_memory_mapped(tmp_path, capsys):
    network = fs.fan_in((2, 90, 95, 1), seed=0)
    for layer, W in enumerate(network.weights, start=1):
        np.save(tmp_path / f"W{layer}.npy", W)
    np.save(tmp_path / "Y.npy", np.ones((2, 1)))
    mapped = files.read_weights(tmp_path)
    assert isinstance(mapped.weights[1].base, np.memmap)
    assert cli.main(["simulate", str(tmp_path), "--t1", "0.1", "--json"]) == 0
    assert '"completed"' in capsys.readouterr().out
    (tmp_path / "W2.npy").write_bytes(b"nonsense")
    assert cli.main(["simulate", str(tmp_path), "--t1", "0.1"]) == 2
    np.save(tmp_path / "W2.npy", np.array([[None]]), allow_pickle=True)
    assert cli.main(["simulate", str(tmp_path), "--t1", "0.1"]) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"scheme": "balanced"}, "one of fan_in"),
        ({"scheme": "orthogonal", "dims": (1, 9, 8, 1)}, "one hidden width"),
        ({"scheme": "orthogonal", "dims": (3, 4, 2)}, "at least n \\+ m = 5"),
        ({"dims": (3, 2)}, "three sizes"),
        ({"steps": -1}, "at least 0"),
        ({"seed": "x"}, "whole number"),
        ({"scale": -1.0}, "greater than 0"),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        fs.sample_compressed(**{"scheme": "fan_in", "dims": (1, 9, 9, 1), "seed": 0, **arguments})
