"""Gradient descent with schedules, batches, label noise and weight decay: torch's steps, both backends, gone on with,
saved, judged, refused."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowsim as fs
from flowsim import cli
from flowsim.errors import InputError
from flowsim.losses.samples import Batches
from flowsim.methods.schedules import Clock
from flowsim.network import backpropagate, flatten

ROWS = 23


def data(seed=0, n=3, m=2):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((ROWS, n)), rng.standard_normal((ROWS, m))


def problem_of(loss="least squares", weight_decay=0.0, dims=(3, 6, 5, 2)):
    X, Y = data(n=dims[0], m=dims[-1])
    made = {
        "least squares": lambda: fs.LeastSquares(X / ROWS**0.5, Y / ROWS**0.5),
        "squared": lambda: fs.SquaredLoss(Y[: dims[0]]),
        "masked": lambda: fs.MaskedSquaredLoss(Y[: dims[0]], np.array([[1, 0], [2, 1], [0, 1.0]])),
        "exponential": lambda: fs.ExponentialLoss(X, np.sign(Y)),
        "logistic": lambda: fs.LogisticLoss(X, np.sign(Y)),
    }[loss]()
    return fs.Problem(made, fs.fan_in(dims, seed=1), weight_decay=weight_decay)


SAMPLED = [("least squares", 5), ("squared", 4), ("masked", 2), ("exponential", 5), ("logistic", 6)]
SETTINGS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"schedule": fs.Cosine(400, warm_up=10)},
    {"schedule": fs.StepDecay(60, 0.5), "momentum": 0.5},
    {"batch_size": 5, "seed": 3},
    {"batch_size": 5, "momentum": 0.9, "nesterov": True, "schedule": fs.WarmUp(50)},
    {"label_noise": 0.3, "seed": 4},
    {"label_noise": 0.3, "batch_size": 4, "momentum": 0.3, "schedule": fs.Cosine(300, least=0.1)},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_the_steps_are_torch_s(settings, weight_decay):
    """200 steps of torch.optim.SGD on the loss of each batch, written out in torch, its rate set by its schedulers."""
    torch = pytest.importorskip("torch")
    problem, eta = problem_of(weight_decay=weight_decay), 0.02
    X, Y = (torch.tensor(part.copy()) for part in problem.loss.rows.take(slice(None)))
    method = fs.GradientDescent(eta, **settings)
    weights = [torch.tensor(W.copy(), requires_grad=True) for W in problem.network.weights]
    momentum, nesterov = settings.get("momentum", 0.0), settings.get("nesterov", False)
    options = {"lr": eta, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
    optimizer, schedule = torch.optim.SGD(weights, **options), settings.get("schedule")
    rates = torch.optim.lr_scheduler
    scheduler = {
        fs.StepDecay: lambda: rates.StepLR(optimizer, 60, 0.5),
        fs.WarmUp: lambda: rates.LambdaLR(optimizer, lambda k: min((k + 1) / 50, 1.0)),
        fs.Cosine: lambda: rates.LambdaLR(optimizer, lambda k: float(schedule.factors(np.array(k)))),
    }.get(type(schedule), lambda: None)()
    order, noise = [], settings.get("label_noise", 0.0)
    for k in range(200):
        size, chosen, labels = settings.get("batch_size", ROWS), np.arange(ROWS), Y
        if size < ROWS:
            a_pass = -(-ROWS // size)
            if k % a_pass == 0:
                order = np.random.default_rng([settings.get("seed", 0), 0, k // a_pass]).permutation(ROWS)
            chosen = order[(k % a_pass) * size : (k % a_pass + 1) * size]
        labels = Y[chosen]
        if noise:
            rng = np.random.default_rng([settings.get("seed", 0), 1, k])
            labels = labels + noise * torch.tensor(rng.standard_normal((len(chosen), 2)))
        optimizer.zero_grad()
        E = X[chosen] @ weights[0] @ weights[1] @ weights[2] - labels
        (0.5 * (E**2).sum() * (ROWS / len(chosen))).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
    t1 = float(method.clock.times(200, 0)[0])
    run = fs.simulate(problem, method, t1=t1)
    assert run.stats["steps"] == 200
    found = np.concatenate([W.ravel() for W in run.weights_at(t1)])
    assert found == pytest.approx(np.concatenate([W.detach().numpy().ravel() for W in weights]), rel=1e-11, abs=1e-12)


def test_the_cosine_is_torch_s():
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=0.1)
    rates = []
    for _ in range(50):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert fs.Cosine(50, least=0.1).factors(np.arange(50)) == pytest.approx(rates, rel=1e-12)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_both_backends_take_the_same_steps(settings):
    problem = problem_of(weight_decay=0.1)
    t1 = float(fs.GradientDescent(0.02, **settings).clock.times(150, 0)[0])
    runs = [fs.simulate(problem, fs.GradientDescent(0.02, b, **settings), t1=t1) for b in ("numpy", "jax")]
    assert runs[0].stats["steps"] == runs[1].stats["steps"] == 150
    assert runs[0].checkpoints.states == pytest.approx(runs[1].checkpoints.states, rel=1e-10, abs=1e-12)
    assert (runs[0].time == runs[1].time).all()
    assert runs[0].gradient_norm == pytest.approx(runs[1].gradient_norm, rel=1e-9)


@pytest.mark.parametrize(("loss", "size"), SAMPLED)
def test_the_gradients_of_a_pass_have_the_mean_of_all(loss, size):
    """Of batches of one size; and those of a single step by both backends."""
    problem = problem_of(loss)
    batches = Batches(problem.loss, size, 0.0, seed=5)
    W = problem.network.product + 0.1
    drawn = [batches.at(k) for k in range(batches.a_pass)]
    chosen = np.concatenate([batches.chosen(k) for k in range(batches.a_pass)])
    assert sorted(chosen) == list(range(batches.samples.count))
    weights = [len(batches.chosen(k)) for k in range(batches.a_pass)]
    mean = np.average([one.loss(batches.kind).gradient(W) for one in drawn], axis=0, weights=weights)
    assert mean == pytest.approx(problem.loss.gradient(W), rel=1e-12)
    method = fs.GradientDescent(0.001, "numpy", batch_size=size, seed=5)
    runs = [
        fs.simulate(problem, m, t1=0.007) for m in (method, fs.GradientDescent(0.001, "jax", batch_size=size, seed=5))
    ]
    assert runs[0].products == pytest.approx(runs[1].products, rel=1e-11)


@pytest.mark.parametrize("loss", ["least squares", "squared", "masked"])
def test_label_noise_has_the_mean_and_the_variance_of_the_labels(loss):
    problem = problem_of(loss)
    batches, W = Batches(problem.loss, None, 0.5, seed=1), problem.network.product + 0.1
    found = np.array([batches.at(k).loss(batches.kind).gradient(W) for k in range(4000)])
    true = problem.loss.gradient(W)
    X = problem.loss.rows.X if loss == "least squares" else np.eye(3)
    mask = problem.loss.mask if loss == "masked" else np.ones((3, 2))
    variance = 0.25 * np.diag(X.T @ X)[:, None] * mask**2
    assert np.abs(found.mean(0) - true).max() < 5 * (variance.max() / 4000) ** 0.5
    assert found.var(0) == pytest.approx(variance, rel=0.15, abs=1e-12)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("backend", ["numpy", "jax"])
def test_gone_on_with_it_is_uninterrupted(settings, backend, tmp_path):
    problem, method = problem_of(weight_decay=0.1), fs.GradientDescent(0.01, backend, **settings)
    half, end = (float(method.clock.times(k, 0)[0]) for k in (37, 90))
    whole = fs.simulate(problem, method, t1=end, save_points=5)
    first = fs.simulate(problem, method, t1=half, save_points=5)
    first.save(tmp_path / "run.nc")
    back = fs.load(tmp_path / "run.nc")
    assert back.method == method
    for run in (first, back):
        longer = fs.resume(run, t1=end)
        assert longer.stats["steps"] == 90
        assert longer.checkpoints.states[-1] == pytest.approx(whole.checkpoints.states[-1], rel=1e-9, abs=1e-13)
        assert longer.step_time == pytest.approx(whole.step_time, rel=1e-15)
    assert first.weights_at(half / 3)[0] == pytest.approx(whole.weights_at(half / 3)[0], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("weight_decay", [0.0, 0.2])
def test_each_realised_step_obeys_its_law_and_a_nudge_is_found(settings, weight_decay):
    problem = problem_of(weight_decay=weight_decay)
    run = fs.simulate(problem, fs.GradientDescent(0.02, **settings), t1=0.6, save_points=16)
    found = fs.diagnose(run)
    assert found.exit_code == 0, found
    names = [law.name for law in found]
    assert ("drift law D_1" in names) == ("momentum" not in settings)
    states = run.checkpoints.states.copy()
    states[7, 3] += 1e-7
    forged = replace(run, checkpoints=replace(run.checkpoints, states=states))
    broken = {law.name for law in fs.diagnose(forged).broken}
    assert "recurrence" in broken
    assert "momentum" in settings or "drift law D_1" in broken


@given(
    step=st.floats(1e-6, 1.0),
    kind=st.sampled_from([None, fs.Cosine(500, 20, 0.1), fs.StepDecay(100, 0.5), fs.WarmUp(30), lambda k: 1 / (1 + k)]),
    k=st.integers(1, 400),
)
def test_the_clock_finds_its_own_steps(step, kind, k):
    clock = Clock(step, kind)
    t = float(clock.times(k, 0)[0])
    assert clock.nearest(t) == k
    assert clock.count(0.0, t) == k
    assert clock.times(0, k)[1:] == pytest.approx(np.cumsum(clock.sizes(0, k)), rel=1e-9)
    assert clock.nearest(np.array([0.0, t])).tolist() == [0, k]
    between = t + 0.3 * clock.sizes(k, 1)[0]
    assert clock.nearest(between) == k


def test_a_schedule_that_ends_says_when():
    method = fs.GradientDescent(0.1, schedule=fs.Cosine(20))
    total = 0.1 * fs.Cosine(20).factors(np.arange(20)).sum()
    run = fs.simulate(problem_of(), method, t1=total)
    assert (run.status, run.stats["steps"]) == ("completed", 20)
    with pytest.raises(InputError, match=f"t1.*at most {total:g}"):
        fs.simulate(problem_of(), method, t1=total * 1.1)
    for settings in ({}, {"momentum": 0.5}):  # what decay leaves is known to the very end, and no step beyond
        decaying = fs.simulate(problem_of(weight_decay=0.1), replace(method, **settings), t1=total)
        assert (decaying.status, decaying.stats["steps"]) == ("completed", 20)
        assert np.isfinite(decaying.imbalance_change).all()
        assert fs.diagnose(decaying).exit_code == 0


def test_decay_compressed_is_full():
    problem = fs.Problem(fs.SquaredLoss([[2.0], [1.0]]), fs.fan_out((2, 60, 70, 1), seed=0), weight_decay=2.0)
    for settings in ({}, {"momentum": 0.5}, {"momentum": 0.5, "nesterov": True}, {"schedule": fs.StepDecay(100, 0.5)}):
        method = fs.GradientDescent(0.002, **settings)
        t1 = float(method.clock.times(300, 0)[0])
        full, small = (fs.simulate(problem, method, t1=t1, save_points=4, reduce=r) for r in ("never", "always"))
        assert small.reduction.network is not None
        for t in full.time[1:]:
            gaps = [np.linalg.norm(V - W) for V, W in zip(full.weights_at(t), small.weights_at(t), strict=True)]
            assert np.linalg.norm(gaps) < 1e-6 * full.weights_change
        assert small.imbalance_change == pytest.approx(full.imbalance_change, abs=1e-6)


def test_batches_are_compressed_where_that_is_exact_alone():
    wide = fs.Problem(problem_of(dims=(3, 400, 2)).loss, fs.fan_in((3, 400, 2), seed=1))
    method = fs.GradientDescent(0.01, batch_size=5)
    full, small = (fs.simulate(wide, method, t1=1.0, reduce=reduce) for reduce in ("never", "auto"))
    assert small.reduction.network is not None
    assert small.products == pytest.approx(full.products, rel=1e-9, abs=1e-12)
    deep = fs.Problem(wide.loss, fs.fan_in((3, 200, 200, 2), seed=1))
    assert "bases where these are complete" in fs.simulate(deep, method, t1=0.05).reduction.reason
    with pytest.raises(InputError, match="never"):
        fs.simulate(deep, method, t1=0.05, reduce="always")


class Own:
    shape, minimum = (3, 2), 0.0

    def value(self, W):
        return 0.5 * np.sum(W**2)

    def gradient(self, W):
        return W


@dataclass(frozen=True)
class Harmonic(fs.Schedule):
    delay: float

    def factors(self, k):
        return self.delay / (self.delay + k)


REFUSED = [
    ({"schedule": "cosines:9"}, "schedule.*cosine"),
    ({"schedule": "cosine"}, "cosine:steps"),
    ({"schedule": "cosine:0"}, "steps"),
    ({"schedule": "cosine:9:9"}, "warm_up"),
    ({"schedule": 3.0}, "schedule.*float"),
    ({"batch_size": 0}, "batch_size"),
    ({"batch_size": 2.5}, "batch_size"),
    ({"label_noise": -1.0}, "label_noise"),
    ({"label_noise": np.nan}, "label_noise"),
    ({"seed": -1}, "seed"),
    ({"batch_size": ROWS + 1}, "batch_size.*at most 23"),
    ({"schedule": lambda k: np.nan}, "finite factor"),
    ({"schedule": lambda k: -1.0}, "finite factor"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_cannot_be_is_refused(settings, words):
    with pytest.raises(InputError, match=words):
        fs.simulate(problem_of(), fs.GradientDescent(0.01, **settings), t1=0.1)


def test_losses_without_samples_or_labels_refuse():
    with pytest.raises(InputError, match="samples are not known"):
        fs.simulate(fs.Problem(Own(), fs.fan_in((3, 4, 2), seed=0)), fs.GradientDescent(0.1, batch_size=2), t1=1.0)
    with pytest.raises(InputError, match="label_noise"):
        fs.simulate(problem_of("logistic"), fs.GradientDescent(0.1, label_noise=0.1), t1=1.0)
    X, Y = data()
    loss = fs.LeastSquares(X, Y)
    X[0, 0] += 1.0
    with pytest.raises(InputError, match="changed"):
        fs.simulate(fs.Problem(loss, fs.fan_in((3, 4, 2), seed=0)), fs.GradientDescent(1e-3, batch_size=2), t1=0.1)


def test_a_function_as_schedule_runs_and_is_not_saved(tmp_path):
    by_function = fs.GradientDescent(0.1, schedule=lambda k: 5.0 / (5.0 + k))
    by_class = fs.GradientDescent(0.1, schedule=Harmonic(5.0))
    runs = [fs.simulate(problem_of(), method, t1=0.5) for method in (by_function, by_class)]
    assert (runs[0].products == runs[1].products).all()
    with pytest.raises(InputError, match=r"schedule.*function.*Schedule"):
        runs[0].save(tmp_path / "run.nc")
    runs[1].save(tmp_path / "run.nc")
    assert fs.load(tmp_path / "run.nc").method == by_class


def test_no_certificate_is_on_them():
    for settings, word in (({"batch_size": 5}, "batches"), ({"schedule": fs.WarmUp(5)}, "a schedule")):
        run = fs.simulate(problem_of(), fs.GradientDescent(0.01, **settings), t1=0.1)
        assert run.certificates.best is None
        assert any(word in (entry.reason or "") for entry in run.certificates)
        with pytest.raises(InputError, match="plain"):
            fs.a_posteriori(run)


def test_the_edge_of_stability_with_decay_and_beyond_it():
    """Steps past 2 / lambda_max: the loss rises, and weights come to rest, if at all, where the edge lets them."""
    problem = fs.Problem(fs.SquaredLoss([[1.0]]), fs.LinearNetwork((np.array([[3.0]]), np.array([[0.5]]))))
    eta = 0.25  # 2 / eta = 8 < 9.25, the sharpness at the start
    run = fs.simulate(problem, fs.GradientDescent(eta), t1=100.0)
    assert run.sharpness()[0] > run.method.edge > run.sharpness()[-1]
    assert run.steps.excess.max() > run.excess[0]
    assert run.excess[-1] < 1e-12


def test_the_command(tmp_path, capsys):
    problem = problem_of()
    fs.save_weights(tmp_path / "w.npz", problem.network)
    X, Y = problem.loss.rows.X, problem.loss.rows.Y
    np.savez(tmp_path / "d.npz", X=X, Y=Y)
    words = ["simulate", f"{tmp_path}/w.npz", "--data", f"{tmp_path}/d.npz", "--method", "gd", "--step-size", "0.01"]
    more = ["--batch-size", "5", "--label-noise", "0.1", "--seed", "7", "--schedule", "step-decay:20:0.5"]
    more += ["--weight-decay", "0.1", "--t1", "0.3", "--json", "--out", f"{tmp_path}/r.nc"]
    assert cli.main([*words, *more]) == 0
    told = json.loads(capsys.readouterr().out)
    method = fs.GradientDescent(0.01, schedule=fs.StepDecay(20, 0.5), batch_size=5, label_noise=0.1, seed=7)
    again = fs.Problem(fs.LeastSquares(X, Y), problem.network, weight_decay=0.1)
    run = fs.simulate(again, method, t1=0.3)
    assert told["loss"][-1] == pytest.approx(run.loss[-1], rel=1e-12)
    assert cli.main(["diagnose", f"{tmp_path}/r.nc"]) == 0
    assert cli.main(["simulate", "--resume", f"{tmp_path}/r.nc", "--t1", "0.35", "--batch-size", "3"]) == 2
    assert cli.main(["simulate", f"{tmp_path}/w.npz", "--data", f"{tmp_path}/d.npz", "--t1", "1", "--seed", "3"]) == 2
    assert "only gradient descent" in capsys.readouterr().err


def test_the_gradients_of_the_loss_alone_leave_no_cross_terms():
    """W_l^T G_l = G_{l+1} W_{l+1}^T for any gradient of f: why each realised step has descent's law."""
    problem = problem_of()
    batch = Batches(problem.loss, 5, 0.5, seed=2).at(3)
    W = list(problem.network.weights)
    _, G = backpropagate(batch.loss(fs.LeastSquares), W)
    for layer in (0, 1):
        assert W[layer].T @ G[layer] == pytest.approx(G[layer + 1] @ W[layer + 1].T, abs=1e-12)
    assert np.linalg.norm(flatten(G)) > 0.1


def test_members_of_an_ensemble_have_seeds_of_their_own():
    """And dynamics, decay and schedules go through it, one member after the other."""
    problem = problem_of(weight_decay=0.1)
    method = fs.GradientDescent(0.02, label_noise=0.3, batch_size=5, seed=3)
    many = fs.ensemble(lambda seed: problem, 3, t1=0.4, method=method)
    for k in range(3):
        own = fs.GradientDescent(0.02, label_noise=0.3, batch_size=5, seed=3 + k)
        assert many.excess[k, -1] == pytest.approx(fs.simulate(problem, own, t1=0.4).excess[-1], rel=1e-12)
    moving = fs.ensemble(lambda seed: problem, 2, t1=0.4, method="dop853", dynamics=fs.HeavyBall(0.5))
    true = fs.simulate(problem, t1=0.4, dynamics=fs.HeavyBall(0.5)).excess[-1]
    assert moving.excess[:, -1] == pytest.approx([true, true], rel=1e-7)
    assert np.isnan(moving.scalars["drift"]).all()
