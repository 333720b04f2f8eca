"""Series along a run: sharpness, the kernel's distance, effective rank, singular values and alignment of the layers."""

from itertools import pairwise

import numpy as np
import pytest
from conftest import random_network, random_problem
from losses_of_ones_own import Ones
from scipy.sparse import random_array

import flowsim as fs
from flowsim.errors import InputError, NumericalFailure
from flowsim.network import flatten
from flowsim.runs import series

SHAPES = [(2, 3, 2), (2, 4, 3, 2), (3, 2, 3, 2, 1)]


def scalar_problem(w1, w2, y):
    return fs.Problem(fs.SquaredLoss([[y]]), fs.LinearNetwork(([[w1]], [[w2]])))


def hessian_by_differences(problem, state, step=1e-5):
    """Of the gradient, which is minus the velocity."""
    units = step * np.eye(len(state))
    return -(problem.velocity(state + units) - problem.velocity(state - units)) / (2 * step)


def full_sharpness(run, t):
    """From all weights of the lifted network, densely."""
    problem = fs.Problem(run.problem.loss, run.network_at(t))
    state = problem.initial_state
    return np.linalg.eigvalsh(-problem.jacobian_product(state, np.eye(len(state))))[-1]


@pytest.mark.parametrize(("w1", "w2", "y"), [(3.0, 1.0, 3.0), (3.0, 1.0, 2.0), (0.3, -0.2, 5.0), (0.0, 0.0, -2.0)])
def test_the_sharpness_of_scalar_weights(w1, w2, y):
    """Hess L = [[w_2^2, 2 w_1 w_2 - y], [2 w_1 w_2 - y, w_1^2]]."""
    run = fs.simulate(scalar_problem(w1, w2, y), t1=0.4, save_points=3)
    found = run.sharpness()
    assert found.shape == (3,)
    for t, value in zip(run.checkpoints.times, found, strict=True):
        a, b = (W.item() for W in run.weights_at(t))
        middle, off = (a * a + b * b) / 2, 2 * a * b - y
        assert value == pytest.approx(middle + np.hypot((a * a - b * b) / 2, off), rel=1e-12)


@pytest.mark.parametrize("dense", [0, 10**3], ids=["Lanczos", "dense"])
@pytest.mark.parametrize("dims", SHAPES, ids=str)
def test_the_sharpness_against_differences_of_the_gradient(dims, dense, rng, monkeypatch):
    monkeypatch.setattr(series, "DENSE", dense)
    network = random_network(rng, dims, scale=1.5)
    problem = fs.Problem(fs.SquaredLoss(rng.standard_normal((dims[0], dims[-1]))), network)
    run = fs.simulate(problem, t1=1.0, save_points=4, reduce="never")
    wanted = [np.linalg.eigvalsh(hessian_by_differences(problem, state))[-1] for state in run.checkpoints.states]
    assert run.sharpness() == pytest.approx(wanted, rel=1e-7)


def test_the_largest_eigenvalue_is_followed_where_it_comes_to_another_eigenvector(monkeypatch):
    """Diagonal weights: entries of other places do not mix, and the second mode becomes the sharpest."""
    monkeypatch.setattr(series, "DENSE", 0)
    problem = fs.Problem(fs.SquaredLoss(np.diag([1.0, 4.0])), fs.LinearNetwork((np.diag([1.8, 1.0]), np.eye(2))))
    run = fs.simulate(problem, t1=3.0, save_points=13)
    found, wanted, modes = run.sharpness(), [], []
    for state in run.checkpoints.states:
        values, vectors = np.linalg.eigh(-problem.jacobian_product(state, np.eye(8)))
        wanted.append(values[-1])
        modes.append(abs(vectors[3, -1]).item() > 0.1)
    assert found == pytest.approx(wanted, rel=1e-9)
    assert set(modes) == {False, True}, "the top eigenvector moved from the one to the other"


def test_a_search_that_begins_within_invariant_directions_leaves_them():
    """Diagonal weights: the Hessian maps changes of the first 30 diagonal places to such, and the last is sharpest."""
    sizes = np.append(np.linspace(1, 2, 30), 3.0)
    problem = fs.Problem(fs.SquaredLoss(np.diag(sizes)), fs.LinearNetwork((np.diag(sizes), np.eye(31))))
    near = np.tile(np.diag(np.append(np.ones(30), 0.0)).ravel(), 2)
    value, vector = series._largest(problem, problem.initial_state, near / np.linalg.norm(near))
    assert value == pytest.approx(3**2 + 1)  # w_1^2 + w_2^2 of the last
    assert abs(problem.jacobian_product(problem.initial_state, vector) + value * vector).max() < 1e-7


