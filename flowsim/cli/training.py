"""flowsim observe: weights that were trained elsewhere."""

from __future__ import annotations

from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from flowsim.cli.inputs import Data, Json, Layers, Loss, Mask, Target, check_loss_flags, loss_of, numbers
from flowsim.cli.output import show
from flowsim.cli.simulations import simulation_json
from flowsim.errors import InputError

if TYPE_CHECKING:
    from flowsim.runs.trajectory import Trajectory


def observe(
    weights: Annotated[list[Path], Parameter(help="The records, or the folder of them.", negative="")],
    *,
    step_size: Annotated[float, Parameter(help="The learning rate.")],
    steps: Annotated[str | None, Parameter(help="Numbers of the steps at the records; else from their names.")] = None,
    loss_scale: Annotated[float, Parameter(help="What was minimised is so many times the loss.")] = 1.0,
    target: Target = None,
    data: Data = None,
    loss: Loss = "squared",
    mask: Mask = None,
    layers: Layers = None,
    weight_decay: Annotated[float, Parameter(help="Of the training, as torch.optim.SGD takes it.")] = 0.0,
    beside: Annotated[bool, Parameter(negative="", help="Simulate the flow with the same start beside it.")] = False,
    out: Annotated[Path | None, Parameter(help="Write the run there as NetCDF.")] = None,
    json_: Json = False,
) -> int:
    """Judge weights that were trained elsewhere, from checkpoints: drift, certificates, what is proved of the rest."""
    from flowsim.files import NETCDF, check_writable
    from flowsim.runs.simulation import simulate
    from flowsim.training import observe as run

    check_loss_flags(target, data, loss, mask)
    if out is not None:
        check_writable(out, NETCDF, (target, data, mask))
    chosen = loss_of(weights[0], target, data, loss, mask) if weights[0].is_file() or target or data else None
    if chosen is None:
        raise InputError(f"Argument `--target` or `--data` must be given: {weights[0]} has no key Y.")
    found = run(
        weights[0] if len(weights) == 1 else weights,
        chosen,
        steps=None if steps is None else numbers("steps", steps, int, "0,100,200"),
        step_size=step_size,
        loss_scale=loss_scale,
        weight_decay=weight_decay,
        layers=None if layers is None else [name.strip() for name in layers.split(",")],
    )
    if out is not None:
        found.save(out)
    told, words = simulation_json(found), [found.summary()]
    tail = found.certify_tail()
    told = {**told, "gradient_norm": found.gradient_norm, "tail": tail.to_json()}
    if beside:
        flow = simulate(found.problem, t1=float(found.time[-1]), save_points=found.time)
        apart = [_apart(found, flow, t) for t in flow.time]
        told["flow"] = {"status": flow.status, "loss": flow.loss, "distance": apart}
        words.append(
            f"the flow with the same start: loss {flow.loss[-1]:.4g} at t = {flow.time[-1]:.4g}, weights apart by"
            f" {apart[-1]:.3g} ({apart[-1] / (found.weights_change or 1.0):.2g} of their change)"
        )
    show(told, json_, lambda: "\n".join(words))
    return 0


def _apart(run: Trajectory, other: Trajectory, t: float) -> float:
    """||W(t) - V(t)||_F over all layers."""
    return sqrt(sum(float(((W - V) ** 2).sum()) for W, V in zip(run.weights_at(t), other.weights_at(t), strict=True)))
