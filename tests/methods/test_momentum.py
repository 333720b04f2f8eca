"""Gradient descent with momentum: the steps of torch.optim.SGD, compressed, resumed, saved, judged."""

from dataclasses import replace

import numpy as np
import pytest

import flowsim as fs
from flowsim.errors import InputError

KINDS = [(0.9, False), (0.9, True), (0.5, False)]


def problem_of(dims, seed=0):
    rng = np.random.default_rng(seed)
    return fs.Problem(fs.SquaredLoss(rng.standard_normal((dims[0], dims[-1]))), fs.fan_in(dims, seed=seed))


def by_hand(problem, eta, momentum, nesterov, count):
    """The states after 0 .. count steps."""
    W, V = list(problem.network.weights), [np.zeros_like(w) for w in problem.network.weights]
    states = [np.concatenate([w.ravel() for w in W])]
    for _ in range(count):
        _, G = problem.gradients(W)
        V = [momentum * v + g for v, g in zip(V, G, strict=True)]
        W = [w - eta * (g + momentum * v if nesterov else v) for w, v, g in zip(W, V, G, strict=True)]
        states.append(np.concatenate([w.ravel() for w in W]))
    return np.array(states)


@pytest.mark.parametrize(("momentum", "nesterov"), KINDS)
@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_the_steps_are_those_written_out(momentum, nesterov, backend):
    problem, eta = problem_of((3, 6, 5, 2)), 0.01
    method = fs.GradientDescent(eta, backend, momentum, nesterov)
    run = fs.simulate(problem, method, t1=1500 * eta, save_points=[0, 7 * eta, 1200 * eta, 1500 * eta])
    true = by_hand(problem, eta, momentum, nesterov, 1500)
    assert run.checkpoints.states == pytest.approx(true[[0, 7, 1200, 1500]], rel=1e-10, abs=1e-12)
    assert run.weights_at(100 * eta)[0].ravel() == pytest.approx(true[100][:18], rel=1e-10)


@pytest.mark.parametrize(("momentum", "nesterov"), KINDS)
def test_the_steps_are_torch_s(momentum, nesterov):
    torch = pytest.importorskip("torch")
    problem, eta = problem_of((3, 6, 5, 2)), 0.02
    weights = [torch.tensor(W.copy(), dtype=torch.float64, requires_grad=True) for W in problem.network.weights]
    target = torch.tensor(problem.loss.minimiser.copy())
    optimizer = torch.optim.SGD(weights, lr=eta, momentum=momentum, nesterov=nesterov)
    for _ in range(200):
        optimizer.zero_grad()
        (0.5 * ((weights[0] @ weights[1] @ weights[2] - target) ** 2).sum()).backward()
        optimizer.step()
    run = fs.simulate(problem, fs.GradientDescent(eta, momentum=momentum, nesterov=nesterov), t1=200 * eta)
    for W, A in zip(run.weights_at(run.time[-1]), weights, strict=True):
        assert pytest.approx(A.detach().numpy(), rel=1e-12, abs=1e-12) == W


@pytest.mark.parametrize(("momentum", "nesterov"), KINDS)
def test_compressed_it_takes_the_same_steps(momentum, nesterov):
    problem, eta = problem_of((2, 60, 70, 1)), 0.002
    method = fs.GradientDescent(eta, momentum=momentum, nesterov=nesterov)
    full, small = (
        fs.simulate(problem, method, t1=600 * eta, save_points=7, reduce=reduce) for reduce in ("never", "always")
    )
    assert small.reduction.network is not None
    for t in full.time[1:]:
        apart = np.sqrt(sum(np.sum((W - V) ** 2) for W, V in zip(full.weights_at(t), small.weights_at(t), strict=True)))
        assert apart <= 1.5 * np.interp(t, small.time, small.error_estimate) + 1e-12
        assert apart <= 1e-6 * full.weights_change


@pytest.mark.parametrize("momentum", [0.3, 0.5])
def test_the_estimate_is_the_error_where_the_steps_are_small(momentum):
    problem, eta = problem_of((2, 60, 70, 1)), 0.0002
    method = fs.GradientDescent(eta, momentum=momentum)
    full, small = (fs.simulate(problem, method, t1=0.3, save_points=3, reduce=reduce) for reduce in ("never", "always"))
    pairs = zip(full.weights_at(0.3), small.weights_at(0.3), strict=True)
    apart = np.sqrt(sum(np.sum((W - V) ** 2) for W, V in pairs))
    assert apart == pytest.approx(small.error_estimate[-1], rel=0.05)


def test_refinement_on_the_way_keeps_the_momentum():
    """Started with too few Krylov steps, the model is refined while it moves."""
    network = fs.sample_compressed("fan_in", (2, 200, 200, 200, 1), seed=0, steps=4)
    problem = fs.Problem(fs.SquaredLoss(np.full((2, 1), 2.0)), network)
    method = fs.GradientDescent(0.005, momentum=0.8)
    run = fs.simulate(problem, method, t1=0.3, save_points=[0.05, 0.1, 0.2])
    finest = fs.simulate(fs.Problem(problem.loss, network.with_steps(14)), method, t1=0.3, save_points=run.time)
    assert run.reduction.network.steps > 4
    assert run.products == pytest.approx(finest.products, rel=1e-7)
    begun = fs.simulate(problem, method, t1=0.1, save_points=2, reduce="always")
    later = fs.resume(begun, t1=0.3, save_points=2)
    assert later.products[-1] == pytest.approx(run.products[-1], rel=1e-7)


