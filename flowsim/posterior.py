"""The rate that a simulated flow shows: lambda_min(T) along the trajectory, and the bound that follows from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from flowsim.checks import as_number
from flowsim.display import Shown, Table
from flowsim.errors import InputError
from flowsim.integrators import start
from flowsim.losses import constants_of
from flowsim.methods import GradientDescent
from flowsim.network import DENSE_LIMIT, LinearNetwork, least_eigenvalues_of_T, unflatten
from flowsim.trajectory import Trajectory, as_trajectory

if TYPE_CHECKING:
    import xarray

MOST_BISECTIONS = 200
"""In one interval between steps; what is then left of the error is known and subtracted."""


@dataclass(frozen=True, eq=False, repr=False)
class PosteriorRate(Shown):
    """lambda_min(T(t)) along a flow. Ours, not in [MVM23].

    time (S): the trajectory's saved times; lambda_min_T (S); integral (S): of lambda_min(T) from 0 to each; error (S):
    the estimated error of that quadrature; least: the least value met, the best constant lower bound on the way.
    bound (S): L(t) - f* <= (L(0) - f*) exp(-gamma (integral - error)) under A1, and
    (L(0) - f*) / (1 + (L(0) - f*) gamma^2 (integral - error)) under A1'; None where the loss obeys neither.
    The trajectory's own error is not in it.

    Scalar weights 3 and 1 on the way to their product 2: T = w_1^2 + w_2^2 falls, and w_1^2 - w_2^2 = 8 keeps it above.

    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
    >>> rate = fs.a_posteriori(fs.simulate(problem, t1=2.0))
    >>> rate.lambda_min_T[0].round(6).item(), round(rate.least, 6), round((64 + 16) ** 0.5, 6)
    (10.0, 8.944272, 8.944272)
    """

    trajectory: Trajectory
    lambda_min_T: np.ndarray
    integral: np.ndarray
    error: np.ndarray
    least: float
    law: Literal["exponential", "hyperbolic"] | None
    bound: np.ndarray | None

    def shown(self) -> Table:
        """The mean rate, the least lambda_min(T), and what is left between loss and bound."""
        rows = [
            ("lambda_min(T)", f"{self.lambda_min_T[0]:.6g} at t = 0, least {self.least:.6g}, mean {self.alpha:.6g}"),
            ("quadrature", f"error of the integral {self.error[-1]:.2g} of {self.integral[-1]:.6g}"),
            ("law", "none: the loss obeys neither A1 nor A1'" if self.law is None else self.law),
        ]
        if self.bound is not None:
            rows.append(("at the end", f"L - f* = {self.trajectory.excess[-1]:.6g}, bound {self.bound[-1]:.6g}"))
        return Table(rows)

    @property
    def time(self) -> np.ndarray:
        """The trajectory's saved times."""
        return self.trajectory.time

    @property
    def alpha(self) -> float:
        """The mean of lambda_min(T) over the trajectory, less the error: what a constant bound could have been."""
        return float((self.integral[-1] - self.error[-1]) / self.time[-1])

    @property
    def dataset(self) -> xarray.Dataset:
        """The trajectory's dataset with lambda_min(T), its integral, the quadrature's error, and the bound."""
        columns = {
            "lambda_min_T": (self.lambda_min_T, "least eigenvalue of T(t)"),
            "lambda_min_T_integral": (self.integral, "integral of the least eigenvalue of T from 0 to t"),
            "quadrature_error": (self.error, "estimated error of that integral"),
        }
        if self.bound is not None:
            columns["a_posteriori_bound"] = (self.bound, "upper bound on L(t) - f* from that integral, less its error")
        return self.trajectory.dataset.assign(
            {name: ("time", values, {"long_name": words}) for name, (values, words) in columns.items()}
        )


def a_posteriori(trajectory: Trajectory, *, rtol: float = 1e-8) -> PosteriorRate:
    """lambda_min(T(t)) along a flow and its integral, by adaptive Gauss-Kronrod quadrature between the solver's steps.

    The trajectory is integrated once more, in the compressed form that it was simulated in, and its dense output is
    sampled until the error of each interval is at most rtol times its integral, or cannot be made so: lambda_min has
    kinks where eigenvalues cross.

    Raises InputError for gradient descent, which is no flow, and for an rtol out of range.

    For n = m = 1 the operator T is a number, and the bound is the loss itself; a certificate knows T(0) at best:

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[1.0]], [[0.5]])))
    >>> flow = fs.simulate(problem, t1=1.0, save_points=5)
    >>> found = fs.a_posteriori(flow)
    >>> np.allclose(found.bound / flow.excess, 1.0, atol=1e-5)
    True
    >>> round(fs.certify(problem).best.alpha, 9), round(found.least, 6), found.alpha > found.least
    (1.25, 1.25, True)
    """
    from scipy.integrate import quad_vec

    if isinstance(as_trajectory(trajectory).method, GradientDescent):
        raise InputError(
            "Argument `trajectory` must be a flow: the bound is an integral over continuous time, which gradient"
            " descent does not obey; simulate with an ODE method."
        )
    as_number(rtol, "rtol", above=0.0, most=1.0)
    network = trajectory.simulated.network
    lowest = _lowest(network)
    seen = _Least()
    integrals, errors, values = [0.0], [0.0], [seen(lowest(trajectory.checkpoints.states[0]))]
    integrator = start(
        trajectory.simulated, trajectory.method, 0.0, trajectory.checkpoints.states[0], float(trajectory.time[-1])
    )
    floor = rtol * np.finfo(float).tiny ** 0.5
    total = error = reached = 0.0
    for t in trajectory.time[1:]:
        while reached < t:
            if reached >= integrator.t or integrator.t == 0.0:
                segment = integrator.advance()
            ends = segment.times[segment.times > reached]
            end = min(float(t), float(ends[0]))
            piece, missed = quad_vec(
                lambda s, path=segment.evaluate: seen(lowest(path(np.array([s]))[0])),
                reached,
                end,
                epsabs=floor,
                epsrel=rtol,
                quadrature="gk15",
                limit=MOST_BISECTIONS,
            )
            total, error, reached = total + float(piece), error + float(missed), end
        integrals.append(total)
        errors.append(error)
        values.append(seen(lowest(segment.evaluate(np.array([t]))[0])))
    integral, uncertain = np.array(integrals), np.array(errors)
    law, bound = _bound(trajectory, integral - uncertain)
    return PosteriorRate(trajectory, np.array(values), integral, uncertain, seen.least, law, bound)


class _Least:
    """Remembers the least of the values that pass."""

    def __init__(self) -> None:
        self.least = np.inf

    def __call__(self, value: float) -> float:
        self.least = min(self.least, value)
        return value


def _lowest(network: LinearNetwork) -> Callable[[np.ndarray], float]:
    """state -> lambda_min(T)."""
    if network.dims[0] * network.dims[-1] <= DENSE_LIMIT:
        return lambda state: float(least_eigenvalues_of_T(unflatten(state, network.dims), network.scale))
    return lambda state: network.with_weights(unflatten(state, network.dims)).lambda_min_T


def _bound(
    trajectory: Trajectory, certain: np.ndarray
) -> tuple[Literal["exponential", "hyperbolic"] | None, np.ndarray | None]:
    constants, first = constants_of(trajectory.problem.loss), trajectory.excess[0]
    if constants is None or constants.gamma is None or constants.dominance is None:
        return None, None
    if constants.dominance == "quadratic":
        return "exponential", first * np.exp(-constants.gamma * certain)
    return "hyperbolic", first / (1 + first * constants.gamma**2 * certain)
