"""A rate from how far the flow can take the norms of products of the layers, before the loss is gone: any depth.

The certificate, ours. Let c be the scale, K_l = A_l A_l^T, G_l = B_l^T B_l with A_l = W_1 ... W_{l-1} and
B_l = W_{l+1} ... W_L, T = c^2 sum_l K_l (x) G_l, E = grad f(W), and gamma the constant of A1,
||E||_F^2 >= gamma (f - f*). In the clock ds = ||E||_F dt and with e = 2 sqrt((f - f*) / gamma):

1. d(f - f*)/dt = -<T E, E> <= -lambda_min(T) ||E||_F^2 and ||E||_F >= sqrt(gamma (f - f*)) give
   de/ds <= -lambda_min(T).
2. lambda_min is 1-Lipschitz in the spectral norm, so
   d lambda_min(T)/ds >= -c^2 sum_l (|dK_l/ds| |G_l| + |K_l| |dG_l/ds|),
   and all norms on the right have upper bounds Y(s) that solve a system of ordinary differential equations (words.py).
   So do those of each lambda_min(K_l) and lambda_min(G_l), and T >= c^2 sum_l lambda_min(K_l) lambda_min(G_l): the
   greater of the two lower bounds of lambda_min(T) counts.
3. |W| c <= |W*| + sqrt(2 (f - f*) / mu) where f is mu-strongly convex with minimiser W*: a cap on one of these norms.

Integrated from s = 0 until the upper bound of e is 0, nothing is left to move the weights: the last lower bound of
lambda_min(T) holds for all times. Explicit Euler steps with U >= y + h c F(U) keep it rigorous: F is non-decreasing, so
no y(s) leaves [y, U] within the step. What is left is rounding, which is taken off at the end.

Along the way the bound steepens the curve: while e is above e_{k+1}, lambda_min(T) >= lambda_{k+1}, the bound at the
end of step k, so the time from e_k to e_{k+1} is at most 2 log(e_k / e_{k+1}) / (gamma lambda_{k+1}). And with
||theta'|| = ||J^T E||, T = J J^T, the length of the path in the weights is at most
sum_k (e_k - e_{k+1}) / sqrt(lambda_{k+1}), for ||theta'|| dt <= -de / sqrt(lambda_min(T)): the radius.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import sqrt

import numpy as np

from flowsim.compression import CompressedNetwork
from flowsim.losses import Loss, constants_of, excess, minimiser_of, minimum_of
from flowsim.network import LinearNetwork, Network
from flowsim.rates.certificate import Certificate, along_trajectory, refused
from flowsim.rates.layer_norms import layer_norms
from flowsim.rates.words import EPS, Words

NAME = "path"
LONGEST = 9
"""Words of at most min(2 L - 1, LONGEST) letters are followed: more cost more than they bring."""
STEPS = 96
"""Steps that the loss would take if lambda_min(T) stayed; it falls, and there are more."""
MOST_STEPS = 16 * STEPS
ITERATIONS = 4
"""Of the fixed-point iteration for U, before it is raised until U >= y + h c F(U)."""
RAISED = 1.05


@dataclass(frozen=True)
class Travel:
    """The bounds along the clock: e (K + 1) falls from e(0) to 0, lambda_min(T) (K + 1) is at least `least`."""

    e: np.ndarray
    least: np.ndarray

    @property
    def radius(self) -> float:
        """How far the weights can move, over all layers (Frobenius)."""
        return float((-np.diff(self.e) / np.sqrt(self.least[1:])).sum())

    def knots(self, gamma: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(t, x): L(t) - f* <= (L(0) - f*) exp(-x) at the times t, between them by straight lines of x."""
        inner = self.e[self.e > 0]
        falls = 2 * np.log(inner[:-1] / inner[1:])
        times = np.cumsum(falls / (gamma * self.least[1 : len(inner)]))
        return (0.0, *times.tolist()), (0.0, *np.cumsum(falls).tolist())


