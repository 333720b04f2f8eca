"""flowsim initialize, certify: initial weights, and what is certain of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from flowsim.cli.inputs import (
    Data,
    Json,
    Layers,
    Loss,
    Mask,
    Target,
    Whole,
    check_loss_flags,
    loss_of,
    network_of,
    numbers,
)
from flowsim.cli.output import show
from flowsim.errors import InputError

SCHEME_HELP = (
    "fan_in, fan_out, ntk, xavier, orthogonal, balanced, spectral, diagonal; with --imbalance homogeneous,"
    " lambda_balanced; with --imbalance and --peak unimodal."
)


def initialize(
    *,
    dims: Annotated[str, Parameter(help="Layer sizes, for example 5,300,500,1.")],
    scheme: Annotated[
        str,
        Parameter(help=SCHEME_HELP),
    ] = "fan_out",
    seed: Annotated[int, Whole] = 0,
    scale: float = 1.0,
    imbalance: Annotated[str | None, Parameter(help="d_1,d_2,... (unimodal, homogeneous).")] = None,
    peak: Annotated[int | None, Whole, Parameter(help="The layer l* of unimodal weights.")] = None,
    compressed: Annotated[
        bool, Parameter(negative="", help="Draw a Gaussian or orthogonal network of any width compressed.")
    ] = False,
    out: Path,
    json_: Json = False,
) -> int:
    """Draw initial weights and write them as .npz."""
    from flowsim.compression import sample_compressed
    from flowsim.files import NPZ, check_writable, save_weights
    from flowsim.initialization import initialize as draw_full

    sizes = numbers("dims", dims, int, "5,300,500,1")
    levels = None if imbalance is None else numbers("imbalance", imbalance, float, "0.5,0.25")
    if compressed and (levels is not None or peak is not None):
        raise InputError(
            "Arguments `imbalance` and `peak` must not be given with `--compressed`: no scheme with them can be drawn"
            " so."
        )
    check_writable(out, NPZ)
    single = levels[0] if levels is not None and scheme == "lambda_balanced" else levels
    settings: dict[str, Any] = {} if compressed else {"imbalance": single, "peak": peak}
    network = (sample_compressed if compressed else draw_full)(scheme, sizes, seed=seed, scale=scale, **settings)
    save_weights(out, network)
    show(
        {"dims": sizes, "scheme": scheme, "seed": seed, "scale": scale, "compressed": compressed, "out": str(out)},
        json_,
        lambda: f"Wrote {out}",
    )
    return 0


def certify(
    weights: Path,
    *,
    target: Target = None,
    data: Data = None,
    loss: Loss = "squared",
    mask: Mask = None,
    layers: Layers = None,
    tolerance: Annotated[float | None, Parameter(help="When an eigenvalue of D_l counts as 0, relative.")] = None,
    cheap: Annotated[bool, Parameter(negative="", help="A few products instead of all eigenvalues.")] = False,
    step_size: Annotated[float | None, Parameter(help="Certify gradient descent with this step size.")] = None,
    max_step: Annotated[bool, Parameter(negative="", help="Find the greatest step size that is certified.")] = False,
    at: Annotated[float | None, Parameter(help="Of a saved run: certify all times after this one.")] = None,
    json_: Json = False,
) -> int:
    """Certify convergence rates for weights (.npz, .safetensors, PyTorch), or for the rest of a saved run (.nc)."""
    from flowsim.checks import as_number
    from flowsim.methods import GradientDescent
    from flowsim.problem import Problem
    from flowsim.rates import TOLERANCE, greatest_step
    from flowsim.rates import certify as run

    if weights.suffix == ".nc":
        inputs = {"target": target, "data": data, "mask": mask, "layers": layers, "step_size": step_size}
        given = [name for name, value in inputs.items() if value is not None]
        if given or max_step:
            raise InputError(f"Argument `{[*given, 'max_step'][0]}` must not be given: {weights} is a saved run.")
        return _certify_tail(weights, at, json_)
    if at is not None:
        raise InputError(f"Argument `at` must not be given: {weights} is no saved run (.nc).")
    method = None if step_size is None else GradientDescent(step_size)
    allowed = TOLERANCE if tolerance is None else as_number(tolerance, "tolerance", least=0.0)
    check_loss_flags(target, data, loss, mask)
    network, chosen = network_of(weights, layers), loss_of(weights, target, data, loss, mask)
    subject = network if chosen is None else Problem(chosen, network)
    certificates = run(subject, method=method, tolerance=allowed, cheap=cheap)
    greatest = {"greatest_step": greatest_step(network, chosen)} if max_step else {}
    show({**certificates.to_json(), **greatest}, json_, certificates)
    if max_step and not json_:
        found = greatest["greatest_step"]
        print("no step size is certified" if found is None else f"greatest certified step size: {found:.3g}")
    return 0


def _certify_tail(run: Path, at: float | None, json_: bool) -> int:
    """The rest of a saved run."""
    from flowsim.runs.loading import load

    tail = load(run).certify_tail(at)
    show(tail.to_json(), json_, tail)
    return 0