@pytest.mark.parametrize("size", [0.01, 1.0])
def test_two_layers_have_the_sharpness_of_their_core(size):
    network = fs.fan_in((2, 40, 3), seed=1, scale=size)
    problem = fs.Problem(fs.SquaredLoss(np.arange(6.0).reshape(2, 3)), network)
    run = fs.simulate(problem, t1=0.5, save_points=4, reduce="always")
    assert run.reduction.network.exact
    wanted = [full_sharpness(run, t) for t in run.checkpoints.times]
    assert run.sharpness() == pytest.approx(wanted, rel=1e-10)


THREE = {
    "far from a minimum": fs.xavier((2, 24, 26, 1), seed=0, scale=0.3),
    "near one": fs.fan_in((2, 24, 26, 1), seed=0),
    "orthogonal": fs.orthogonal((2, 14, 14, 14, 2), seed=0, scale=0.3),
    "four layers": fs.xavier((1, 18, 18, 17, 1), seed=0, scale=0.6),
}


@pytest.mark.parametrize("name", THREE)
def test_a_compressed_run_has_the_sharpness_of_the_full_network(name):
    network = THREE[name]
    target = 2 * np.ones((network.dims[0], network.dims[-1]))
    run = fs.simulate(fs.Problem(fs.SquaredLoss(target), network), t1=0.5, save_points=3, reduce="always")
    assert run.reduction.network is not None
    wanted = [full_sharpness(run, t) for t in run.checkpoints.times]
    assert run.sharpness() == pytest.approx(wanted, rel=1e-6)


def test_the_core_alone_is_less_sharp_far_from_a_minimum():
    """Why levels are added: the eigenvector spreads over more of them than the trajectory."""
    problem = fs.Problem(fs.SquaredLoss(2 * np.ones((2, 1))), fs.xavier((2, 80, 90, 1), seed=0, scale=0.3))
    run = fs.simulate(problem, t1=0.1, save_points=2, reduce="always")
    core = series._sharpness_along(run.simulated, run.checkpoints.states)
    assert (core < run.sharpness() * (1 - 1e-3)).all()


@pytest.mark.parametrize(("width", "most", "cores"), [(10**9, 10**9, 4), (10**9, 0, 2), (30, 10**9, 3)])
def test_levels_are_added_until_they_end_or_the_core_is_large(width, most, cores, monkeypatch):
    network = fs.sample_compressed("xavier", (2, width, width, 1), seed=0, scale=0.3)
    run = fs.simulate(fs.Problem(fs.SquaredLoss(2 * np.ones((2, 1))), network), t1=0.01, save_points=2, reduce="always")
    sizes, along = [], series._sharpness_along
    monkeypatch.setattr(series, "_sharpness_along", lambda p, s: sizes.append(p.network.size) or along(p, s))
    monkeypatch.setattr(series, "MOST_WEIGHTS", most)
    assert np.isfinite(run.sharpness()).all()
    assert len(sizes) == len(set(sizes)) == cores


def test_the_sharpness_of_a_network_of_width_10_to_the_9():
    """Near the minimum it is K lambda_max(T) up to what is left of E."""
    network = fs.sample_compressed("fan_in", (2, 10**9, 10**9, 1), seed=0)
    run = fs.simulate(fs.Problem(fs.SquaredLoss(np.ones((2, 1))), network), t1=50.0, stop_loss=1e-12)
    T = run.core_at(float(run.time[-1])).dense_T()
    assert run.sharpness()[-1] == pytest.approx(np.linalg.eigvalsh(T)[-1], rel=1e-5)


def test_a_saved_run_has_the_same_sharpness(tmp_path):
    problem = fs.Problem(fs.SquaredLoss(np.ones((2, 1))), fs.xavier((2, 80, 90, 1), seed=0, scale=0.5))
    run = fs.simulate(problem, t1=1.0, save_points=3)
    assert run.reduction.network is not None
    run.save(tmp_path / "run.nc")
    assert fs.load(tmp_path / "run.nc").sharpness() == pytest.approx(run.sharpness(), rel=1e-8)


def test_no_sharpness_without_the_loss(tmp_path):
    run = fs.simulate(fs.Problem(Ones(), fs.fan_in((2, 4, 1), seed=0)), t1=1.0, save_points=3)
    run.save(tmp_path / "run.nc")
    back = fs.load(tmp_path / "run.nc")
    with pytest.raises(InputError, match="own loss"):
        back.sharpness()
    assert back.kernel_distance() == pytest.approx(run.kernel_distance())
    assert fs.load(tmp_path / "run.nc", loss=Ones()).sharpness() == pytest.approx(run.sharpness())


