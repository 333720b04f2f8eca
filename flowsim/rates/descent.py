"""Rates of gradient descent with a step size that is not small, squared loss: the ball, and the path in steps.

Ours. J is the derivative of theta = (W_1, ..., W_L) -> W = c W_1 ... W_L, T = J J^T, E = W - Y, eta the step size, q =
||J^T E||. Where beta >= |T| at theta and J has the Lipschitz constant H from there to the next iterate,
||E - eta T E||^2 <= ||E||^2 - eta q^2 (2 - eta beta), and what is of second order in the step eta q is at most
H eta^2 q^2 / 2, so with kappa = 1 - eta beta / 2 - eta H ||E|| / 2

    ||E_{k+1}|| <= ||E_k|| - eta kappa q^2 / ||E_k||,   q^2 >= lambda_min(T) ||E_k||^2.                             (1)

The ball (ball.py). Each step is at most (||E_k|| - ||E_{k+1}||) / (kappa sigma) long, and, sigma being non-increasing,
int_0^R sigma dr >= ||E_0|| / kappa keeps all iterates within R: ||E_{k+1}|| <= (1 - eta kappa sigma(R)^2) ||E_k||.

The path (path.py). Join the iterates by straight lines and let the clock run by ds = ||E_k|| dtau along them. There

    dW_l/ds = -c A_l^T Ehat B_l^T + delta_l,   ||Ehat||_F = 1,
    ||delta_l||_F <= H |theta - theta_k| <= H eta sqrt(beta) ||E_k||,

A_l and B_l at the place itself, delta_l the difference from the iterate: the norms of words grow as for the flow, and
by that eps besides (words.py). By (1), which holds for every shorter step too, ||E|| <= e(s) with de/ds = -kappa
lambda(s), lambda the lower bound of lambda_min(T); the place is within int sqrt(beta) ds of the start, and H is taken a
step further out. As lambda falls with s, each step from above a level e_{j+1} shrinks ||E|| by 1 - eta kappa
lambda_{j+1} at least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import log1p, sqrt

import numpy as np

from flowsim.losses import Loss, SquaredLoss
from flowsim.network import Network
from flowsim.rates.ball import Ball
from flowsim.rates.certificate import Certificate, refused
from flowsim.rates.layer_norms import layer_norms
from flowsim.rates.path import EPS, MOST_STEPS, STEPS, Moving, Start, knots

BALL, PATH = "descent-ball", "descent-path"
ELSEWHERE = "it is for the squared loss of a target"
UNKNOWN = "lambda_min(T) may be 0, or layers are not at hand"
Rough = Callable[[np.ndarray], tuple[float, float]]
PRECISION = 1e-3
"""Of the greatest step, over the greatest that could be certified, 2 / |T|."""


def descent_ball(network: Network, loss: Loss | None, step_size: float) -> Certificate:
    """A rate of gradient descent with that step size: ||E_{k+1}||_F <= (1 - eta kappa sigma(R)^2) ||E_k||_F.

    Ours; proof at the head of this module. For SquaredLoss. alpha = kappa sigma(R)^2; rate, in the time
    t = k step_size, is -2 log(1 - step_size alpha) / step_size.
    """
    start = _start(network, loss)
    around = None if start is None else Ball.around(network)
    if start is None or around is None:
        return refused(BALL, ELSEWHERE if start is None else UNKNOWN)
    found = _within(around, start.e, step_size)
    if found is None:
        return _too_large(BALL, step_size)
    radius, alpha = found
    return _certified(BALL, alpha, start, step_size, radius)


def descent_path(network: Network, loss: Loss | None, step_size: float) -> Certificate:
    """A rate of gradient descent with that step size, from the norms of products of layers along its steps.

    Ours; proof at the head of this module. For SquaredLoss. alpha = kappa lambda at the end of the path; rate as in
    descent_ball, `bound` falls faster early on. It mostly says more than the ball, the more so the smaller the step.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.fan_out((5, 300, 500, 1), seed=0))
    >>> ball, path = fs.certify(problem, method=fs.GradientDescent(5e-6)).entries[:2]
    >>> ball.name, path.name, bool(path.rate > 1.1 * ball.rate)
    ('descent-ball', 'descent-path', True)
    """
    start = _start(network, loss)
    norms = None if start is None else layer_norms(network)
    around = None if norms is None else Ball.around(network)
    if start is None or norms is None or around is None:
        return refused(PATH, ELSEWHERE if start is None else UNKNOWN)
    found = _travel(Moving(network, norms, disturbed=True), around, start, step_size)
    if found is None:
        return _too_large(PATH, step_size)
    e, alphas, radius = found
    certificate = _certified(PATH, float(alphas[-1]), start, step_size, radius)
    inner = e[e > 0]
    shrunk = np.append(alphas[1 : len(inner)], alphas[-1])
    return replace(certificate, knots=knots(inner, -2 * np.log1p(-step_size * shrunk) / step_size))


DESCENTS = (descent_ball, descent_path)
"""The theorems on gradient descent: of a network, a loss and a step size."""


def greatest_step(network: Network, loss: Loss | None) -> float | None:
    """The greatest step size that one of DESCENTS certifies, to a thousandth of 2 / |T|; None where none is."""
    around = None if _start(network, loss) is None else Ball.around(network)
    if around is None:
        return None
    low, most = 0.0, 2 / around.greatest**2
    for theorem in DESCENTS:  # the second, which costs more, from where the first ends
        high = most
        while high - low > PRECISION * most:
            middle = 0.5 * (low + high)
            low, high = (middle, high) if theorem(network, loss, middle).applies else (low, middle)
    return low or None


def _start(network: Network, loss: Loss | None) -> Start | None:
    """Of the squared loss; None of any other."""
    return Start.of(network, loss) if type(loss) is SquaredLoss else None


def _too_large(name: str, step_size: float) -> Certificate:
    return refused(name, f"a step size of {step_size:.3g} is not certified: the weights may move too far")


def _certified(name: str, alpha: float, start: Start, step_size: float, radius: float) -> Certificate:
    alpha *= 1 - 64 * EPS
    rate = -2 * log1p(-step_size * alpha) / step_size
    return Certificate(name, True, alpha, rate=rate, excess=start.e**2 / 2, radius=radius)


def _within(around: Ball, e: float, step_size: float) -> tuple[float, float] | None:
    """(R, kappa sigma(R)^2) for the least R that keeps gradient descent inside; None where there is none."""
    for place, (r, sigma) in enumerate(zip(around.radii, around.sigmas, strict=True)):
        if around.integrals[place] < e:  # kappa is at most 1
            continue
        norm = around.greatest + float(around.change(float(r)))
        step = step_size * norm * e
        kappa = 1 - 0.5 * step_size * (norm**2 + around.lipschitz(float(r) + step) * e)
        if kappa <= 0 or sigma <= 0:
            return None
        if around.integrals[place] >= e / kappa:
            return float(r), kappa * float(sigma) ** 2
    return None


@np.errstate(over="ignore", invalid="ignore")
def _travel(
    weights: Moving, around: Ball, start: Start, step_size: float
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """(e, kappa lambda, how far the weights move) along the clock; None where the weights may move too far."""
    e, cap, alpha = start.e, start.cap, weights.least
    assert cap is not None
    if alpha <= 0:
        return None
    h = e / (alpha * STEPS)
    known, gone, radius = [(e, alpha)], 0.0, 0.0
    for _ in range(MOST_STEPS):
        if e <= 0:
            levels, alphas = np.array(known).T
            return levels, np.minimum.accumulate(alphas), radius

        def rough(U: np.ndarray, e: float = e, gone: float = gone) -> tuple[float, float]:
            """(beta, H) during this step of the clock, and from there to the next iterate."""
            beta = weights.greatest(U)
            return beta, around.lipschitz(gone + sqrt(beta) * (h + step_size * e))

        def disturbed(U: np.ndarray, e: float = e, rough: Rough = rough) -> float:
            beta, H = rough(U)
            return H * step_size * sqrt(beta) * e

        least = weights.after(h, (cap[0] + cap[1] * e) / weights.c, disturbed)
        beta, H = rough(weights.y)
        kappa = 1 - 0.5 * step_size * (beta + H * e)
        if not (least > 0 and kappa > 0):
            return None
        alpha, last = kappa * least, e
        e, gone = max(e - h * alpha, 0.0), gone + sqrt(beta) * h
        radius += (last - e) / (kappa * sqrt(least))
        known.append((e, alpha))
    return None
