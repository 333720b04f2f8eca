"""Many paths of stochastic training: gradient descent with batches or label noise, and the flow that is its limit.

flow: the stochastic flow as a value, and its noise; paths: many of them at once, compiled; result: what they did.
"""

from __future__ import annotations

from flowsim.stochastic.flow import StochasticFlow
from flowsim.stochastic.paths import stochastic_paths
from flowsim.stochastic.result import StochasticPaths

__all__ = ["StochasticFlow", "StochasticPaths", "stochastic_paths"]
