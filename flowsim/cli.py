"""The command `flowsim`. Results on standard output, progress and notes on standard error.

Exit codes: 0 done; 2 bad usage or input; 3 numerical failure or a limit reached, the partial result kept;
130 interrupted, the partial result kept. Heavy modules are imported inside the commands: --help needs none of them.
"""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter

from flowsim import __version__
from flowsim.errors import ConversionNotice, FlowsimError, InputError

if TYPE_CHECKING:
    from flowsim.trajectory import Trajectory

app = App(
    name="flowsim",
    help="Gradient flow on multi-layer linear models: simulation, invariants, certified convergence rates.",
    version=__version__,
    help_format="plaintext",
    version_format="plaintext",
)

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object and nothing else.")]
Target = Annotated[Path | None, Parameter(help="Target Y (n x m) as .npy, or as key Y of an .npz.")]
Data = Annotated[Path | None, Parameter(help="Data X (rows x n) and Y (rows x m) as .npz.")]
SCHEME_HELP = (
    "fan_in, fan_out, ntk, xavier, orthogonal, balanced, spectral, diagonal; with --imbalance homogeneous,"
    " lambda_balanced; with --imbalance and --peak unimodal."
)
LOSSES = {"squared": "LeastSquares", "exponential": "ExponentialLoss", "logistic": "LogisticLoss"}
"""The losses on data."""
Loss = Annotated[str, Parameter(help="On data: squared, or with labels Y = +-1 exponential or logistic.")]
Mask = Annotated[Path | None, Parameter(help="With a target: weights >= 0 of its entries as .npy, 0 where unseen.")]


DEFAULT_COMPARISON = "dop853,rk45,lsoda,rkc,gauss-legendre-4"


@app.command(help="Draw the paper's Figure 1: figure1.png, figure1.pdf, figure1.json, and a table.")
def reproduce(*, out: Path = Path("."), seed: int = 0, json_: Json = False) -> int:
    from flowsim.files import make_folder
    from flowsim.reproduce import reproduce as draw
    from flowsim.reproduce import table

    result = draw(make_folder(out), seed=seed, note=_note)
    _print(result, json_, lambda: table(result) + f"\nWrote figure1.png, figure1.pdf and figure1.json in {out}.")
    return 0


@app.command(help="Simulate gradient flow or descent from weights in an .npz file, or a folder of W1.npy, W2.npy, ...")
def simulate(
    weights: Path,
    *,
    t1: float,
    target: Target = None,
    data: Data = None,
    loss: Loss = "squared",
    mask: Mask = None,
    method: Annotated[str, Parameter(help="One of those that `flowsim methods` lists.")] = "dop853",
    step_size: Annotated[float | None, Parameter(help="Step of gradient descent, or a fixed step.")] = None,
    rtol: float = 1e-8,
    atol: float = 1e-10,
    save_points: int = 101,
    stop_loss: Annotated[float | None, Parameter(help="Stop when L - f* <= X (L(0) - f*).")] = None,
    stop_gradient: Annotated[float | None, Parameter(help="Stop when ||grad L|| <= X.")] = None,
    max_steps: int | None = None,
    wall_limit: Annotated[float | None, Parameter(help="Stop after this many seconds.")] = None,
    reduce: Annotated[str, Parameter(help="Compress the width: auto, always or never.")] = "auto",
    backend: Annotated[str, Parameter(help="numpy or jax, for gradient descent.")] = "numpy",
    out: Annotated[Path | None, Parameter(help="Write the trajectory there as NetCDF.")] = None,
    json_: Json = False,
) -> int:
    from dataclasses import replace

    from flowsim.config import RunConfig, provenance
    from flowsim.files import check_writable, read_weights
    from flowsim.problem import Problem
    from flowsim.simulation import simulate as run

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
    )
    chosen = config.method_value()
    _check_loss_flags(target, data, loss, mask)
    if out is not None:
        check_writable(out)
    network = read_weights(weights)
    chosen_loss = _loss(weights, target, data, loss, mask)
    if chosen_loss is None:
        raise InputError(f"Argument `--target` or `--data` must be given: {weights} has no key Y.")
    with _Bar(config.t1) as bar:
        trajectory = run(Problem(chosen_loss, network), chosen, progress=bar, **config.simulate_arguments())
    trajectory = replace(trajectory, provenance={**provenance(), "configuration": config.model_dump()})
    if out is not None:
        trajectory.save(out)
    if trajectory.exit_code:
        _note(trajectory.message)
    _print({**_simulation_json(trajectory), "method": config.method.lower()}, json_, trajectory.summary)
    return trajectory.exit_code


