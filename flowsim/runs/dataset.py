"""A trajectory as an xarray Dataset."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import xarray

from flowsim.errors import InputError

if TYPE_CHECKING:
    from flowsim.runs.trajectory import Trajectory


def dataset_of(run: Trajectory) -> xarray.Dataset:
    """All of it with long names; `step_*` variables are known at every step."""
    return xarray.Dataset(
        {
            "loss": ("time", run.loss, {"long_name": "loss L(t)"}),
            "excess_loss": ("time", run.excess, {"long_name": "L(t) - f*"}),
            "gradient_norm": ("time", run.gradient_norm, {"long_name": "||grad L(t)||_F"}),
            "imbalance_change": (
                ("time", "layer"),
                run.imbalance_change,
                {"long_name": "||D_l(t) - D_l(0)||_F"},
            ),
            "imbalance_drift": (
                ("time", "layer"),
                run.imbalance_drift,
                {"long_name": "||D_l(t) - D_l(0)||_F / max(1, ||D_l(0)||_F)"},
            ),
            "error_estimate": (
                "time",
                run.error_estimate,
                {"long_name": "estimated compression error of the weights, Frobenius norm over all layers"},
            ),
            "singular_values": (
                ("checkpoint_time", "mode"),
                run.singular_values,
                {"long_name": "singular values of the product W(t)"},
            ),
            "step_loss": ("step_time", run.step_loss, {"long_name": "loss L(t) after each step"}),
            "step_excess_loss": ("step_time", run.steps.excess, {"long_name": "L(t) - f* after each step"}),
            "dissipated": (
                "step_time",
                run.steps.dissipated,
                {"long_name": f"what the energy has lost since t = 0: of {run.dynamics.name}"},
            ),
            "stored": (
                "step_time",
                run.steps.stored,
                {"long_name": "energy beyond L - f*: of weight decay and motion"},
            ),
            "energy_residual": (
                "step_time",
                run.energy_residual,
                {"long_name": "(E(0) - E(t) - dissipated) / E(0), E = L - f* + stored"},
            ),
        },
        coords={
            "time": ("time", run.time, {"long_name": "time t", "units": "1"}),
            "layer": ("layer", np.arange(1, run.problem.network.depth), {"long_name": "l of D_l"}),
            "step_time": ("step_time", run.step_time, {"long_name": "time t after each step", "units": "1"}),
            "checkpoint_time": (
                "checkpoint_time",
                run.checkpoints.times,
                {"long_name": "time t at which the weights were kept", "units": "1"},
            ),
            "mode": ("mode", 1 + np.arange(run.singular_values.shape[1]), {"long_name": "number of the mode"}),
        },
        attrs={"status": run.status, "message": run.message},
    )


def series_of(run: Trajectory) -> xarray.Dataset:
    """The series along the run, at its checkpoints."""
    layers = range(1, run.problem.network.depth + 1)
    told: dict[str, tuple[tuple[str, ...], Callable[[], np.ndarray], str]] = {
        "sharpness": ((), run.sharpness, "largest eigenvalue of the Hessian of L"),
        "kernel_distance": ((), run.kernel_distance, "||T(t) - T(0)||_F / ||T(0)||_F"),
        "effective_rank": ((), run.effective_rank, "effective rank of the product W(t)"),
        "alignment": (("layer",), run.alignment, "|<v_l, u_{l+1}>| of neighbouring layers"),
    }
    for layer in layers:
        sizes = (f"mode_{layer}",), partial(run.layer_singular_values, layer), f"singular values of W_{layer}(t)"
        told[f"layer_singular_values_{layer}"] = sizes
    found = {}
    for name, (dims, of, words) in told.items():
        try:
            found[name] = (("checkpoint_time", *dims), of(), {"long_name": words})
        except InputError:
            if name in ("sharpness", "kernel_distance", "effective_rank"):
                raise
    return xarray.Dataset(found, {"checkpoint_time": run.checkpoints.times})
