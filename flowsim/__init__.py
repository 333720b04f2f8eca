"""flowsim: gradient flow on multi-layer linear models, its invariants and its certified convergence rates."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from flowsim import errors as errors
    from flowsim import exact as exact
    from flowsim.citations import citation as citation
    from flowsim.comparison import Comparison as Comparison
    from flowsim.comparison import compare as compare
    from flowsim.diagnosis import Diagnosis as Diagnosis
    from flowsim.diagnosis import diagnose as diagnose
    from flowsim.ensembles import Ensemble as Ensemble
    from flowsim.ensembles import ensemble as ensemble
    from flowsim.files import read_weights as read_weights
    from flowsim.files import save_weights as save_weights
    from flowsim.initialization import balanced as balanced
    from flowsim.initialization import diagonal as diagonal
    from flowsim.initialization import fan_in as fan_in
    from flowsim.initialization import fan_out as fan_out
    from flowsim.initialization import homogeneous as homogeneous
    from flowsim.initialization import initialize as initialize
    from flowsim.initialization import lambda_balanced as lambda_balanced
    from flowsim.initialization import ntk as ntk
    from flowsim.initialization import orthogonal as orthogonal
    from flowsim.initialization import spectral as spectral
    from flowsim.initialization import unimodal as unimodal
    from flowsim.initialization import xavier as xavier
    from flowsim.losses import ExponentialLoss as ExponentialLoss
    from flowsim.losses import LeastSquares as LeastSquares
    from flowsim.losses import LogisticLoss as LogisticLoss
    from flowsim.losses import Loss as Loss
    from flowsim.losses import LossConstants as LossConstants
    from flowsim.losses import MaskedSquaredLoss as MaskedSquaredLoss
    from flowsim.losses import SquaredLoss as SquaredLoss
    from flowsim.methods import RKC as RKC
    from flowsim.methods import Diffrax as Diffrax
    from flowsim.methods import GaussLegendre as GaussLegendre
    from flowsim.methods import GradientDescent as GradientDescent
    from flowsim.methods import Projected as Projected
    from flowsim.methods import Scipy as Scipy
    from flowsim.methods import method_named as method_named
    from flowsim.network import LinearNetwork as LinearNetwork
    from flowsim.plots import plot as plot
    from flowsim.plots import plot_drift as plot_drift
    from flowsim.plots import plot_energy as plot_energy
    from flowsim.plots import plot_gradient_norm as plot_gradient_norm
    from flowsim.plots import plot_quantiles as plot_quantiles
    from flowsim.plots import plot_rate as plot_rate
    from flowsim.plots import plot_singular_values as plot_singular_values
    from flowsim.plots import plot_work_precision as plot_work_precision
    from flowsim.plots import sweep_figure as sweep_figure
    from flowsim.posterior import PosteriorRate as PosteriorRate
    from flowsim.posterior import a_posteriori as a_posteriori
    from flowsim.problem import Problem as Problem
    from flowsim.problems import PROBLEMS as PROBLEMS
    from flowsim.problems import NamedProblem as NamedProblem
    from flowsim.problems import problem_named as problem_named
    from flowsim.rates import Certificate as Certificate
    from flowsim.rates import Certificates as Certificates
    from flowsim.rates import certify as certify
    from flowsim.reduction import CompressedNetwork as CompressedNetwork
    from flowsim.reduction import compress as compress
    from flowsim.reduction import sample_compressed as sample_compressed
    from flowsim.reports import report as report
    from flowsim.simulation import resume as resume
    from flowsim.simulation import simulate as simulate
    from flowsim.sweeps import SweepResult as SweepResult
    from flowsim.sweeps import SweepSpec as SweepSpec
    from flowsim.sweeps import sweep as sweep
    from flowsim.trajectory import Trajectory as Trajectory
    from flowsim.trajectory import load as load

_HOMES = {
    "citations": ("citation",),
    "comparison": ("Comparison", "compare"),
    "diagnosis": ("Diagnosis", "diagnose"),
    "ensembles": ("Ensemble", "ensemble"),
    "files": ("read_weights", "save_weights"),
    "initialization": (
        "balanced",
        "diagonal",
        "fan_in",
        "fan_out",
        "homogeneous",
        "initialize",
        "lambda_balanced",
        "ntk",
        "orthogonal",
        "spectral",
        "unimodal",
        "xavier",
    ),
    "losses": (
        "ExponentialLoss",
        "LeastSquares",
        "LogisticLoss",
        "Loss",
        "LossConstants",
        "MaskedSquaredLoss",
        "SquaredLoss",
    ),
    "methods": ("RKC", "Diffrax", "GaussLegendre", "GradientDescent", "Projected", "Scipy", "method_named"),
    "network": ("LinearNetwork",),
    "plots": (
        "plot",
        "plot_drift",
        "plot_energy",
        "plot_gradient_norm",
        "plot_quantiles",
        "plot_rate",
        "plot_singular_values",
        "plot_work_precision",
        "sweep_figure",
    ),
    "posterior": ("PosteriorRate", "a_posteriori"),
    "problem": ("Problem",),
    "problems": ("PROBLEMS", "NamedProblem", "problem_named"),
    "rates": ("Certificate", "Certificates", "certify"),
    "reduction": ("CompressedNetwork", "compress", "sample_compressed"),
    "reports": ("report",),
    "simulation": ("resume", "simulate"),
    "sweeps": ("SweepResult", "SweepSpec", "sweep"),
    "trajectory": ("Trajectory", "load"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
_MODULES = ("errors", "exact")

__all__ = ["__version__", *_MODULES, *_HOME_OF]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used, so that `import flowsim` is quick."""
    if name in _HOME_OF:
        value = getattr(import_module(f"flowsim.{_HOME_OF[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"flowsim.{name}")
    else:
        raise AttributeError(f"module 'flowsim' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