@app.command(help="Certify convergence rates for the weights in an .npz file.")
def certify(
    weights: Path,
    *,
    target: Target = None,
    data: Data = None,
    loss: Loss = "squared",
    mask: Mask = None,
    tolerance: Annotated[float | None, Parameter(help="When an eigenvalue of D_l counts as 0, relative.")] = None,
    cheap: Annotated[bool, Parameter(negative="", help="A few products instead of all eigenvalues.")] = False,
    json_: Json = False,
) -> int:
    from flowsim.checks import as_number
    from flowsim.files import read_weights
    from flowsim.problem import Problem
    from flowsim.rates import TOLERANCE
    from flowsim.rates import certify as run

    allowed = TOLERANCE if tolerance is None else as_number(tolerance, "tolerance", least=0.0)
    _check_loss_flags(target, data, loss, mask)
    network, chosen = read_weights(weights), _loss(weights, target, data, loss, mask)
    certificates = run(network if chosen is None else Problem(chosen, network), tolerance=allowed, cheap=cheap)
    _print(certificates.to_json(), json_, certificates.summary)
    return 0


@app.command(help="Draw initial weights and write them as .npz.")
def initialize(
    *,
    dims: Annotated[str, Parameter(help="Layer sizes, for example 5,300,500,1.")],
    scheme: Annotated[
        str,
        Parameter(help=SCHEME_HELP),
    ] = "fan_out",
    seed: int = 0,
    scale: float = 1.0,
    imbalance: Annotated[str | None, Parameter(help="d_1,d_2,... (unimodal, homogeneous).")] = None,
    peak: Annotated[int | None, Parameter(help="The layer l* of unimodal weights.")] = None,
    compressed: Annotated[
        bool, Parameter(negative="", help="Draw a Gaussian network of any width compressed.")
    ] = False,
    out: Path,
    json_: Json = False,
) -> int:
    from flowsim.files import check_writable, save_weights
    from flowsim.initialization import initialize as draw_full
    from flowsim.reduction import sample_compressed

    sizes = _numbers("dims", dims, int, "5,300,500,1")
    levels = None if imbalance is None else _numbers("imbalance", imbalance, float, "0.5,0.25")
    if compressed and (levels is not None or peak is not None):
        raise InputError(
            "Arguments `imbalance` and `peak` must not be given with `--compressed`: it is for Gaussian weights."
        )
    check_writable(out)
    single = levels[0] if levels is not None and scheme == "lambda_balanced" else levels
    settings: dict[str, Any] = {} if compressed else {"imbalance": single, "peak": peak}
    network = (sample_compressed if compressed else draw_full)(scheme, sizes, seed=seed, scale=scale, **settings)
    save_weights(out, network)
    _print(
        {"dims": sizes, "scheme": scheme, "seed": seed, "scale": scale, "compressed": compressed, "out": str(out)},
        json_,
        lambda: f"Wrote {out}",
    )
    return 0


@app.command(help="Work against precision of several methods on a named problem, or from weights in a file.")
def compare(
    subject: Annotated[str, Parameter(help="A problem that `flowsim problems` lists, or weights as for simulate.")],
    *,
    target: Target = None,
    data: Data = None,
    loss: Loss = "squared",
    mask: Mask = None,
    methods: Annotated[str, Parameter(help="Names that `flowsim methods` lists, with commas.")] = DEFAULT_COMPARISON,
    rtols: Annotated[str, Parameter(help="Relative tolerances; atol is a hundredth.")] = "1e-3,1e-4,1e-6,1e-8,1e-10",
    step_sizes: Annotated[str | None, Parameter(help="Step sizes of gradient descent.")] = None,
    t1: Annotated[float | None, Parameter(help="End time; a named problem has its own.")] = None,
    times: Annotated[int, Parameter(help="At how many times errors are taken.")] = 11,
    repeats: Annotated[int, Parameter(help="How often a quick run is timed after a warm-up.")] = 3,
    time_limit: Annotated[float, Parameter(help="Seconds for one run.")] = 60.0,
    reduce: Annotated[str, Parameter(help="Compress the width: auto, always or never.")] = "auto",
    out: Annotated[Path | None, Parameter(help="Folder for compare.json, compare.nc and compare.png.")] = None,
    json_: Json = False,
) -> int:
    from flowsim.comparison import compare as run
    from flowsim.files import make_folder, write_atomically

    _check_loss_flags(target, data, loss, mask)
    settings: dict[str, Any] = {
        "methods": [name.strip() for name in methods.split(",")],
        "rtols": _numbers("rtols", rtols, float, "1e-4,1e-8"),
        "step_sizes": () if step_sizes is None else _numbers("step_sizes", step_sizes, float, "1e-3,1e-4"),
        "t1": t1,
        "times": times,
        "repeats": repeats,
        "time_limit": time_limit,
        "reduce": reduce,
    }
    folder = None if out is None else make_folder(out)
    result = run(_subject(subject, target, data, loss, mask), note=_note, **settings)
    printed = {"subject": subject, **result.to_json()}
    if folder is not None:
        from flowsim.plots import work_precision_figure

        with write_atomically(folder / "compare.json") as place:
            place.write_text(json.dumps(_finite(printed), allow_nan=False))
        with write_atomically(folder / "compare.nc") as place:
            result.dataset.to_netcdf(place, engine="h5netcdf")
        with write_atomically(folder / "compare.png") as place:
            work_precision_figure(result, subject).savefig(place, dpi=200)
    _print(printed, json_, result.summary)
    return 0 if any(row.status == "completed" for row in result.rows) else 3


