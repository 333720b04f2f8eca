"""flowsim simulate, compare, diagnose: a run, several, and what a run shows."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from flowsim.cli.inputs import (
    Data,
    Dynamics,
    Json,
    Layers,
    Loss,
    Mask,
    Target,
    WeightDecay,
    Whole,
    check_loss_flags,
    loss_of,
    network_of,
    numbers,
    subject_of,
)
from flowsim.cli.output import finite, note, progress, show
from flowsim.errors import InputError

if TYPE_CHECKING:
    from flowsim.runs.settings import RunConfig
    from flowsim.runs.trajectory import Trajectory

DEFAULT_COMPARISON = "auto,dop853,rk45,lsoda,rkc,gauss-legendre-4"


def simulate(
    weights: Path | None = None,
    *,
    t1: float,
    target: Target = None,
    data: Data = None,
    loss: Loss = "squared",
    mask: Mask = None,
    layers: Layers = None,
    method: Annotated[str | None, Parameter(help="One of `flowsim methods`; auto, or that of --resume.")] = None,
    step_size: Annotated[float | None, Parameter(help="Step of gradient descent, or a fixed step.")] = None,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    save_points: Annotated[int, Whole] = 101,
    stop_loss: Annotated[float | None, Parameter(help="Stop when L - f* <= X (L(0) - f*).")] = None,
    stop_gradient: Annotated[float | None, Parameter(help="Stop when ||grad L|| <= X.")] = None,
    max_steps: Annotated[int | None, Whole] = None,
    wall_limit: Annotated[float | None, Parameter(help="Stop after this many seconds.")] = None,
    reduce: Annotated[str, Parameter(help="Compress the width: auto, always or never.")] = "auto",
    backend: Annotated[str, Parameter(help="numpy or jax, for gradient descent.")] = "numpy",
    momentum: Annotated[float, Parameter(help="Of gradient descent: 0.9, say.")] = 0.0,
    nesterov: Annotated[bool, Parameter(negative="", help="Momentum as Nesterov has it.")] = False,
    schedule: Annotated[str | None, Parameter(help="cosine:STEPS, step-decay:EVERY:FACTOR or warm-up:STEPS.")] = None,
    batch_size: Annotated[int | None, Whole, Parameter(help="Samples of a step of gradient descent.")] = None,
    label_noise: Annotated[float, Parameter(help="Standard deviation of noise on the labels, new at each step.")] = 0.0,
    seed: Annotated[int, Whole, Parameter(help="Of batches and noise.")] = 0,
    independent_batches: Annotated[
        bool, Parameter(negative="", help="Draw each batch from all samples, not in passes.")
    ] = False,
    weight_decay: WeightDecay = 0.0,
    dynamics: Dynamics = None,
    resume: Annotated[Path | None, Parameter(help="Go on with this saved run, by its method or --method.")] = None,
    global_error: Annotated[bool, Parameter(negative="", help="Say how far the run is from the exact flow.")] = False,
    out: Annotated[Path | None, Parameter(help="Write the trajectory there as NetCDF.")] = None,
    json_: Json = False,
) -> int:
    """Simulate gradient flow or descent from weights (.npz, .safetensors, PyTorch, a folder), or go on with a run."""
    from dataclasses import replace

    from flowsim.files import NETCDF, check_writable
    from flowsim.runs.record import exit_code_of
    from flowsim.runs.settings import RunConfig

    config = RunConfig.build(
        t1=t1,
        method=method,
        step_size=step_size,
        rtol=rtol,
        atol=atol,
        save_points=save_points,
        stop_loss=stop_loss,
        stop_gradient=stop_gradient,
        max_steps=max_steps,
        wall_limit=wall_limit,
        reduce=reduce,
        backend=backend,
        momentum=momentum,
        nesterov=nesterov,
        schedule=schedule,
        batch_size=batch_size,
        label_noise=label_noise,
        seed=seed,
        independent_batches=independent_batches,
        weight_decay=weight_decay,
        dynamics=dynamics,
    )
    if config.method_value().kind.discrete and global_error:
        raise InputError("Argument `--global-error` is for the methods of the flow: descent has no error of its own.")
    check_loss_flags(target, data, loss, mask)
    if out is not None:
        check_writable(out, NETCDF, (weights, target, data, mask))
    inputs: dict[str, Any] = {"weights": weights, "target": target, "data": data, "loss": loss, "mask": mask}
    inputs["layers"] = layers
    if resume is not None:
        trajectory = _resumed(resume, config, inputs)
    else:
        trajectory = _simulated(config, **inputs)
        given = {name: str(value) for name, value in inputs.items() if value is not None}
        record = {**trajectory.provenance["configuration"], **given}
        trajectory = replace(trajectory, provenance={**trajectory.provenance, "configuration": record})
    if out is not None:
        trajectory.save(out)
    if trajectory.exit_code:
        note(trajectory.message)
    told = {**simulation_json(trajectory), "method": trajectory.method.key}
    if not global_error:
        show(told, json_, trajectory.summary)
        return trajectory.exit_code
    error = trajectory.global_error(progress=sys.stderr.isatty(), wall_limit=wall_limit)
    told["global_error"] = error.to_json()
    show(told, json_, lambda: f"{trajectory.summary()}\n{error.summary()}")
    return trajectory.exit_code or exit_code_of(error.status)


def _simulated(
    config: RunConfig,
    weights: Path | None,
    target: Path | None,
    data: Path | None,
    loss: str,
    mask: Path | None,
    layers: str | None,
) -> Trajectory:
    from flowsim.problem import Problem
    from flowsim.runs.simulation import simulate as run

    if weights is None:
        raise InputError("Argument `weights` must be given: a file of weights, or --resume with a saved run.")
    network, chosen = network_of(weights, layers), loss_of(weights, target, data, loss, mask)
    if chosen is None:
        raise InputError(f"Argument `--target` or `--data` must be given: {weights} has no key Y.")
    return run(
        Problem(chosen, network, weight_decay=config.weight_decay),
        config.method_value(),
        progress=progress(config.t1),
        **config.simulate_arguments(),
    )


def _resumed(path: Path, config: RunConfig, inputs: Mapping[str, object]) -> Trajectory:
    """The saved run gone on with; what it brings itself must not be given."""
    from flowsim.runs.loading import load
    from flowsim.runs.settings import OF_THE_METHOD, OF_THE_PROBLEM, RunConfig
    from flowsim.runs.simulation import resume as run

    usual = RunConfig.build(t1=config.t1)
    own = ("reduce", "dynamics", *OF_THE_METHOD, *OF_THE_PROBLEM)
    given = [name for name in own if getattr(config, name) != getattr(usual, name)]
    given += [name for name, value in inputs.items() if value not in (None, "squared")]
    if given:
        raise InputError(f"Argument `{given[0]}` must not be given with --resume: the saved run brings its own.")
    arguments = config.simulate_arguments(but={"reduce", "dynamics"})
    return run(load(path), method=config.method, progress=progress(config.t1), **arguments)


def compare(
    subject: Annotated[str, Parameter(help="A problem that `flowsim problems` lists, or weights as for simulate.")],
    *,
    target: Target = None,
    data: Data = None,
    loss: Loss = "squared",
    mask: Mask = None,
    layers: Layers = None,
    methods: Annotated[str, Parameter(help="Names that `flowsim methods` lists, with commas.")] = DEFAULT_COMPARISON,
    rtols: Annotated[str, Parameter(help="Relative tolerances; atol is a hundredth.")] = "1e-3,1e-4,1e-6,1e-8,1e-10",
    step_sizes: Annotated[str | None, Parameter(help="Step sizes of gradient descent.")] = None,
    t1: Annotated[float | None, Parameter(help="End time; a named problem has its own.")] = None,
    times: Annotated[int, Whole, Parameter(help="At how many times errors are taken.")] = 11,
    repeats: Annotated[int, Whole, Parameter(help="How often a quick run is timed after a warm-up.")] = 3,
    time_limit: Annotated[float, Parameter(help="Seconds for one run; the reference may take ten times that.")] = 60.0,
    reduce: Annotated[str, Parameter(help="Compress the width: auto, always or never.")] = "auto",
    weight_decay: WeightDecay = 0.0,
    dynamics: Dynamics = None,
    out: Annotated[Path | None, Parameter(help="Folder for compare.json, compare.nc and compare.png.")] = None,
    json_: Json = False,
) -> int:
    """Work against precision of several methods on a named problem, or from weights in a file."""
    from flowsim.comparison import compare as run
    from flowsim.files import make_folder, write_atomically, write_netcdf

    check_loss_flags(target, data, loss, mask)
    settings: dict[str, Any] = {
        "methods": [name.strip() for name in methods.split(",")],
        "rtols": numbers("rtols", rtols, float, "1e-4,1e-8"),
        "step_sizes": () if step_sizes is None else numbers("step_sizes", step_sizes, float, "1e-3,1e-4"),
        "t1": t1,
        "times": times,
        "repeats": repeats,
        "time_limit": time_limit,
        "reduce": reduce,
        "dynamics": dynamics,
    }
    folder = None if out is None else make_folder(out)
    asked = subject_of(subject, target, data, loss, mask, layers, weight_decay)
    result = run(asked, note=note, **settings)
    options = {**settings, "loss": loss, "weight_decay": weight_decay}
    printed = {"subject": subject, **result.to_json(), "configuration": options}
    if folder is not None:
        from flowsim.plots import work_precision_figure

        with write_atomically(folder / "compare.json") as place:
            place.write_text(json.dumps(finite(printed), allow_nan=False))
        write_netcdf(folder / "compare.nc", result.dataset)
        with write_atomically(folder / "compare.png") as place:
            work_precision_figure(result, subject).savefig(place, dpi=200)
    show(printed, json_, result)
    if result.interrupted:
        note("Interrupted; the methods that had their turn are there.")
        return 130
    return 0 if any(row.status == "completed" for row in result.rows) else 3


def diagnose(
    run: Path,
    *,
    wall_limit: Annotated[float | None, Parameter(help="Stop after this many seconds, keep what was judged.")] = None,
    json_: Json = False,
) -> int:
    """Check the laws that a saved run should obey: D_l, energy, monotone loss, rates, the flow itself."""
    from flowsim.laws import diagnose as check
    from flowsim.runs.loading import load

    found = check(load(run), progress=sys.stderr.isatty(), wall_limit=wall_limit)
    show(found.to_json(), json_, found)
    if found.status != "completed":
        note(f"The diagnosis ended early: {found.verdict}.")
    return found.exit_code


def simulation_json(trajectory: Trajectory) -> dict[str, object]:
    """The object that `flowsim simulate --json` prints."""
    stats, compressed = trajectory.stats, trajectory.reduction.network
    return {
        "status": trajectory.status,
        "message": trajectory.message,
        "resolved_until": trajectory.resolved_until,
        "time": trajectory.time,
        "loss": trajectory.loss,
        "imbalance_drift": trajectory.imbalance_drift.max(axis=1),
        "steps": stats["steps"],
        "rhs_evaluations": stats["rhs_evaluations"],
        "seconds": stats["seconds"],
        "reduction": {
            "used": compressed is not None,
            "widths": trajectory.problem.network.dims,
            "reduced_widths": None if compressed is None else compressed.core.dims,
            "krylov_steps": None if compressed is None else compressed.steps,
            "error_estimate": float(trajectory.error_estimate[-1]),
            "weights_change": trajectory.weights_change,
            "reason": trajectory.reduction.reason,
        },
    }