def path(network: Network, loss: Loss | None = None) -> Certificate:
    """lambda_min(T(t)) >= alpha along the whole flow, any depth, shape and scale, from the norms of products of layers.

    Ours, not in [MVM23]; proof and equations at the head of this module. It needs A1 (f - f* known), and uses A2 where
    it is there. It says the more the less the loss can move the weights: wide networks, small losses. `radius` bounds
    how far they move, and `bound` falls faster than at the constant rate, the more so early on.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.fan_out((5, 300, 500, 1), seed=0))
    >>> certificates = fs.certify(problem)
    >>> tightness = certificates["path"].alpha / certificates.lambda_min_T
    >>> bool(tightness > 0.9 > 4 * certificates["theorem-2"].alpha / certificates.lambda_min_T / 1.2)
    True
    """
    constants = None if loss is None else constants_of(loss)
    known = constants is not None and constants.dominance == "quadratic" and constants.gamma
    if loss is None or constants is None or not known or minimum_of(loss) is None:
        return refused(NAME, "it needs a loss with assumption A1 and a known least value")
    norms = layer_norms(network)
    if norms is None:
        return refused(NAME, "it needs the norms of the hidden layers, which are not at hand")
    gamma = float(constants.gamma or 0.0)
    first = 2 * sqrt(max(float(excess(loss, network.product)), 0.0) / gamma) * (1 + 8 * EPS)
    cap = None
    minimiser = minimiser_of(loss)
    if constants.mu > 0 and minimiser is not None:
        cap = float(np.linalg.norm(minimiser, 2)) * (1 + 64 * EPS), sqrt(gamma / (2 * constants.mu))
    with np.errstate(over="ignore", invalid="ignore"):
        found = travel(network, norms, first, cap)
    if found is None:
        return along_trajectory(NAME, network, loss, 0.0, "the loss can move the weights too far")
    certificate = along_trajectory(NAME, network, loss, float(found.least[-1]))
    if certificate.rate is None:
        return certificate
    return replace(certificate, knots=found.knots(gamma), radius=found.radius)


def travel(
    network: Network, norms: list[float], first: float, cap: tuple[float, float] | None
) -> Travel | None:
    """The bounds until e, `first` at the start, is 0; None where lambda_min(T) may be 0 before.

    cap: (|W*|, r) with |W| <= |W*| + r e.
    """
    longest = min(2 * network.depth - 1, LONGEST)
    small = network.at_least(longest).core if isinstance(network, CompressedNetwork) else network
    assert isinstance(small, LinearNetwork)
    words, c = Words(small.weights, norms, longest), network.scale
    K, G = words.ends
    whole = words.places.get(tuple(range(-network.depth, 0)), words.places.get(tuple(range(1, network.depth + 1))))
    y, e = words.start, first
    top = c**2 * float((_at(y, K) * _at(y, G)).sum())
    blurred = (8 * (network.dims[0] * network.dims[-1] + 4) + MOST_STEPS) * EPS * top
    least = network.lambda_min_T - blurred
    ends = [_least_eigenvalues(small, side, blurred / c**2) for side in ("prefixes", "suffixes")]
    known = [(e, least)]
    if least <= 0:
        return None
    h = max(first, 0.0) / (least * STEPS)
    for _ in range(MOST_STEPS):
        if e <= 0:
            break
        U, F = _majorant(words, y, c * h, whole, None if cap is None else (cap[0] + cap[1] * e) / c)
        k, g = _at(U, K), _at(U, G)
        dk, dg = (np.where(places < 0, 0.0, c * F[places]) for places in (K, G))
        least -= h * c**2 * float((dk * g + k * dg).sum())
        ends = [np.maximum(ends[0] - h * dk, 0.0), np.maximum(ends[1] - h * dg, 0.0)]
        now = max(least, c**2 * float((ends[0] * ends[1]).sum()) - blurred)
        if not now > 0:
            return None
        y, e = U, e - h * now
        known.append((max(e, 0.0), now))
    else:
        return None
    found = np.array(known)
    return Travel(found[:, 0], np.minimum.accumulate(found[:, 1]))


def _majorant(
    words: Words, y: np.ndarray, h: float, whole: int | None, cap: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """(U, F(U)) with U >= y + h F(U)."""

    def growth(U: np.ndarray) -> np.ndarray:
        if whole is not None and cap is not None:
            U = U.copy()
            U[whole] = min(U[whole], cap)
        return words.growth(U)

    U = y
    for _ in range(ITERATIONS):
        U = y + h * growth(U)
    U = y + RAISED * (U - y)
    F = growth(U)
    while not (y + h * F <= U).all():
        U = y + RAISED * np.maximum(U - y, h * F)
        F = growth(U)
        if not np.isfinite(F).all():
            break
    return U, F


def _at(norms: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The norms at these places; 1 at -1."""
    return np.where(places < 0, 1.0, norms[places])


def _least_eigenvalues(network: LinearNetwork, side: str, blurred: float) -> np.ndarray:
    """Lower bounds of those of K_l ("prefixes") or of G_l ("suffixes"), l = 1 .. L."""
    found = []
    for factor in getattr(network, side):
        wide = factor if side == "prefixes" else factor.T
        full = wide.shape[1] >= wide.shape[0]
        found.append(float(np.linalg.svd(wide, compute_uv=False)[-1]) ** 2 - blurred if full else 0.0)
    return np.maximum(found, 0.0)
