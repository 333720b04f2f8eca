"""One family of exceptions, each with the exit code that the command returns for it."""


class FlowsimError(Exception):
    """Base of every error that flowsim raises on purpose."""

    exit_code = 1


class InputError(FlowsimError, ValueError):
    """An argument or a file is unusable: says which one, what is wrong and what to do (exit code 2)."""

    exit_code = 2


class NumericalFailure(FlowsimError, ArithmeticError):
    """A computation broke down before it had any result worth keeping (exit code 3)."""

    exit_code = 3


class StorageError(FlowsimError, OSError):
    """A result could not be written, for example to a full disk; what was written before is kept (exit code 3)."""

    exit_code = 3


class ConversionNotice(UserWarning):
    """Input was converted (another dtype to float64, layers of PyTorch to matrices W_l) or not used."""
