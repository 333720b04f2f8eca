"""The vector field and the flow map for programs in jax, against the NumPy path and differences of simulated flows."""

import subprocess
import sys

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import Huber, random_network, random_problem
from scipy.sparse import csr_array

import flowsim as fs
from flowsim.errors import InputError
from flowsim.network import unflatten

EIGHT = fs.Diffrax("Dopri8")
DIMS = {2: (3, 5, 2), 3: (2, 4, 5, 3), 4: (3, 4, 5, 4, 2)}
FEW_STAGES = fs.Diffrax("Bosh3", rtol=1e-3, atol=1e-5)
TIGHT = fs.Diffrax("Tsit5", rtol=1e-11, atol=1e-13)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def mask_of(shape):
    mask = np.ones(shape)
    mask[0, 0], mask[-1, -1] = 0.0, 0.5
    return mask


def data_of(kind, n, m, rng):
    """What the constructor of that loss takes, by name."""
    if kind in (fs.SquaredLoss, fs.MaskedSquaredLoss):
        target = {"Y": rng.standard_normal((n, m))}
        return target if kind is fs.SquaredLoss else {**target, "mask": mask_of((n, m))}
    X = rng.standard_normal((6, n))
    if kind is fs.LeastSquares:
        return {"X": X, "Y": rng.standard_normal((6, m))}
    return {"X": X, "y": rng.choice([-1.0, 1.0], (6, m))}


LOSSES = [fs.SquaredLoss, fs.MaskedSquaredLoss, fs.LeastSquares, fs.ExponentialLoss, fs.LogisticLoss]


def problem_of(kind, depth, rng, scale=0.7):
    dims = DIMS[depth]
    return fs.Problem(kind(**data_of(kind, dims[0], dims[-1], rng)), random_network(rng, dims, scale=scale))


def in_jax(problem):
    return tuple(map(jnp.asarray, problem.network.weights))


def vector(layers):
    return np.concatenate([np.ravel(W) for W in layers])


def near(found, wanted, tolerance):
    return np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


# ---------------------------------------------------------------------------------------------------- the vector field


@pytest.mark.parametrize("depth", DIMS)
@pytest.mark.parametrize("kind", LOSSES)
def test_the_field_is_the_velocity(kind, depth, rng):
    problem = problem_of(kind, depth, rng)
    field, states = fs.vector_field(problem), problem.initial_state + 0.1 * rng.standard_normal((4, 1))
    velocities = [problem.velocity(state) for state in states]
    for state, velocity in zip(states, velocities, strict=True):
        layers = tuple(map(jnp.asarray, unflatten(state, problem.network.dims)))
        for found in (field(0.0, layers, None), jax.jit(field)(0.0, layers, None)):
            assert isinstance(found, tuple)
            assert {W.dtype for W in found} == {np.dtype(float)}
            assert near(vector(found), velocity, 1e-14)
    stacks = tuple(map(jnp.asarray, unflatten(states, problem.network.dims)))
    side_by_side = jax.vmap(field, in_axes=(None, 0, None))(0.0, stacks, None)
    for k, velocity in enumerate(velocities):
        assert near(vector([W[k] for W in side_by_side]), velocity, 1e-14)


@pytest.mark.parametrize("kind", LOSSES)
def test_args_take_the_place_of_the_problems_own(kind, rng):
    problem = problem_of(kind, 3, rng)
    dims = problem.network.dims
    data = data_of(kind, dims[0], dims[-1], rng)
    network = fs.LinearNetwork(problem.network.weights, 1.3)
    other = fs.Problem(kind(**data), network)
    found = jax.jit(fs.vector_field(problem))(0.0, in_jax(problem), {**data, "scale": 1.3})
    assert near(vector(found), other.velocity(other.initial_state), 1e-12)
    if kind not in (fs.SquaredLoss, fs.ExponentialLoss):
        return
    flow = fs.FlowMap(problem, t1=0.1)
    value = float(flow.loss(in_jax(problem), {**data, "scale": 1.3}))
    assert value == pytest.approx(float(fs.FlowMap(other, t1=0.1).loss(in_jax(problem))), rel=1e-9)
    assert value != pytest.approx(float(flow.loss(in_jax(problem))), rel=1e-3)


