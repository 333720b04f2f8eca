"""Weights that were trained elsewhere, as runs."""

import json

import numpy as np
import pytest

import flowsim as fs
from flowsim.cli import main
from flowsim.errors import ConversionNotice, InputError


def trained(problem, eta, count, every=1):
    """Gradient descent by hand: the records and their step numbers."""
    W, records, steps = list(problem.network.weights), [list(problem.network.weights)], [0]
    for k in range(1, count + 1):
        _, G = problem.gradients(W)
        W = [w - eta * g for w, g in zip(W, G, strict=True)]
        if k % every == 0:
            records.append(list(W))
            steps.append(k)
    return records, steps


RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 3))
Y = X @ RNG.standard_normal((3, 2))


@pytest.fixture
def problem():
    return fs.Problem(fs.LeastSquares(X, Y), fs.fan_in((3, 8, 6, 2), seed=0))


def test_it_is_the_run_that_descent_is(problem):
    eta = 1e-3
    records, steps = trained(problem, eta, 200, every=20)
    seen = fs.observe(records, problem.loss, steps=steps, step_size=eta)
    run = fs.simulate(problem, fs.GradientDescent(eta), t1=200 * eta, save_points=11, reduce="never")
    for name in ("time", "excess", "gradient_norm", "imbalance_change"):
        assert getattr(seen, name) == pytest.approx(getattr(run, name), rel=1e-9, abs=1e-12), name
    assert seen.weights_change == pytest.approx(run.weights_change)
    assert seen.rate_seen == pytest.approx(run.rate_seen)
    assert [W.tolist() for W in seen.weights_at(seen.time[3])] == [W.tolist() for W in records[3]]


def test_its_tail_and_its_certificates_are_those_of_the_flow(problem):
    records, steps = trained(problem, 1e-3, 3000, every=300)
    seen = fs.observe(records, problem.loss, steps=steps, step_size=1e-3)
    assert seen.certificates.best.rate == fs.certify(problem).best.rate
    tail = seen.certify_tail()
    assert tail.rate > 0
    assert tail.lambda_min_T == pytest.approx(fs.LinearNetwork(tuple(records[-1])).lambda_min_T)
    assert "for the flow from its start" in seen.summary()
    assert "energy" not in seen.summary()


def test_its_laws_are_told_and_not_judged(problem):
    records, steps = trained(problem, 5e-3, 100)
    diagnosis = fs.diagnose(fs.observe(records, problem.loss, steps=steps, step_size=5e-3))
    assert [law.name for law in diagnosis] == ["imbalance D_1", "imbalance D_2", "energy", "monotone loss"]
    assert all(law.holds is None and law.residual is not None for law in diagnosis)
    assert diagnosis["imbalance D_1"].residual > 1e-6
    assert diagnosis.exit_code == 0


def test_saved_loaded_reported_and_not_gone_on_with(problem, tmp_path):
    records, steps = trained(problem, 1e-3, 50, every=5)
    seen = fs.observe(records, problem.loss, steps=steps, step_size=1e-3)
    seen.save(tmp_path / "run.nc")
    again = fs.load(tmp_path / "run.nc")
    assert (again.excess == seen.excess).all()
    assert str(again.method) == str(seen.method)
    fs.report(again, tmp_path / "run.html")
    fs.plot(again, certificate=again.certificates)
    with pytest.raises(InputError, match="recorded elsewhere"):
        fs.resume(again, t1=1.0)
    with pytest.raises(InputError, match="recorded times"):
        again.weights_at(0.5 * again.time[1])
    with pytest.raises(InputError, match="recorded elsewhere"):
        fs.a_posteriori(again)
    with pytest.raises(InputError, match="Observed"):
        fs.simulate(problem, seen.method, t1=1.0)


@pytest.mark.parametrize("form", ["npz", "pt", "safetensors"])
def test_files_in_the_order_of_their_numbers(form, problem, tmp_path):
    records, steps = trained(problem, 1e-3, 100, every=10)
    for k, record in zip(steps, records, strict=True):
        write(tmp_path / f"step{k}.{form}", record, form)
    if form == "npz":
        seen = fs.observe(tmp_path, problem.loss, step_size=1e-3)
    else:
        with pytest.warns(ConversionNotice) as said:
            seen = fs.observe(tmp_path, problem.loss, step_size=1e-3)
        assert len(said) == 1
    assert seen.time == pytest.approx(1e-3 * np.array(steps))
    assert seen.checkpoints.states[-1] == pytest.approx(np.concatenate([W.ravel() for W in records[-1]]))
    assert len(seen.provenance["configuration"]["files"]) == 11


