"""What the weights obey: gradient flow, momentum, the modified flow of descent, or a law of one's own.

base: what every dynamics is; flows: of first order; inertial: with momentum; motion: a problem under a dynamics, as one
ordinary differential equation that methods integrate; table: their names.
"""

from flowsim.dynamics.base import Dynamics, Equation, LawResiduals
from flowsim.dynamics.flows import GradientFlow, ModifiedFlow
from flowsim.dynamics.inertial import HeavyBall, Inertial, Nesterov
from flowsim.dynamics.motion import Motion, as_motion, split
from flowsim.dynamics.table import DYNAMICS, as_dynamics, dynamics_named

__all__ = [
    "DYNAMICS",
    "Dynamics",
    "Equation",
    "GradientFlow",
    "HeavyBall",
    "Inertial",
    "LawResiduals",
    "ModifiedFlow",
    "Motion",
    "Nesterov",
    "as_dynamics",
    "as_motion",
    "dynamics_named",
    "split",
]