def test_a_hessian_that_vanishes_or_is_not_finite(monkeypatch):
    zero = fs.LinearNetwork(tuple(np.zeros(shape) for shape in pairwise((2, 20, 20, 2))))
    run = fs.simulate(fs.Problem(fs.SquaredLoss(np.ones((2, 2))), zero), t1=1.0, save_points=3, reduce="never")
    assert run.sharpness().tolist() == [0, 0, 0]
    assert run.effective_rank().tolist() == [0, 0, 0]
    assert np.isnan(run.kernel_distance()).all()

    def fails(*_):
        raise NumericalFailure("not finite")

    monkeypatch.setattr(series, "_largest", fails)
    assert np.isnan(run.sharpness()).all()


def test_descent_is_stable_below_the_edge_and_leaves_a_minimum_beyond_it():
    """The minimum (3, 1) has sharpness 10. From beside it descent converges for step_size 10 < 2, else not to it."""
    problem = scalar_problem(3.0, 1.0 + 1e-6, 3.0)
    stable, unstable = (fs.simulate(problem, fs.GradientDescent(eta), t1=400 * eta) for eta in (0.19, 0.21))
    assert stable.sharpness() == pytest.approx(10, rel=1e-5)
    assert 0.19 * stable.sharpness()[-1] < 2
    assert stable.excess[-1] < 1e-3 * stable.excess[0]
    sharp = 0.21 * unstable.sharpness()
    assert sharp[0] > 2
    assert unstable.excess.max() > 1e6 * unstable.excess[0], "it was driven away"
    assert sharp[-1] < 2, "to a flatter minimum"
    assert unstable.excess[-1] < 1e-20


@pytest.mark.parametrize("reduce", ["never", "always"])
@pytest.mark.parametrize("dims", [(3, 7, 2), (2, 30, 31, 3), (2, 4, 5, 4, 2)], ids=str)
def test_the_distance_of_the_kernel_is_that_of_dense_T(dims, reduce, rng):
    run = fs.simulate(random_problem(rng, dims), t1=0.7, save_points=5, reduce=reduce)
    kernels = [run.network_at(t).dense_T() for t in run.checkpoints.times]
    wanted = [np.linalg.norm(T - kernels[0]) / np.linalg.norm(kernels[0]) for T in kernels]
    found = run.kernel_distance()
    assert found.shape == (5,)
    assert found[0] == 0
    assert found == pytest.approx(wanted, rel=1e-7)


def test_a_kernel_that_hardly_moves_is_told_from_one_that_does_not():
    """T = w_1^2 + w_2^2 = 10 changes at first by 4 w_1 w_2 (y - w_1 w_2) t = -12 t: squares do not show it."""
    run = fs.simulate(scalar_problem(3.0, 1.0, 2.0), t1=1e-11, save_points=2)
    assert run.kernel_distance()[-1] == pytest.approx(1.2e-11, rel=1e-4)


def product_run(first, *others):
    """A run whose product at the start is that of the layers."""
    network = fs.LinearNetwork((first, *others))
    return fs.simulate(fs.Problem(fs.SquaredLoss(np.zeros(network.product.shape)), network), t1=1e-3, save_points=2)


def test_the_effective_rank():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((4, 4)))
    assert product_run(rotation, np.eye(4)).effective_rank() == pytest.approx(4)
    assert product_run(np.outer([1.0, 2, 3], [1, 1]), np.ones((2, 3))).effective_rank() == pytest.approx(1)
    sizes = np.array([3.0, 1.0])
    shares = sizes / 4
    assert product_run(np.diag(sizes), np.eye(2)).effective_rank()[0] == pytest.approx(np.prod(shares**-shares))
    assert product_run(1e-200 * np.diag(sizes), np.eye(2)).effective_rank()[0] == pytest.approx(4 / 27**0.25)


@pytest.mark.parametrize("reduce", ["never", "always"])
@pytest.mark.parametrize("dims", [(3, 30, 2), (2, 30, 31, 3)], ids=str)
def test_singular_values_of_the_layers(dims, reduce, rng):
    run = fs.simulate(random_problem(rng, dims), t1=0.3, save_points=3, reduce=reduce)
    assert (run.reduction.network is None) == (reduce == "never")
    for layer, shape in enumerate(pairwise(dims), start=1):
        found = run.layer_singular_values(layer)
        assert found.shape == (3, min(shape))
        for t, values in zip(run.checkpoints.times, found, strict=True):
            assert values == pytest.approx(np.linalg.svd(run.layer_at(t, layer), compute_uv=False), rel=1e-9, abs=1e-12)
    for wrong in (0, len(dims)):
        with pytest.raises(InputError, match="`layer` must be at"):
            run.layer_singular_values(wrong)