@app.command(help="Check the laws that a saved run should obey: D_l, energy, monotone loss, rates, the flow itself.")
def diagnose(run: Path, *, json_: Json = False) -> int:
    from flowsim.diagnosis import diagnose as check
    from flowsim.trajectory import load

    found = check(load(run))
    _print(found.to_json(), json_, found.summary)
    return found.exit_code


@app.command(help="Simulate every member of a sweep's specification (TOML) that has no record in the folder yet.")
def sweep(
    specification: Path,
    *,
    out: Path,
    workers: Annotated[int, Parameter(help="Processes of this machine.")] = 1,
    scheduler: Annotated[str | None, Parameter(help="Address of a Dask cluster that shares the folder.")] = None,
    shard: Annotated[str, Parameter(help="i/n: the i-th of n parts, counted from 1.")] = "1/1",
    plot: Annotated[bool, Parameter(negative="", help="Draw the table: table.png in the folder.")] = False,
    json_: Json = False,
) -> int:
    from flowsim.sweeps import SweepSpec
    from flowsim.sweeps import sweep as run

    parts = _numbers("shard", shard.replace("/", ",", 1), int, "2/4")
    if len(parts) != 2:
        raise InputError(f"Argument `shard` must look like 2/4, but it is {shard!r}.")
    spec = SweepSpec.read(specification)
    with _Count() as bar:
        result = run(
            spec, out, workers=workers, scheduler=scheduler, shard=(parts[0], parts[1]), note=_note, progress=bar
        )
    if result.interrupted:
        _note("Interrupted; what was finished is kept: run the same command again to go on.")
    if plot:
        _draw_sweep(result.table)
    _print(
        result.to_json(),
        json_,
        lambda: f"{result.done} done, {result.skipped} skipped, {result.failed} failed; table: {result.table}",
    )
    return result.exit_code


@app.command(help="List the problems to compare methods on, one line each.")
def problems(*, json_: Json = False) -> int:
    from flowsim.problems import PROBLEMS

    lines = {name: (make.__doc__ or "").splitlines()[0] for name, make in PROBLEMS.items()}
    _print(lines, json_, lambda: "\n".join(f"{name:16}{line}" for name, line in lines.items()))
    return 0


@app.command(help="List the methods, one line each.")
def methods(*, json_: Json = False) -> int:
    from flowsim.methods import METHODS

    lines = {name: kind.line for name, (_, kind) in METHODS.items()}
    _print(lines, json_, lambda: "\n".join(f"{name:20}{line}" for name, line in lines.items()))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; no traceback unless --debug is among the arguments."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in tokens
    tokens = [token for token in tokens if token != "--debug"]
    with warnings.catch_warnings():
        warnings.simplefilter("always", ConversionNotice)
        warnings.showwarning = lambda message, *_, **__: _note(str(message))
        try:
            return app(tokens, exit_on_error=False, print_error=False, result_action="return_value") or 0
        except KeyboardInterrupt:
            _note("Interrupted.")
            return 130
        except Exception as error:
            if debug:
                raise
            return _explain(error)


def entry() -> None:
    """The console script."""
    sys.exit(main())


def _explain(error: Exception) -> int:
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, FlowsimError):
        _note(f"Error: {error}")
        return error.exit_code
    if isinstance(error, CycloptsError):
        _note(f"Error: {' '.join(str(error).split())} See flowsim --help.")
        return 2
    if isinstance(error, MemoryError):
        _note("Error: the memory does not suffice; use smaller widths or fewer save points.")
        return 2
    if isinstance(error, OSError):
        _note(f"Error: {error.filename or 'a file'}: {error.strerror or error}.")
        return 2
    _note(f"Internal error: {type(error).__name__}: {error}; run again with --debug and report it.")
    return 1


