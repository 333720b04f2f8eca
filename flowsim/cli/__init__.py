"""The command `flowsim`. Results on standard output, progress and notes on standard error.

Exit codes: 0 done; 2 bad usage or input; 3 numerical failure or a limit reached, the partial result kept;
130 interrupted, the partial result kept. Heavy modules are imported inside the commands: --help needs none of them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

from cyclopts import App, CycloptsError

from flowsim import __version__
from flowsim.cli import configuration, figures, lists, networks, simulations, sweeps, training
from flowsim.cli.output import discard_output, note, open_streams, tell
from flowsim.errors import ConversionNotice, FlowsimError

app = App(
    name="flowsim",
    help="Gradient flow on multi-layer linear models: simulation, invariants, certified convergence rates.",
    help_epilogue=(
        "Every command also takes --config FILE.toml (a table a command, such as [simulate], keys called as the flags;"
        " flags win), --print-config (its complete configuration, to be kept as such a file) and --debug"
        " (tracebacks).\n"
    ),
    version=__version__,
    help_format="plaintext",
    version_format="plaintext",
)

for _command in (
    lists.reproduce,
    networks.initialize,
    networks.certify,
    simulations.simulate,
    simulations.diagnose,
    simulations.compare,
    training.observe,
    lists.cite,
    figures.plot,
    figures.report,
    sweeps.sweep,
    lists.methods,
    lists.problems,
):
    app.command(_command)


app.register_install_completion_command(help="Install completion for this shell (bash, zsh or fish).")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; no traceback unless --debug is among the arguments."""
    open_streams()
    tokens, debug = configuration.without(list(sys.argv[1:] if arguments is None else arguments), "--debug")
    with warnings.catch_warnings():
        warnings.simplefilter("always", ConversionNotice)
        warnings.showwarning = lambda message, *_, **__: note(str(message))
        try:
            code = _run(tokens)
            sys.stdout.flush()
            return code
        except KeyboardInterrupt:
            note("Interrupted.")
            return 130
        except Exception as error:
            if debug:
                raise
            return _explain(error, tokens)


def _run(tokens: list[str]) -> int:
    tokens, print_only = configuration.without(tokens, "--print-config")
    tokens, path = configuration.split_file(tokens)
    quiet: Any = {"exit_on_error": False, "print_error": False}
    commands = [name for name in app if not name.startswith("-")]
    app.config = () if path is None else (configuration.read(path, commands),)
    if print_only:
        command, bound, _ = app.parse_args(tokens, **quiet)
        bound.apply_defaults()
        tell(configuration.complete(command.__name__, bound.arguments))
        return 0
    return app(tokens, **quiet, result_action="return_value") or 0


def entry() -> None:
    """The console script."""
    sys.exit(main())


def _explain(error: Exception, tokens: Sequence[str]) -> int:
    if isinstance(error, BrokenPipeError):
        discard_output()
        return 0
    if isinstance(error, FlowsimError):
        note(f"Error: {error}")
        return error.exit_code
    if isinstance(error, CycloptsError):
        named = f" {tokens[0]}" if tokens and tokens[0] in app else ""
        note(f"Error: {' '.join(str(error).split())} See flowsim{named} --help.")
        return 2
    if isinstance(error, MemoryError):
        note("Error: the memory does not suffice; use smaller widths or fewer save points.")
        return 2
    if isinstance(error, OSError):
        note(f"Error: {error.filename or 'the output'}: {error.strerror or error}.")
        if error.filename is None:
            discard_output()
        return 2
    note(f"Internal error: {type(error).__name__}: {error}; run again with --debug and report it.")
    return 1
