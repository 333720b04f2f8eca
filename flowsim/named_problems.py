"""Named problems to compare solvers on: wide, small, deep, stiff, of real data, and one with a closed form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flowsim.checks import as_choice
from flowsim.errors import InputError
from flowsim.exact import riccati
from flowsim.initialization import fan_in, fan_out, lambda_balanced
from flowsim.losses import ExponentialLoss, LeastSquares, SquaredLoss
from flowsim.problem import Problem


@dataclass(frozen=True, eq=False)
class NamedProblem:
    """A problem, the time to simulate it to, and, if known, the product W(t) in closed form (times -> stacks n x m).

    name: what `problem_named` calls it.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> named = fs.problem_named("homogeneous")
    >>> flow = fs.simulate(named.problem, t1=named.t1)
    >>> np.allclose(flow.product_at(named.t1), named.closed_form(np.array([named.t1]))[0], atol=1e-6)
    True
    """

    name: str
    problem: Problem
    t1: float
    closed_form: Callable[[np.ndarray], np.ndarray] | None = None


def paper_middle() -> NamedProblem:
    """The middle panel of [MVM23], Figure 1: n = m = 1, widths (300, 500), fan_out, Y = 2; the loss falls by 1e-10."""
    return NamedProblem(
        "paper-middle", Problem(SquaredLoss(np.array([[2.0]])), fan_out((1, 300, 500, 1), seed=0)), 0.0136
    )


def paper_right() -> NamedProblem:
    """The right panel: n = 5, m = 1, widths (300, 500), fan_out, Y = (1, 1, 1, 1, 1)^T; the loss falls by 1e-10."""
    problem = Problem(SquaredLoss(np.ones((5, 1))), fan_out((5, 300, 500, 1), seed=0))
    return NamedProblem("paper-right", problem, 0.0148)


def staircase() -> NamedProblem:
    """Two layers, n = m = 10, width 100, weights of size 1e-3: ten plateaus, one a singular value 10, 5, 2.5, ... of Y.

    Stiff: while the flow waits at the saddles of the later modes, the earlier ones contract at a rate of up to 20.
    """
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((10, 10)))[0] for _ in range(2))
    Y = (left * (10.0 / 2.0 ** np.arange(10))) @ right.T
    return NamedProblem("staircase", Problem(SquaredLoss(Y), fan_in((10, 100, 10), seed=0, scale=1e-3)), 400.0)


def depth_6() -> NamedProblem:
    """Six layers, n = m = 4, widths 40, fan_in, a Gaussian target."""
    Y = np.random.default_rng(0).standard_normal((4, 4))
    return NamedProblem("depth-6", Problem(SquaredLoss(Y), fan_in((4, 40, 40, 40, 40, 40, 4), seed=0)), 4.0)


def homogeneous() -> NamedProblem:
    """Two layers with D_1 = 1.5 I, dims (40, 30, 20), a Gaussian target: its flow has a closed form, exact.riccati."""
    Y = np.random.default_rng(0).standard_normal((40, 20))
    network = lambda_balanced((40, 30, 20), imbalance=1.5, seed=0)
    return NamedProblem("homogeneous", Problem(SquaredLoss(Y), network), 2.0, lambda t: riccati(network, Y, t))


def least_squares() -> NamedProblem:
    """The ten mean features of Wisconsin breast cancer data, standardised (X^T X has condition number 2e4), labels +-1.

    Three layers of width 200. Raises InputError when scikit-learn, which ships the data, is not installed.
    """
    features, labels = _data("load_breast_cancer")
    means = features[:, :10]
    X = (means - means.mean(0)) / means.std(0) / np.sqrt(len(means))
    y = (2.0 * labels - 1.0)[:, None] / np.sqrt(len(means))
    return NamedProblem("least-squares", Problem(LeastSquares(X, y), fan_in((10, 200, 200, 1), seed=0)), 5.0)


def classification() -> NamedProblem:
    """Exponential loss on Fisher's iris data, setosa against versicolor, with a constant feature; three layers.

    Raises InputError when scikit-learn, which ships the data, is not installed.
    """
    features, species = _data("load_iris")
    chosen = species < 2
    scaled = (features[chosen] - features[chosen].mean(0)) / features[chosen].std(0)
    X = np.column_stack([scaled, np.ones(len(scaled))])
    loss = ExponentialLoss(X, np.where(species[chosen] == 0, -1, 1))
    return NamedProblem("classification", Problem(loss, fan_in((5, 200, 300, 1), seed=0)), 10.0)


def digits() -> NamedProblem:
    """Images of handwritten digits, ten classes, (64, 100, 100, 10): stiff; the excess falls by 1e-6.

    Data and labels are centred. X^T X has condition number 4e5: explicit methods take two million gradients.
    Raises InputError when scikit-learn, which ships the data, is not installed.
    """
    images, labels = _data("load_digits")
    scale = len(labels) ** -0.5
    loss = LeastSquares(scale * images / 16, scale * np.eye(10)[labels], centre=True)
    return NamedProblem("digits", Problem(loss, fan_in((64, 100, 100, 10), seed=0)), 9.3e4)


def synthetic_784() -> NamedProblem:
    """2000 Gaussian vectors, ten classes at random, (784, 512, 512, 10): the excess falls by 1e-6.

    The standard deviations of the features fall evenly from 1 to 0.05.
    """
    rng, count = np.random.default_rng(0), 2000
    X = rng.standard_normal((count, 784)) * np.linspace(1, 0.05, 784)
    Y = np.eye(10)[rng.integers(0, 10, count)]
    loss = LeastSquares(X / count**0.5, Y / count**0.5)
    return NamedProblem("synthetic-784", Problem(loss, fan_in((784, 512, 512, 10), seed=0)), 1030.0)


PROBLEMS: dict[str, Callable[[], NamedProblem]] = {
    "paper-middle": paper_middle,
    "paper-right": paper_right,
    "staircase": staircase,
    "depth-6": depth_6,
    "homogeneous": homogeneous,
    "least-squares": least_squares,
    "classification": classification,
    "digits": digits,
    "synthetic-784": synthetic_784,
}


VERY_STIFF = ("digits", "synthetic-784")
"""Those that take methods which are not made for them minutes; the rest are the seven to compare all methods on."""
QUICK = tuple(name for name in PROBLEMS if name not in VERY_STIFF)


def problem_named(name: str) -> NamedProblem:
    """The problem of that name (a key of PROBLEMS). Raises InputError for an unknown one, listing the known.

    >>> import flowsim as fs
    >>> named = fs.problem_named("staircase")
    >>> named.problem.network.dims, named.t1
    ((10, 100, 10), 400.0)
    >>> fs.problem_named("stairs")
    Traceback (most recent call last):
    flowsim.errors.InputError: Argument `name` must be one of ..., but it is 'stairs' (did you mean staircase?).
    """
    return PROBLEMS[as_choice(name, "name", PROBLEMS)]()


def _data(loader: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn import datasets
    except ImportError as error:
        raise InputError(
            "Argument `name` needs scikit-learn, which ships the data; pip install 'flowsim[data]'."
        ) from error
    return getattr(datasets, loader)(return_X_y=True)