@pytest.mark.parametrize("reduce", ["never", "always"])
def test_resumed_saved_and_loaded_it_goes_on_with_its_momentum(reduce, tmp_path):
    problem, method = problem_of((2, 40, 30, 1)), fs.GradientDescent(0.005, momentum=0.9)
    whole = fs.simulate(problem, method, t1=2.0, save_points=5, reduce=reduce)
    half = fs.simulate(problem, method, t1=1.0, save_points=3, reduce=reduce)
    half.save(tmp_path / "half.nc")
    loaded = fs.load(tmp_path / "half.nc")
    assert (loaded.checkpoints.beside == half.checkpoints.beside).all()
    for start in (half, loaded):
        both = fs.resume(start, t1=2.0, save_points=3)
        assert both.loss[-1] == pytest.approx(whole.loss[-1], rel=1e-8)
        assert both.products[-1] == pytest.approx(whole.products[-1], rel=1e-8)
    t = 0.8
    assert loaded.product_at(t) == pytest.approx(whole.product_at(t), rel=1e-8)


def test_diagnose_judges_its_recurrence_and_finds_a_forged_one():
    problem, method = problem_of((3, 6, 5, 2)), fs.GradientDescent(0.01, momentum=0.9, nesterov=True)
    run = fs.simulate(problem, method, t1=2.0, save_points=11)
    found = fs.diagnose(run)
    assert not found.broken
    assert found["recurrence"].holds
    for name in ("states", "beside"):
        forged = getattr(run.checkpoints, name).copy()
        forged[5] += 1e-6
        spoiled = replace(run, checkpoints=replace(run.checkpoints, **{name: forged}))
        assert "recurrence" in [law.name for law in fs.diagnose(spoiled).broken]


def test_no_theorem_speaks_of_it():
    problem, method = problem_of((2, 40, 30, 1)), fs.GradientDescent(0.005, momentum=0.9)
    assert fs.certify(problem, method=method).best is None
    run = fs.simulate(problem, method, t1=1.0)
    assert run.certify_tail().rate is None
    with pytest.raises(InputError, match="momentum"):
        fs.a_posteriori(run)


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"momentum": -0.1}, {"nesterov": True}, {"nesterov": "yes"}])
def test_bad_settings(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        fs.GradientDescent(0.1, **wrong)
    if wrong.get("nesterov") != "yes":
        with pytest.raises(InputError):
            fs.method_named("dop853", **{"momentum": 0.5, **wrong})


def test_small_steps_follow_the_flow_in_a_longer_time():
    """k steps with momentum mu are a time k eta / (1 - mu) of the flow, to first order in eta."""
    problem, mu = problem_of((3, 6, 5, 2)), 0.5
    flow = fs.simulate(problem, fs.Scipy("DOP853", 1e-11, 1e-13), t1=1.0, save_points=2)
    apart = []
    for eta in (1e-3, 5e-4):
        run = fs.simulate(problem, fs.GradientDescent(eta, momentum=mu), t1=1 - mu, save_points=2)
        apart.append(np.linalg.norm(run.checkpoints.states[-1] - flow.checkpoints.states[-1]))
    assert apart[0] / apart[1] == pytest.approx(2, rel=0.05)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), *KINDS])
def test_the_edge_is_where_steps_on_a_quadratic_begin_to_grow(momentum, nesterov):
    """L = (2 w_2 - 1)^2 / 2 with w_1 = 2 held nearly still by its size: near the minimum, of curvature w_1^2."""
    curvature = 4.0
    problem = fs.Problem(fs.SquaredLoss([[1e-9]]), fs.LinearNetwork(([[2.0]], [[0.0]])))
    edge = fs.GradientDescent(1.0, momentum=momentum, nesterov=nesterov).edge
    for share, grows in ((0.98, False), (1.02, True)):
        method = fs.GradientDescent(share * edge / curvature, momentum=momentum, nesterov=nesterov)
        assert method.edge == pytest.approx(curvature / share)
        run = fs.simulate(problem, method, t1=400 * method.step_size)
        assert (run.excess[-1] > run.excess[0]) == grows


def test_the_summary_tells_no_energy_of_what_is_no_flow():
    problem = problem_of((3, 6, 5, 2))
    assert "energy" not in fs.simulate(problem, fs.GradientDescent(0.01, momentum=0.9), t1=1.0).summary()
    assert "energy" in fs.simulate(problem, fs.GradientDescent(0.01), t1=1.0).summary()


def test_members_of_an_ensemble_have_it_too():
    method, loss = fs.GradientDescent(0.01, momentum=0.9), fs.SquaredLoss(np.ones((2, 1)))
    many = fs.ensemble(lambda seed: fs.Problem(loss, fs.fan_in((2, 4, 1), seed=seed)), 3, method=method, t1=1.0)
    for member, seed in enumerate(np.random.SeedSequence(0).spawn(3)):
        one = fs.simulate(fs.Problem(loss, fs.fan_in((2, 4, 1), seed=seed)), method, t1=1.0)
        assert many.scalars["final_loss"][member] == pytest.approx(float(one.loss[-1]))