def test_labels_may_be_a_vector_and_what_is_not_seen_may_be_nan(rng):
    X, y = rng.standard_normal((6, 3)), np.array([1.0, 1, -1, -1, 1, -1])
    problem = fs.Problem(fs.LogisticLoss(X, y), fs.fan_in((3, 4, 1), seed=0))
    other = fs.Problem(fs.LogisticLoss(X, -y), problem.network)
    found = fs.vector_field(problem)(0.0, in_jax(problem), {"y": -y})
    assert near(vector(found), other.velocity(other.initial_state), 1e-14)

    Y = np.array([[np.nan, 1.0], [2.0, 3.0]])
    problem = fs.Problem(fs.MaskedSquaredLoss(np.ones((2, 2)), [[0, 1], [1, 1]]), fs.fan_in((2, 3, 2), seed=0))
    slope = jax.grad(lambda Y: fs.FlowMap(problem, t1=0.3).loss(in_jax(problem), {"Y": Y}))(jnp.asarray(Y))
    assert slope[0, 0] == 0
    assert np.isfinite(slope).all()
    assert (np.abs(slope).ravel()[1:] > 1e-3).all()


def test_data_with_other_entries_leaves_nothing_behind_that_is_known_of_the_old(rng):
    X = np.array([[2.0, 0.0], [0.0, 1.0]])
    loss = fs.ExponentialLoss(X, [1, 1])
    assert loss.margin > 0
    assert loss.with_data({"X": -X}).minimum is None
    seen_in_part = fs.LeastSquares([[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [[1.0], [2.0], [3.0]])
    assert seen_in_part.minimum == pytest.approx(4.5)
    rows = seen_in_part.with_data({"X": np.ones((3, 2)), "Y": np.eye(3)[:, :1]})
    W = np.array([[0.5], [1.0]])
    assert rows.value(W) == pytest.approx(fs.LeastSquares(np.ones((3, 2)), np.eye(3)[:, :1]).value(W), rel=1e-12)


def test_where_jax_computes_in_float32_the_field_does_and_nothing_of_it_stays(rng):
    problem = problem_of(fs.LogisticLoss, 3, rng)
    velocity, weights = problem.velocity(problem.initial_state), problem.network.weights
    field = fs.vector_field(problem)
    with jax.enable_x64(False):
        found = field(0.0, weights, {"scale": problem.network.scale})
        assert {W.dtype for W in found} == {np.dtype(np.float32)}
        assert near(vector(found), velocity, 1e-5)
        coarse = fs.FlowMap(problem, fs.Diffrax("Tsit5", rtol=1e-5, atol=1e-6), t1=0.3).loss(in_jax(problem))
        with pytest.raises(InputError, match=r"rtol of at least 1\.2e-06 for weights in float32.*jax_enable_x64"):
            fs.FlowMap(problem, t1=0.3)(in_jax(problem))
    assert float(coarse) == pytest.approx(float(fs.FlowMap(problem, TIGHT, t1=0.3).loss(in_jax(problem))), rel=1e-4)
    assert {W.dtype for W in field(0.0, tuple(W.astype(np.float32) for W in weights))} == {np.dtype(np.float32)}
    assert near(vector(field(0.0, weights)), velocity, 1e-14)


def test_in_ones_own_diffrax_it_gives_the_simulated_flow(rng):
    problem, ts = random_problem(rng, (3, 5, 4, 2)), np.linspace(0.0, 2.0, 5)
    flow = fs.simulate(problem, fs.Scipy("DOP853", rtol=1e-11, atol=1e-13), t1=2.0, save_points=ts, reduce="never")

    @jax.jit
    def own(weights):
        control = diffrax.ClipStepSizeController(diffrax.PIDController(rtol=1e-11, atol=1e-13), step_ts=ts)
        term, saveat = diffrax.ODETerm(fs.vector_field(problem)), diffrax.SaveAt(ts=ts)
        solver = diffrax.Dopri8()
        return diffrax.diffeqsolve(term, solver, 0.0, 2.0, None, weights, saveat=saveat, stepsize_controller=control).ys

    found = own(in_jax(problem))
    for k, t in enumerate(ts):
        assert near(vector([W[k] for W in found]), vector(flow.weights_at(t)), 1e-9)


# -------------------------------------------------------------------------------------------------------- the flow map


@pytest.mark.parametrize("method", ["tsit5", EIGHT, fs.Diffrax("Heun", step_size=1e-3)])
def test_the_map_is_the_simulated_flow(method, rng):
    problem, ts = random_problem(rng, (3, 5, 4, 2)), [0.0, 0.3, 0.77, 1.0]
    reference = fs.simulate(problem, fs.Scipy("DOP853", rtol=1e-11, atol=1e-13), t1=1.0, save_points=ts, reduce="never")
    flow = fs.FlowMap(problem, method, t1=1.0, ts=ts)
    at_ts, losses = flow(in_jax(problem)), flow.loss(in_jax(problem))
    tolerance = 3e-10 if method is EIGHT else 1e-4
    for k, t in enumerate(ts):
        assert near(vector([W[k] for W in at_ts]), vector(reference.weights_at(t)), tolerance)
        assert float(losses[k]) == pytest.approx(reference.loss[k], rel=tolerance)
    end = fs.FlowMap(problem, method, t1=1.0)
    assert [W.shape for W in end(in_jax(problem))] == [W.shape for W in problem.network.weights]
    assert near(vector(end(in_jax(problem))), vector([W[-1] for W in at_ts]), tolerance)
    assert end.loss(in_jax(problem)).shape == ()


def simulated_loss(problem, t1):
    method = fs.Scipy("DOP853", rtol=1e-11, atol=1e-14)
    return float(fs.simulate(problem, method, t1=t1, save_points=2, reduce="never").loss[-1])


def quotient(function, h=2e-4):
    """A central difference of order 4 of function at 0."""
    near, far = (function(h) - function(-h)) / (2 * h), (function(2 * h) - function(-2 * h)) / (4 * h)
    return (4 * near - far) / 3


ADJOINTS = {
    "default": None,
    "direct": diffrax.DirectAdjoint(),
    "backsolve": diffrax.BacksolveAdjoint(
        solver=diffrax.Tsit5(), stepsize_controller=diffrax.PIDController(rtol=1e-11, atol=1e-13)
    ),
}


@pytest.mark.parametrize(
    ("kind", "adjoint"),
    [(fs.LeastSquares, "default"), (fs.ExponentialLoss, "direct"), (fs.MaskedSquaredLoss, "backsolve")],
)
def test_gradients_are_those_of_the_simulated_flow(kind, adjoint, rng):
    """In the weights, in every array of the loss (but labels, which are signs), and in the scale."""
    dims, t1 = DIMS[3], 0.6
    data, network = data_of(kind, dims[0], dims[-1], rng), random_network(rng, dims, scale=0.7)
    weights, flow = (
        network.weights,
        fs.FlowMap(fs.Problem(kind(**data), network), TIGHT, t1=t1, adjoint=ADJOINTS[adjoint]),
    )
    arrays = {"scale": 0.7, **data}
    by_weights, by_args = jax.grad(flow.loss, argnums=(0, 1))(
        tuple(map(jnp.asarray, weights)), {name: jnp.asarray(array) for name, array in arrays.items()}
    )

    def simulated(layers, scale, **data):
        return simulated_loss(fs.Problem(kind(**data), fs.LinearNetwork(tuple(layers), scale)), t1)

    along = [rng.standard_normal(W.shape) for W in weights]
    found = quotient(lambda h: simulated([W + h * V for W, V in zip(weights, along, strict=True)], **arrays))
    assert np.vdot(vector(by_weights), vector(along)) == pytest.approx(found, rel=1e-6)
    for name in sorted(set(arrays) - {"y"}):
        aside = rng.standard_normal(np.shape(arrays[name])) * (np.asarray(arrays[name]) != 0)  # a mask stays >= 0
        found = quotient(lambda h, name=name, V=aside: simulated(weights, **{**arrays, name: arrays[name] + h * V}))
        assert np.vdot(by_args[name], aside) == pytest.approx(found, rel=1e-6), name


def test_the_derivative_of_the_map_is_the_same_forwards_and_backwards_and_side_by_side(rng):
    problem = random_problem(rng, (2, 3, 2))
    along = tuple(jnp.asarray(rng.standard_normal(W.shape)) for W in problem.network.weights)
    back, weights = tuple(2 * V for V in along[::-1])[::-1], in_jax(problem)
    direct = fs.FlowMap(problem, FEW_STAGES, t1=0.5, ts=[0.2, 0.5], adjoint=diffrax.DirectAdjoint(), max_steps=64)
    _, forwards = jax.jvp(direct, (weights,), (along,))
    _, pull = jax.vjp(fs.FlowMap(problem, FEW_STAGES, t1=0.5, ts=[0.2, 0.5], max_steps=64), weights)
    seen = tuple(jnp.stack([0 * V, V]) for V in back)
    ahead = np.vdot(vector([W[-1] for W in forwards]), vector(back))
    assert ahead == pytest.approx(np.vdot(vector(pull(seen)[0]), vector(along)))

    slope = jax.grad(fs.FlowMap(problem, FEW_STAGES, t1=0.5, max_steps=64).loss)
    stacks = tuple(jnp.stack([W, 0.5 * W]) for W in weights)
    both = jax.jit(jax.vmap(slope))(stacks)
    for k, factor in enumerate((1.0, 0.5)):
        one = slope(tuple(factor * W for W in weights))
        assert near(vector([W[k] for W in both]), vector(one), 1e-9)


def test_the_best_scale_of_the_initial_weights(rng):
    """A target of rank 1: small weights learn it late, of large ones what the target lacks remains. In between lies a
    least loss at t = 0.5, which gradient descent through the flow finds, and a scan too."""
    u, v = rng.standard_normal((4, 1)), rng.standard_normal((3, 1))
    network = fs.balanced((4, 6, 3), seed=1)
    problem = fs.Problem(fs.SquaredLoss(u @ v.T), network)
    weights, flow = in_jax(problem), fs.FlowMap(problem, fs.Diffrax("Tsit5", rtol=1e-9, atol=1e-11), t1=0.5)

    @jax.jit
    @jax.value_and_grad
    def log_loss(s):
        return jnp.log(flow.loss(tuple(jnp.exp(s) * W for W in weights)))

    s = jnp.asarray(-1.0)
    for _ in range(60):
        least, slope = log_loss(s)
        s = s - 0.1 * slope
    assert abs(slope) < 1e-8

    scan = np.linspace(-2.0, 2.0, 41)
    scaled = (
        fs.Problem(problem.loss, network.with_weights([np.exp(one) * W for W in network.weights])) for one in scan
    )
    losses = [simulated_loss(one, 0.5) for one in scaled]
    best = int(np.argmin(losses))
    assert 0 < best < len(scan) - 1
    assert abs(float(s) - scan[best]) < scan[1] - scan[0]
    assert 0.98 * losses[best] < float(jnp.exp(least)) <= losses[best]


# ------------------------------------------------------------------------------------------------- losses of one's own


class Shifted:
    """A user's own loss in jax.numpy, with data."""

    shape = (2, 1)

    def __init__(self, target):
        self.target = target

    def value(self, W):
        return jnp.log(jnp.cosh(W - self.target)).sum()

    def gradient(self, W):
        return jnp.tanh(W - self.target)

    def with_data(self, data):
        return Shifted(**data)


class Half(fs.SquaredLoss):
    def excess(self, W):
        return super().excess(W) / 2

    def gradient(self, W):
        return super().gradient(W) / 2


OWN = {
    "NumPy that jax traces": Huber,
    "jax": lambda: Shifted(np.ones((2, 1))),
    "subclass": lambda: Half(np.ones((2, 1))),
}


@pytest.mark.parametrize("loss", OWN)
def test_a_loss_of_ones_own(loss, rng):
    problem = fs.Problem(OWN[loss](), random_network(rng, (2, 3, 1), scale=0.7))
    found = jax.jit(fs.vector_field(problem))(0.0, in_jax(problem), {"scale": 0.7})
    assert near(vector(found), problem.velocity(problem.initial_state), 1e-14)
    flow = fs.FlowMap(problem, TIGHT, t1=0.5)
    assert float(flow.loss(in_jax(problem))) == pytest.approx(simulated_loss(problem, 0.5), rel=1e-8)


@pytest.mark.parametrize(("loss", "name"), [("jax", "target"), ("subclass", "Y")])
def test_a_loss_of_ones_own_with_data(loss, name, rng):
    problem = fs.Problem(OWN[loss](), random_network(rng, (2, 3, 1)))
    other = fs.Problem(type(problem.loss)(np.full((2, 1), 0.3)), problem.network)
    found = fs.vector_field(problem)(0.0, in_jax(problem), {name: np.full((2, 1), 0.3)})
    assert near(vector(found), other.velocity(other.initial_state), 1e-14)


class Concrete(Huber):
    def gradient(self, W):
        return np.tanh(W - self.target)

    def value(self, W):
        return np.log(np.cosh(W - self.target)).sum()


class Float(Huber):
    def value(self, W):
        return float(super().value(W))


def test_a_loss_that_jax_cannot_trace_is_refused_with_the_reason():
    network = fs.fan_in((2, 3, 1), seed=0)
    refused = r"loss that jax can trace, but its {} raised {}.*Use jax\.numpy alone"
    for make in (fs.vector_field, lambda problem: fs.FlowMap(problem, t1=1.0)):
        with pytest.raises(InputError, match=refused.format("gradient", "TracerArrayConversionError")):
            make(fs.Problem(Concrete(), network))
    flow = fs.FlowMap(fs.Problem(Float(), network), t1=0.1)
    assert np.isfinite(flow(network.weights)[0]).all()
    with pytest.raises(InputError, match=refused.format("value", "ConcretizationTypeError")):
        flow.loss(network.weights)


# ------------------------------------------------------------------------------------------------------------- refusals


def test_networks_that_are_not_all_arrays_are_refused(rng):
    W = [rng.standard_normal(shape) for shape in ((2, 4), (4, 4), (4, 1))]
    whole = fs.LinearNetwork((W[0], csr_array(np.diag(np.diag(W[1]))), W[2]))
    for network in (whole, fs.compress(fs.fan_in((2, 30, 40, 1), seed=0))):
        with pytest.raises(InputError, match=f"its {type(network).__name__} is compressed or has operators, which jax"):
            fs.vector_field(fs.Problem(fs.SquaredLoss(np.ones((2, 1))), network))


REFUSED = {
    "Argument `weights` must be layers of shapes": (([[1.0]], [[1.0]]), None),
    r"one of scale, weight_decay, X, Y, but it is 'y' \(did you mean Y": (None, {"y": np.ones(6)}),
    "both X and Y: LeastSquares keeps no more": (None, {"X": np.ones((6, 3))}),
    r"are of shapes \(6, 3\) and \(5, 2\)": (None, {"X": np.ones((6, 3)), "Y": np.ones((5, 2))}),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_calls_that_make_no_sense(sentence, rng):
    problem, (weights, args) = problem_of(fs.LeastSquares, 2, rng), REFUSED[sentence]
    with pytest.raises(InputError, match=sentence):
        fs.FlowMap(problem, t1=1.0)(weights or in_jax(problem), args)


def test_args_of_other_shapes_or_for_a_loss_without_data(rng):
    problem = problem_of(fs.SquaredLoss, 2, rng)
    with pytest.raises(InputError, match=r"Y of shape \(3, 2\), as the loss has, but it is of shape \(2, 3\)"):
        fs.vector_field(problem)(0.0, in_jax(problem), {"Y": np.ones((2, 3))})
    problem = fs.Problem(Huber(), random_network(rng, (2, 3, 1)))
    with pytest.raises(InputError, match="scale and weight_decay, but it names target: Huber has no with_data"):
        fs.vector_field(problem)(0.0, in_jax(problem), {"target": np.ones((2, 1))})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"method": "kvaerno5"}, "an explicit Diffrax.*but it is kvaerno5"),
        ({"method": fs.Scipy("RK45")}, "an explicit Diffrax.*but it is rk45"),
        ({"t1": 0.0}, "`t1` must be greater than 0"),
        ({"max_steps": 0}, "`max_steps` must be at least 1"),
        ({"ts": [0.5, 0.5]}, "`ts` must ascend strictly"),
        ({"ts": [-0.1, 0.5]}, "`ts` must ascend strictly"),
        ({"ts": [0.5, 1.5]}, "`ts` must ascend strictly"),
        ({"ts": []}, "`ts` must ascend strictly"),
        ({"ts": 0.5}, "`ts` must ascend strictly"),
    ],
)
def test_settings_that_make_no_sense(settings, sentence, rng):
    with pytest.raises(InputError, match=sentence):
        fs.FlowMap(random_problem(rng, (2, 3, 2)), **{"t1": 1.0, **settings})


def test_what_takes_more_steps_raises_diffraxs_error(rng):
    problem = random_problem(rng, (2, 3, 2))
    with pytest.raises(RuntimeError, match="maximum number of solver steps"):
        jax.block_until_ready(fs.FlowMap(problem, TIGHT, t1=1.0, max_steps=3)(in_jax(problem)))


def test_jax_waits_until_it_is_used():
    code = "import sys, flowsim; assert not {'jax', 'diffrax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