def test_a_layer_of_low_rank_has_singular_values_zero(rng):
    first = np.outer([1.0, 2, 3], rng.standard_normal(40))
    network = fs.LinearNetwork((first, np.ones((40, 1))))
    run = fs.simulate(fs.Problem(fs.SquaredLoss(np.ones((3, 1))), network), t1=1e-6, save_points=2, reduce="always")
    assert run.core_at(0.0).dims[1] == 2
    assert run.layer_singular_values(1)[0] == pytest.approx([np.linalg.norm(first), 0, 0], abs=1e-12)


def top_vectors(W):
    U, _, Vt = np.linalg.svd(W)
    return U[:, 0], Vt[0]


@pytest.mark.parametrize("dense", [0, 10**3], ids=["Lanczos", "dense"])
@pytest.mark.parametrize("reduce", ["never", "always"])
@pytest.mark.parametrize("dims", [(3, 30, 2), (2, 30, 31, 3)], ids=str)
def test_alignment(dims, reduce, dense, rng, monkeypatch):
    monkeypatch.setattr(series, "DENSE", dense)
    run = fs.simulate(random_problem(rng, dims), t1=0.3, save_points=3, reduce=reduce)
    wanted = []
    for t in run.checkpoints.times:
        tops = [top_vectors(W) for W in run.weights_at(t)]
        wanted.append([abs(v @ u) for (_, v), (u, _) in pairwise(tops)])
    assert run.alignment() == pytest.approx(np.array(wanted), abs=1e-8)


def test_balanced_layers_are_aligned_and_others_come_to_be():
    """W_l^T W_l = W_{l+1} W_{l+1}^T; from small weights the flow to a target of rank one aligns the layers."""
    problem = fs.Problem(fs.SquaredLoss([[2.0], [1.0]]), fs.balanced((2, 5, 4, 1), seed=0))
    assert fs.simulate(problem, t1=1.0, save_points=3).alignment() == pytest.approx(1, abs=1e-9)
    small = fs.Problem(fs.SquaredLoss([[2.0], [1.0]]), fs.fan_in((2, 5, 4, 1), seed=0, scale=0.05))
    found = fs.simulate(small, t1=400.0, stop_loss=1e-6).alignment()
    assert found[0].min() < 0.9
    assert found[-1].min() > 0.99


def test_hidden_layers_that_are_not_at_hand_are_refused():
    loss = fs.SquaredLoss(np.ones((2, 1)))
    drawn = fs.simulate(fs.Problem(loss, fs.sample_compressed("xavier", (2, 10**9, 10**9, 1), seed=0)), t1=0.1)
    for series_of in (drawn.alignment, lambda: drawn.layer_singular_values(2)):
        with pytest.raises(InputError, match="drawn or loaded in compressed form"):
            series_of()
    assert drawn.layer_singular_values(1).shape == (len(drawn.checkpoints.times), 2)
    two = fs.simulate(fs.Problem(loss, fs.sample_compressed("xavier", (2, 10**9, 1), seed=0)), t1=0.1)
    assert (two.alignment() <= 1).all()


def test_hidden_layers_that_are_operators_are_refused(rng):
    hidden = random_array((90, 91), density=0.1, rng=rng, format="csr")
    network = fs.LinearNetwork((rng.standard_normal((2, 90)) / 9, hidden, rng.standard_normal((91, 1)) / 9))
    run = fs.simulate(fs.Problem(fs.SquaredLoss(np.ones((2, 1))), network), t1=0.1, save_points=2)
    with pytest.raises(InputError, match="W2 is not at hand as an array"):
        run.alignment()
    assert run.layer_singular_values(3).shape == (2, 1)
    assert flatten(run.core_at(0.0).weights).size < 90 * 91


def test_all_series_are_one_dataset():
    """Those that need a hidden layer as an array are left out where there is none."""
    problem = fs.Problem(fs.SquaredLoss(np.ones((2, 2))), fs.fan_in((2, 5, 4, 2), seed=0), weight_decay=0.1)
    run = fs.simulate(problem, t1=1.0, save_points=4, dynamics=fs.HeavyBall(0.5))
    found = run.series()
    assert found.sharpness.values == pytest.approx(run.sharpness())
    assert found.kernel_distance.values == pytest.approx(run.kernel_distance())
    assert found.effective_rank.values == pytest.approx(run.effective_rank())
    assert found.alignment.values == pytest.approx(run.alignment())
    assert found.layer_singular_values_2.values == pytest.approx(run.layer_singular_values(2))
    drawn = fs.Problem(problem.loss, fs.sample_compressed("fan_in", (2, 10**5, 10**5, 2), seed=0))
    few = fs.simulate(drawn, t1=1e-6, save_points=2).series()
    assert "layer_singular_values_2" not in few
    assert "alignment" not in few
    assert np.isfinite(few.layer_singular_values_1).all()
