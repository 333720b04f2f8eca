"""For PyTorch: record a stack of Linear layers while it is trained."""

from __future__ import annotations

from typing import Any

import numpy as np

from flowsim.errors import InputError
from flowsim.training.recording import Recorder as Plain

Torch = Any
PASSED = ("Sequential", "Identity", "Flatten")
"""Modules that may stand in a linear stack."""


class Recorder(Plain):
    """Keeps copies of the weights of a model after every step of its optimizer, from the moment it is made.

    model: torch.nn.Linear layers without bias, in a Sequential (or several, nested), that map x to A_L ... A_1 x:
    W_l = A_l^T. optimizer: of torch.optim; the sum of its learning rates is the time. every: one record in so many
    steps.
    `close` ends the recording. observe(loss): the run, with X W_1 ... W_L the model on the rows of X.

    Raises InputError for a model with biases, with layers that are not linear or used twice, an optimizer with several
    rates, or one that leaves a layer at rest.

    From a training loop:

        recorder = fs.torch.Recorder(model, optimizer)
        for _ in range(1000):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(X), Y).backward()
            optimizer.step()
        run = recorder.observe(fs.LeastSquares(X.numpy(), Y.numpy()), loss_scale=2 / Y.numel())
    """

    def __init__(self, model: Torch, optimizer: Torch, every: int = 1) -> None:
        super().__init__(every)
        self.layers, self.optimizer = linear_layers(model), optimizer
        moved = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        still = [place for place, layer in enumerate(self.layers, 1) if id(layer.weight) not in moved]
        if still:
            raise InputError(
                f"Argument `optimizer` must train every layer, but not layer {still[0]}: with a layer at rest training"
                " follows no gradient flow of the loss in all weights."
            )
        self.start(self._weights())
        self.handle = optimizer.register_step_post_hook(lambda *_: self.step(self._weights(), self._rate()))

    def close(self) -> None:
        """Record no further steps."""
        self.handle.remove()

    def _weights(self) -> list[np.ndarray]:
        return [layer.weight.detach().cpu().double().numpy().T.copy() for layer in self.layers]

    def _rate(self) -> float:
        rates = {float(group["lr"]) for group in self.optimizer.param_groups}
        if len(rates) > 1:
            raise InputError(
                f"Argument `optimizer` must have one learning rate, but it has {sorted(rates)}: layers that move at"
                " different rates follow no gradient flow of the loss."
            )
        return rates.pop()


def linear_layers(model: Torch) -> list[Torch]:
    """The Linear layers of a model that is a stack of them and nothing else. Raises InputError."""
    import torch

    if not isinstance(model, torch.nn.Module):
        raise InputError(f"Argument `model` must be a torch.nn.Module, but it is of type {type(model).__name__}.")
    found: list[Torch] = []
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, torch.nn.Linear):
            if module.bias is not None:
                raise InputError(f"Argument `model` must have no biases, but {name or 'it'} has; use bias=False.")
            if any(module.weight is other.weight for other in found):
                raise InputError(
                    f"Argument `model` must not use a layer twice, but {name} is an earlier one: tied weights are not"
                    " a product of layers of their own."
                )
            found.append(module)
        elif type(module).__name__ not in PASSED:
            raise InputError(
                f"Argument `model` must be a Sequential of Linear layers, but {name or 'it'} is a"
                f" {type(module).__name__}: what flowsim judges is linear in every layer."
            )
    if not found:
        raise InputError("Argument `model` must have Linear layers, but it has none.")
    return found
