"""Rates of gradient descent with a step size that is not small: the ball, and the path in steps.

Ours, for losses under A1 (gamma) that are K-smooth; e = 2 sqrt((f - f*) / gamma), for the squared loss ||E||. J is the
derivative of theta = (W_1, ..., W_L) -> W = c W_1 ... W_L, T = J J^T, E = grad f(W), eta the step size, q = ||J^T E||.
Where beta >= |T| at theta and J has the Lipschitz constant H from there to the next iterate, W changes by -eta T E + R
with ||R|| <= H eta^2 q^2 / 2 and q <= sqrt(beta) ||E||, so f changes by at most -eta q^2 + ||E|| ||R|| +
K/2 (eta sqrt(beta) q + ||R||)^2 <= -eta kappa q^2 with

    kappa = 1 - eta H ||E|| / 2 - (eta K beta / 2) (1 + eta H ||E|| / 2)^2.

With q^2 >= lambda_min(T) ||E||^2, ||E||^2 >= gamma (f - f*) and the concavity of the square root

    e_{k+1} <= e_k - eta kappa lambda_min(T) ||E_k||,   e_{k+1} <= (1 - eta kappa lambda_min(T) gamma / 2) e_k,     (1)
    eta q <= (e_k - e_{k+1}) / (kappa sigma_min(J)),                                                                (2)

and ||E|| <= sqrt(2 K (f - f*)) = sqrt(K gamma / 2) e.

The ball (ball.py). By (2), sigma being non-increasing, int_0^R sigma dr >= e_0 / kappa keeps all iterates within R, and
(1) holds with sigma(R)^2.

The path (path.py). Join the iterates by straight lines and let the clock run by ds = ||E_k|| dtau along them. There

    dW_l/ds = -c A_l^T Ehat B_l^T + delta_l,   ||Ehat||_F = 1,
    ||delta_l||_F <= H |theta - theta_k| <= H eta sqrt(beta) ||E_k||,

A_l and B_l at the place itself, delta_l the difference from the iterate: the norms of words grow as for the flow, and
by that eps besides (words.py). By (1), which holds for every shorter step too, e <= e(s) with de/ds = -kappa lambda(s),
lambda the lower bound of lambda_min(T); the place is within int sqrt(beta) ds of the start, and H is taken a step
further out. As lambda falls with s, each step from above a level of e shrinks e by what holds there at least.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import numpy as np

from flowsim.compression import CompressedNetwork
from flowsim.losses import Loss
from flowsim.network import LinearNetwork, Network
from flowsim.rates.ball import Ball
from flowsim.rates.certificate import Certificate, refused
from flowsim.rates.layer_norms import layer_norms
from flowsim.rates.path import EPS, MOST_STEPS, NEEDS, STEPS, Moving, Start, knots
from flowsim.rates.xu_2023 import xu_2023

BALL, PATH = "descent-ball", "descent-path"
ELSEWHERE = f"{NEEDS}, and with a known smoothness"
UNKNOWN = "lambda_min(T) may be 0, or layers are not at hand"
Rough = Callable[[np.ndarray], tuple[float, float]]
PRECISION = 1e-2
"""Of the greatest step, over the greatest that could be certified, 2 / (K |T|)."""


def kappa(step_size: float, K: float, beta: float, H: float, size: float) -> float:
    """What a step keeps of the fall of f to first order: at least kappa step_size q^2 (see above); size: ||E||."""
    bent = 0.5 * step_size * H * size if np.isfinite(H) else float("inf")
    return 1 - bent - 0.5 * step_size * K * beta * (1 + bent) ** 2


def descent_ball(network: Network, loss: Loss | None, step_size: float) -> Certificate:
    """A rate of gradient descent with that step size: e_{k+1} <= (1 - eta alpha gamma / 2) e_k.

    alpha = kappa sigma(R)^2. Ours; proof at the head of this module. For losses under A1 that are K-smooth;
    e = ||W - Y||_F for SquaredLoss. rate, in the time t = k step_size, is
    -2 log(1 - step_size alpha gamma / 2) / step_size.
    """
    start = _start(network, loss)
    around = None if start is None else Ball.around(network)
    if start is None or around is None:
        return refused(BALL, ELSEWHERE if start is None else UNKNOWN)
    found = _within(around, start, step_size)
    if found is None:
        return _too_large(BALL, step_size)
    radius, alpha = found
    return _certified(BALL, alpha, start, step_size, radius)


def descent_path(network: Network, loss: Loss | None, step_size: float) -> Certificate:
    """A rate of gradient descent with that step size, from the norms of products of layers along its steps.

    Ours; proof at the head of this module. For losses as in descent_ball. alpha = kappa lambda at the end of the path;
    rate as there, `bound` falls faster early on. It mostly says more than the ball, the more so the smaller the step.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.fan_out((5, 300, 500, 1), seed=0))
    >>> certificates = fs.certify(problem, method=fs.GradientDescent(5e-6))
    >>> certificates.best.name, bool(certificates.best.rate > 1.1 * certificates["descent-ball"].rate)
    ('descent-path', True)
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
    return replace(certificate, knots=knots(inner, _rates(shrunk, start, step_size)))