def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _print(result: dict[str, Any], as_json: bool, text: Callable[[], str]) -> None:
    print(json.dumps(_finite(result), allow_nan=False) if as_json else text())


def _finite(value: Any) -> Any:
    """The value with arrays as lists, and None for what is not finite."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value


def _numbers(name: str, text: str, kind: Callable[[str], Any], example: str) -> tuple[Any, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"Argument `{name}` must look like {example}, but it is {text!r}.") from error


def _check_loss_flags(target: Path | None, data: Path | None, kind: str, mask: Path | None) -> None:
    """Refuse flags that contradict each other, before any file is read."""
    from flowsim.checks import as_choice

    as_choice(kind, "loss", LOSSES)
    if target is not None and data is not None:
        raise InputError("Arguments `--target` and `--data` must not both be given; choose one.")
    if data is not None and mask is not None:
        raise InputError("Arguments `--mask` and `--data` must not both be given; a mask goes with a target.")
    if data is None and kind != "squared":
        raise InputError(f"Argument `--data` must be given for the {kind} loss: X and the labels Y = -1, +1.")


def _loss(weights: Path, target: Path | None, data: Path | None, kind: str, mask: Path | None) -> Any:
    """The loss that the flags ask for, else a squared loss on key Y of the weights, else None."""
    from flowsim import losses
    from flowsim.files import read_data, read_target

    if data is not None:
        return getattr(losses, LOSSES[kind])(*read_data(data))
    Y = read_target(target if target is not None else weights)
    if Y is None and target is not None:
        raise InputError(f"File {target} must hold the target as key Y, but it does not.")
    if mask is not None and Y is not None:
        return losses.MaskedSquaredLoss(Y, read_target(mask))
    return None if Y is None else losses.SquaredLoss(Y)


def _subject(subject: str, target: Path | None, data: Path | None, kind: str, mask: Path | None) -> Any:
    """A named problem, or the problem of a file of weights and the flags."""
    from flowsim.files import read_weights
    from flowsim.problem import Problem
    from flowsim.problems import PROBLEMS, problem_named

    if subject in PROBLEMS:
        if target is not None or data is not None or mask is not None:
            raise InputError(
                f"Arguments `--target`, `--data` and `--mask` must not be given: {subject} brings its loss."
            )
        return problem_named(subject)
    path = Path(subject)
    if not path.exists():
        raise InputError(
            f"Argument `subject` must be a file of weights or one of {', '.join(PROBLEMS)}, but it is {subject!r}."
        )
    network, chosen = read_weights(path), _loss(path, target, data, kind, mask)
    if chosen is None:
        raise InputError(f"Argument `--target` or `--data` must be given: {path} has no key Y.")
    return Problem(chosen, network)


def _draw_sweep(path: Path) -> None:
    """table.png beside table.nc."""
    import xarray

    from flowsim.files import write_atomically
    from flowsim.plots import sweep_figure

    with xarray.open_dataset(path, engine="h5netcdf") as opened:
        figure = sweep_figure(opened.load())
    with write_atomically(path.with_suffix(".png")) as place:
        figure.savefig(place, dpi=200)


def _simulation_json(trajectory: Trajectory) -> dict[str, Any]:
    stats, compressed = trajectory.stats, trajectory.reduction.network
    return {
        "status": trajectory.status,
        "message": trajectory.message,
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


class _Bar:
    """A progress bar in t that shows log10 of the excess loss; silent where standard error is no terminal."""

    def __init__(self, t1: float) -> None:
        self.t1 = t1

    def __enter__(self) -> _Bar:
        from tqdm import tqdm

        self.bar = tqdm(
            total=1.0, disable=not sys.stderr.isatty(), bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, t: float, excess: float, initial: float) -> None:
        level = f"{math.log10(excess):.2f}" if excess > 0 else "-inf"
        self.bar.set_postfix_str(f"t={t:.4g} log10(L-f*)={level}", refresh=False)
        self.bar.update(t / self.t1 - self.bar.n)


class _Count:
    """A progress bar over members; silent where standard error is no terminal."""

    def __enter__(self) -> _Count:
        from tqdm import tqdm

        self.bar = tqdm(disable=not sys.stderr.isatty(), unit="member")
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def __call__(self, done: int, todo: int) -> None:
        self.bar.total = todo
        self.bar.update(done - self.bar.n)
