"""Problems, networks, losses and trajectories are values: what they were made from and what they hand out cannot change
them, and using them changes neither pickles nor hashes."""

import copy
import pickle

import joblib
import numpy as np
import pytest
from scipy.sparse import csr_array

import flowsim as fs
from flowsim.errors import InputError

DATA = np.array([[1.0, 2.0], [0.5, -1.0], [2.0, 1.0]])
LABELS = np.array([[1.0], [-1.0], [1.0]])
W = np.array([[0.3], [-0.7]])
SAMPLED = fs.sample_compressed("fan_in", (2, 40, 40, 1), seed=3)


def losses():
    """(given arrays, the loss made from them) of every kind."""
    for make, given in (
        (fs.SquaredLoss, [np.ones((2, 1))]),
        (fs.LeastSquares, [DATA.copy(), LABELS.copy()]),
        (fs.MaskedSquaredLoss, [np.ones((2, 1)), np.array([[1.0], [0.5]])]),
        (fs.ExponentialLoss, [DATA.copy(), LABELS.copy()]),
        (fs.LogisticLoss, [DATA.copy(), LABELS.copy()]),
        (fs.LogisticLoss, [DATA.copy(), LABELS[:, 0].copy()]),
    ):
        yield given, make(*given)


@pytest.mark.parametrize(("given", "loss"), list(losses()), ids=lambda x: type(x).__name__)
def test_a_loss_keeps_what_it_was_made_from(given, loss):
    before, slope = loss.value(W), loss.gradient(W).copy()
    for array in given:
        array *= -3.0
    assert loss.value(W) == before
    assert (loss.gradient(W) == slope).all()
    for part in loss.parts().values():
        if isinstance(part, np.ndarray):
            with pytest.raises(ValueError, match="read-only"):
                part[:] = 5
    name = next(iter(vars(loss)))
    with pytest.raises(AttributeError):
        setattr(loss, name, 5)
    again = pickle.loads(pickle.dumps(loss))
    assert again.value(W) == before
    assert not any(part.flags.writeable for part in again.parts().values() if isinstance(part, np.ndarray))


def test_a_loss_does_not_see_a_view_of_a_writable_array():
    Y = np.ones((2, 1))
    view = Y[:]
    view.flags.writeable = False
    loss = fs.SquaredLoss(view)
    Y[:] = 5
    assert loss.value(np.ones((2, 1))) == 0.0


@pytest.mark.parametrize("hidden", [np.eye(3), csr_array(np.eye(3))], ids=["dense", "sparse"])
def test_a_network_keeps_what_it_was_made_from(hidden):
    first, last = np.ones((2, 3)), np.ones((3, 1))
    origin = {"scheme": "mine", "list": [1, {"deep": 2}]}
    network = fs.LinearNetwork((first, hidden, last), origin=origin)
    product = network.product.copy()
    first[:], last[:], origin["scheme"] = 7, 7, "yours"
    hidden *= 0.0
    origin["list"].append(3)
    assert (fs.LinearNetwork(network.weights).product == product).all()
    assert network.origin["scheme"] == "mine"
    assert len(network.origin["list"]) == 2
    with pytest.raises(TypeError):
        network.origin["scheme"] = "theirs"
    with pytest.raises(TypeError):
        network.origin["list"][1]["deep"] = 3
    ends = [network.weights[0], network.weights[-1], network.product, *network.prefixes, *network.suffixes]
    for array in [*ends, *(G for pair in network.grams for G in pair)]:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_eigenvalues_of_the_imbalance_are_read_only():
    network = fs.fan_in((2, 4, 3, 1), seed=0)
    with pytest.raises(ValueError, match="read-only"):
        network.imbalance_eigenvalues[0][:] = 1
    assert isinstance(network.imbalance_norms, tuple)


def test_memory_maps_are_neither_copied_nor_written(tmp_path):
    np.save(tmp_path / "W2.npy", np.eye(3))
    mapped = np.load(tmp_path / "W2.npy", mmap_mode="r")
    network = fs.LinearNetwork((np.ones((2, 3)), mapped, np.ones((3, 1))))
    assert np.shares_memory(network.weights[1], mapped)
    writable = np.load(tmp_path / "W2.npy", mmap_mode="r+")
    other = fs.LinearNetwork((np.ones((2, 3)), writable, np.ones((3, 1))))
    writable[:] = 0
    assert (other.weights[1] == np.eye(3)).all()


def test_networks_drawn_from_a_generator_do_not_depend_on_what_else_is_drawn():
    one, other = np.random.default_rng(5), np.random.default_rng(5)
    calm = fs.sample_compressed("fan_in", (2, 40, 40, 40, 1), seed=one)
    stirred = fs.sample_compressed("fan_in", (2, 40, 40, 40, 1), seed=other)
    other.standard_normal(100)
    assert (calm.with_steps(6).core.weights[1] == stirred.with_steps(6).core.weights[1]).all()
    second = fs.sample_compressed("fan_in", (2, 40, 40, 40, 1), seed=one)
    assert second.core.product != pytest.approx(calm.core.product)