DESCENTS = (xu_2023, descent_ball, descent_path)
"""The theorems on gradient descent: of a network, a loss and a step size."""


def greatest_step(network: Network, loss: Loss | None) -> float | None:
    """The greatest step size that one of DESCENTS certifies, to a hundredth of 2 / (K |T|); None where none is."""
    start = _start(network, loss)
    small = network.core if isinstance(network, CompressedNetwork) else network
    assert isinstance(small, LinearNetwork)
    norm = network.scale**2 * max(float(np.linalg.norm(P, 2) * np.linalg.norm(Q, 2)) for P, Q in small.grams)
    if start is None or not norm:
        return None
    low, most = 0.0, 2 / (float(start.K or 0.0) * norm)
    for theorem in DESCENTS:  # each from where the one before ends: the last costs most
        high = most
        while high - low > PRECISION * most:
            middle = 0.5 * (low + high)
            low, high = (middle, high) if theorem(network, loss, middle).applies else (low, middle)
    return low or None


def _start(network: Network, loss: Loss | None) -> Start | None:
    """Of a loss under A1 with a smoothness; None of any other."""
    start = Start.of(network, loss)
    return start if start is not None and start.K else None


def _too_large(name: str, step_size: float) -> Certificate:
    return refused(name, f"a step size of {step_size:.3g} is not certified: the weights may move too far")


def _rates(alphas: np.ndarray, start: Start, step_size: float) -> np.ndarray:
    return np.asarray(-2 * np.log1p(-0.5 * step_size * start.gamma * alphas) / step_size)


def _certified(name: str, alpha: float, start: Start, step_size: float, radius: float) -> Certificate:
    alpha *= 1 - 64 * EPS
    rate = float(_rates(np.array(alpha), start, step_size))
    return Certificate(name, True, alpha, rate=rate, excess=start.gamma * start.e**2 / 4, radius=radius, discrete=True)


def _within(around: Ball, start: Start, step_size: float) -> tuple[float, float] | None:
    """(R, kappa sigma(R)^2) for the least R that keeps gradient descent inside; None where there is none."""
    K, size = float(start.K or 0.0), _size(start, start.e)
    for place, (r, sigma) in enumerate(zip(around.radii, around.sigmas, strict=True)):
        if around.integrals[place] < start.e:  # kappa is at most 1
            continue
        norm = around.greatest + float(around.change(float(r)))
        kept = kappa(step_size, K, norm**2, around.lipschitz(float(r) + step_size * norm * size), size)
        if kept <= 0 or sigma <= 0:
            return None
        if around.integrals[place] >= start.e / kept:
            return float(r), kept * float(sigma) ** 2
    return None


def _size(start: Start, e: float) -> float:
    """||E|| at most."""
    return sqrt(float(start.K or 0.0) * start.gamma / 2) * e


@np.errstate(over="ignore", invalid="ignore")
def _travel(
    weights: Moving, around: Ball, start: Start, step_size: float
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """(e, kappa lambda, how far the weights move) along the clock; None where the weights may move too far."""
    e, cap, K, gone, radius = start.e, start.cap, float(start.K or 0.0), 0.0, 0.0
    beta = weights.greatest(weights.y)
    kept = kappa(step_size, K, beta, around.lipschitz(step_size * sqrt(beta) * _size(start, e)), _size(start, e))
    if not (weights.least > 0 and kept > 0):
        return None
    h = e / (weights.least * STEPS)
    known = [(e, kept * weights.least)]
    for _ in range(MOST_STEPS):
        if e <= 0:
            levels, alphas = np.array(known).T
            return levels, np.minimum.accumulate(alphas), radius

        def rough(U: np.ndarray, e: float = e, gone: float = gone) -> tuple[float, float]:
            """(beta, H) during this step of the clock, and from there to the next iterate."""
            beta = weights.greatest(U)
            return beta, around.lipschitz(gone + sqrt(beta) * (h + step_size * _size(start, e)))

        def disturbed(U: np.ndarray, e: float = e, rough: Rough = rough) -> float:
            beta, H = rough(U)
            return H * step_size * sqrt(beta) * _size(start, e)

        product = None if cap is None else (cap[0] + cap[1] * e) / weights.c
        least = weights.after(h, product, disturbed)
        beta, H = rough(weights.y)
        kept = kappa(step_size, K, beta, H, _size(start, e))
        if not (least > 0 and kept > 0):
            return None
        alpha, last = kept * least, e
        e, gone = max(e - h * alpha, 0.0), gone + sqrt(beta) * h
        radius += (last - e) / (kept * sqrt(least))
        known.append((e, alpha))
    return None
