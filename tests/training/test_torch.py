"""The recorder of PyTorch: torch.optim.SGD with momentum and all, as a run."""

from itertools import pairwise

import numpy as np
import pytest

import flowsim as fs
from flowsim.errors import InputError

torch = pytest.importorskip("torch")


def stack(*widths, bias=False):
    layers = [torch.nn.Linear(a, b, bias=bias) for a, b in pairwise(widths)]
    return torch.nn.Sequential(*layers).double()


def test_a_trained_model_is_its_run():
    torch.manual_seed(0)
    model, X = stack(3, 7, 2), torch.randn(10, 3, dtype=torch.float64)
    Y = torch.randn(10, 2, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    recorder = fs.torch.Recorder(model, optimizer, every=5)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(X), Y)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    recorder.close()
    optimizer.step()
    scale = 2 / Y.numel()
    run = recorder.observe(fs.LeastSquares(X.numpy(), Y.numpy()), loss_scale=scale)
    assert run.time == pytest.approx(0.05 * scale * np.arange(0, 21, 5))
    assert run.loss[:4] * scale == pytest.approx(losses[::5], rel=1e-12)
    descent = fs.simulate(run.problem, fs.GradientDescent(0.05 * scale), t1=run.time[-1], save_points=5)
    assert run.loss == pytest.approx(descent.loss, rel=1e-10)
    assert run.imbalance_change[1:] == pytest.approx(descent.imbalance_change[1:], rel=1e-6)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: stack(3, 4, 2, bias=True), "biases"),
        (lambda: torch.nn.Sequential(*stack(3, 4), torch.nn.ReLU(), *stack(4, 2)), "ReLU"),
        (lambda: torch.nn.Sequential(torch.nn.Dropout(0.5), *stack(3, 2)), "Dropout"),
        (lambda: torch.nn.Sequential(torch.nn.Identity()), "Linear layers"),
        (lambda: torch.nn.Conv1d(1, 1, 1), "Conv1d"),
        (lambda: 3, "Module"),
        (lambda: torch.nn.Sequential(*[torch.nn.Linear(3, 3, bias=False)] * 2), "twice"),
    ],
)
def test_what_is_not_linear_is_refused(model, words):
    made = model()
    weights = list(made.parameters()) if hasattr(made, "parameters") else []
    optimizer = torch.optim.SGD(weights or [torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(InputError, match=words):
        fs.torch.Recorder(made, optimizer)


def test_layers_with_rates_of_their_own_are_refused():
    model = stack(3, 4, 2)
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[1].parameters(), "lr": 0.2}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    fs.torch.Recorder(model, optimizer)
    model(torch.ones(1, 3, dtype=torch.float64)).sum().backward()
    with pytest.raises(InputError, match="one learning rate"):
        optimizer.step()


def test_a_layer_at_rest_is_refused():
    model = stack(3, 4, 2)
    with pytest.raises(InputError, match="every layer, but not layer 1"):
        fs.torch.Recorder(model, torch.optim.SGD(model[1].parameters(), lr=0.1))