class Quartic:
    """A user's own loss."""

    shape = (2, 1)
    minimum = 0.0

    def value(self, W):
        return float(((W - 1) ** 4).sum()) / 4

    def gradient(self, W):
        return (W - 1) ** 3


def problems():
    yield fs.Problem(fs.SquaredLoss([[1.0], [2.0]]), fs.fan_in((2, 5, 5, 1), seed=0))
    yield fs.Problem(fs.LeastSquares(DATA, LABELS), fs.compress(fs.fan_in((2, 40, 40, 1), seed=0)))
    yield fs.Problem(fs.ExponentialLoss(DATA, LABELS), fs.sample_compressed("fan_in", (2, 40, 40, 1), seed=3))
    yield fs.Problem(Quartic(), fs.LinearNetwork((np.ones((2, 3)), csr_array(np.eye(3)), np.ones((3, 1)))))


@pytest.mark.parametrize("problem", list(problems()), ids=lambda p: type(p.loss).__name__)
def test_use_changes_no_hash_and_copies_are_the_same(problem):
    before = [joblib.hash(value) for value in (problem, problem.network, problem.loss)]
    flow = fs.simulate(problem, t1=0.2, save_points=3)
    certificates = fs.certify(problem)
    _ = problem.network.product, problem.network.imbalance_norms, flow.dataset
    assert [joblib.hash(value) for value in (problem, problem.network, problem.loss)] == before
    for again in (copy.deepcopy(problem), pickle.loads(pickle.dumps(problem))):
        assert joblib.hash(again) == before[0]
        assert fs.simulate(again, t1=0.2, save_points=3).excess.tolist() == flow.excess.tolist()
        assert fs.certify(again).lambda_min_T == certificates.lambda_min_T
        network = getattr(again.network, "core", again.network)
        with pytest.raises(ValueError, match="read-only"):
            network.weights[0][:] = 0


def test_a_trajectory_hands_out_nothing_that_writes():
    flow = fs.simulate(fs.Problem(Quartic(), fs.fan_in((2, 3, 1), seed=0)), t1=1.0, save_points=3)
    end = flow.product_at(1.0).copy()
    arrays = [flow.time, flow.excess, flow.products, flow.singular_values, flow.imbalance_drift, flow.imbalance_change]
    for array in [*arrays, *flow.weights_at(1.0), *vars(flow.steps).values(), flow.checkpoints.states]:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    assert (flow.product_at(1.0) == end).all()
    assert fs.resume(flow, t1=1.5).status == "completed"


def test_the_network_of_a_later_time_does_not_claim_to_be_the_initial_one():
    flow = fs.simulate(fs.Problem(Quartic(), fs.fan_in((2, 3, 1), seed=4)), t1=1.0, save_points=3)
    origin = flow.network_at(0.5).origin
    assert "scheme" not in origin
    assert (origin["time"], origin["started_from"]["seed"]) == (0.5, 4)
    assert "fan_in" not in repr(flow.network_at(0.5))
    assert flow.problem.network.with_weights(flow.weights_at(1.0)).origin == {}
    assert SAMPLED.core.origin["core_of"]["seed"] == 3
    assert "scheme" not in SAMPLED.core.origin


MASKED = np.ma.masked_array(np.ones((2, 1)), [[True], [False]])


@pytest.mark.parametrize(
    "make",
    [
        lambda: fs.SquaredLoss(MASKED),
        lambda: fs.SquaredLoss([MASKED[:, 0], MASKED[:, 0]]),
        lambda: fs.LeastSquares(MASKED, np.ones((2, 1))),
        lambda: fs.LeastSquares(np.ones((2, 1)), MASKED),
        lambda: fs.MaskedSquaredLoss(MASKED, np.ones((2, 1))),
        lambda: fs.MaskedSquaredLoss(np.ones((2, 1)), MASKED),
        lambda: fs.ExponentialLoss(MASKED, [1, -1]),
        lambda: fs.LogisticLoss(np.ones((2, 1)), MASKED),
        lambda: fs.LinearNetwork((MASKED, np.ones((1, 1)))),
        lambda: fs.spectral((2, 2, 1), seed=0, target=MASKED),
        lambda: fs.simulate(next(problems()), t1=1.0, save_points=np.ma.masked_array([0.0, 1.0], [True, False])),
    ],
)
def test_masked_arrays_are_refused(make):
    with pytest.raises(InputError, match=r"masked.*MaskedSquaredLoss"):
        make()