def write(path, record, form):
    if form == "npz":
        fs.save_weights(path, fs.LinearNetwork(tuple(record)))
        return
    torch = pytest.importorskip("torch")
    state = {f"{k}.weight": torch.tensor(W.T.copy()) for k, W in enumerate(record)}
    if form == "pt":
        torch.save(state, path)
    else:
        from safetensors.torch import save_file

        save_file(state, path)


def test_the_scale_of_the_loss_is_in_the_time(problem):
    """The mean of squares over N samples and m outputs is 2 / (N m) times the loss."""
    records, steps = trained(problem, 1e-3, 20)
    mean = fs.observe(records, problem.loss, steps=steps, step_size=1e-3 * 20, loss_scale=2 / (20 * 2))
    assert mean.time == pytest.approx(1e-3 * np.array(steps))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r, s: (r[:1], s[:1]), "two records"),
        (lambda r, s: (r, s[::-1]), "record 1: its time"),
        (lambda r, s: (r, [0, 1, 1, *s[3:]]), "record 2"),
        (lambda r, s: (r, s[:-1]), "for each of the"),
        (lambda r, s: ([*r[:-1], [np.ones((2, 2)), np.ones((2, 2))]], s), "dims"),
        (lambda r, s: ([*r[:-1], [W * np.nan for W in r[-1]]], s), "record 5"),
        (lambda r, s: ([*r[:-1], [W * 1e200 for W in r[-1]]], s), "not finite"),
        (lambda r, s: ([*r[:-1], "nothing.npz"], s), "nothing.npz"),
        (None, "sequence"),
    ],
)
def test_what_is_no_training_is_refused(change, words, problem):
    records, steps = change(*trained(problem, 1e-3, 5)) if words != "sequence" else (7, [0, 1])
    with pytest.raises(InputError, match=words):
        fs.observe(records, problem.loss, steps=steps, step_size=1e-3)


def test_times_or_a_step_size():
    records = [[np.eye(2), np.eye(2)], [np.eye(2), 0.9 * np.eye(2)]]
    loss = fs.SquaredLoss(np.eye(2))
    assert fs.observe(records, loss, times=[3.0, 4.5]).time.tolist() == [0.0, 1.5]
    for wrong in ({}, {"times": [0, 1], "step_size": 0.1}, {"step_size": -1.0, "steps": [0, 1]}):
        with pytest.raises(InputError):
            fs.observe(records, loss, **wrong)


def test_a_recorder_keeps_every_so_many_steps_and_the_last(problem):
    W, recorder = list(problem.network.weights), fs.Recorder(every=4)
    with pytest.raises(InputError, match="start"):
        recorder.step(W, 0.1)
    recorder.start(W)
    for _ in range(10):
        _, G = problem.gradients(W)
        W = [w - 1e-3 * g for w, g in zip(W, G, strict=True)]
        recorder.step(W, step_size=1e-3)
    run = recorder.observe(problem.loss)
    assert run.time == pytest.approx([0, 0.004, 0.008, 0.01])
    assert run.checkpoints.states[-1] == pytest.approx(np.concatenate([w.ravel() for w in W]))
    with pytest.raises(InputError, match="started already"):
        recorder.start(W)


def test_the_command(problem, tmp_path, capsys):
    records, steps = trained(problem, 1e-3, 100, every=10)
    for k, record in zip(steps, records, strict=True):
        write(tmp_path / f"step{k}.npz", record, "npz")
    np.savez(tmp_path / "d.npz", X=X, Y=Y)
    files = [str(tmp_path / f"step{k}.npz") for k in steps]
    asked = ["observe", *files, "--data", str(tmp_path / "d.npz"), "--step-size", "1e-3", "--beside"]
    assert main([*asked, "--out", str(tmp_path / "run.nc"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["time"]) == 11
    assert told["flow"]["distance"][-1] > 0
    assert main(asked) == 0
    assert "the flow with the same start" in capsys.readouterr().out
    assert main(["diagnose", str(tmp_path / "run.nc")]) == 0
    assert main(["certify", str(tmp_path / "run.nc")]) == 0
    assert main(["observe", *files[::-1], "--data", str(tmp_path / "d.npz"), "--step-size", "1e-3"]) == 2
    assert "record 1" in capsys.readouterr().err
    assert main(["observe", *files, "--step-size", "1e-3"]) == 2
