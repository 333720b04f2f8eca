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

Other lower bounds of lambda_min(T) along the flow may join in (combined.py): a floor that may rise as e falls. Once it
is above what the norms say it stays there, and e falls on it alone.

Along the way the bound steepens the curve: while e is above e_{k+1}, lambda_min(T) >= lambda_{k+1}, the bound during
step k, so the time from e_k to e_{k+1} is at most 2 log(e_k / e_{k+1}) / (gamma lambda_{k+1}). And with
||theta'|| = ||J^T E||, T = J J^T, the length of the path in the weights is at most
sum_k (e_k - e_{k+1}) / sqrt(lambda_{k+1}), for ||theta'|| dt <= -de / sqrt(lambda_min(T)): the radius.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt
from weakref import WeakKeyDictionary

import numpy as np

from flowsim.compression import CompressedNetwork
from flowsim.losses import Loss, constants_of, excess, minimiser_of, minimum_of
from flowsim.network import LinearNetwork, Network
from flowsim.rates.certificate import ASSUMPTIONS, Certificate, along_trajectory, refused
from flowsim.rates.layer_norms import layer_norms
from flowsim.rates.words import EPS, Words

NAME = "path"
LONGEST, LONGEST_DISTURBED = 11, 9
"""Words of at most min(2 L + 1, LONGEST) letters are followed: more cost more than they bring, the more so of descent,
whose words grow by a disturbance besides."""
STEPS = 96
"""Steps that the loss would take if lambda_min(T) stayed; it falls, and there are more."""
MOST_STEPS = 16 * STEPS
ITERATIONS = 4
"""Of the fixed-point iteration for U, before it is raised until U >= y + h c F(U)."""
RAISED = 1.05
FALL, FALLS = 0.8, 93
"""On a floor alone e falls by this factor a step, so often: to 1e-9 of what it was."""
GONE = 1500.0
"""exp(-GONE) is 0: the last rate counts until then."""
Floor = Callable[[float], float]
"""e -> a lower bound of lambda_min(T) from the time on at which the loss is at e; it does not fall as e falls."""
Cap = tuple[float, float]
"""(|W*|, r) with |W| <= |W*| + r e."""


def knots(e: np.ndarray, rates: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(t, x): L(t) - f* <= (L(0) - f*) exp(-x) at the times t, between them by straight lines of x, where the excess
    falls at rates[k] at least from e[k] to e[k + 1], at the last one from the last e on."""
    falls = np.append(2 * np.log(e[:-1] / e[1:]), GONE)
    with np.errstate(over="ignore"):
        times = np.cumsum(falls / rates)
    seen = np.isfinite(times)
    return (0.0, *times[seen].tolist()), (0.0, *np.cumsum(falls)[seen].tolist())


@dataclass(frozen=True)
class Travel:
    """The bounds along the clock: e (K + 1) falls from e(0); from e[k - 1] to e[k], and at k = 0, lambda_min(T) is at
    least least[k]; from the last e on, at least the last of least."""

    e: np.ndarray
    least: np.ndarray

    @property
    def alpha(self) -> float:
        """The least of all."""
        return float(self.least.min())

    @property
    def radius(self) -> float:
        """How far the weights can move, over all layers (Frobenius)."""
        return float((-np.diff(self.e, append=0.0) / np.sqrt(np.append(self.least[1:], self.least[-1]))).sum())

    def knots(self, gamma: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(t, x): L(t) - f* <= (L(0) - f*) exp(-x) at the times t, between them by straight lines of x."""
        inner = self.e[self.e > 0]
        return knots(inner, gamma * np.append(self.least[1 : len(inner)], self.least[-1]))


def path(network: Network, loss: Loss | None = None) -> Certificate:
    """lambda_min(T(t)) >= alpha along the whole flow, any depth, shape and scale, from the norms of products of layers.

    Ours, not in [MVM23]; proof and equations at the head of this module. It needs A1 (f - f* known), and uses A2 where
    it is there. It says the more the less the loss can move the weights: wide networks, small losses. `radius` bounds
    how far they move, and `bound` falls faster than at the constant rate, the more so early on. Under A1' (exponential
    and logistic loss) the weights travel without end, and nothing of this kind holds for all time.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.fan_out((5, 300, 500, 1), seed=0))
    >>> certificates = fs.certify(problem)
    >>> tightness = certificates["path"].alpha / certificates.lambda_min_T
    >>> bool(tightness > 0.9 > 4 * certificates["theorem-2"].alpha / certificates.lambda_min_T / 1.2)
    True
    """
    start = Start.of(network, loss)
    if start is None or loss is None:
        return refused(NAME, NEEDS)
    norms = layer_norms(network)
    if norms is None:
        return refused(NAME, "it needs the norms of the hidden layers, which are not at hand")
    return certified(NAME, network, loss, start, travel(network, norms, start.e, start.cap))


@dataclass(frozen=True)
class Start:
    """What a loss under A1 has at the start: gamma, e, under A2 the cap of the product's norm, and its smoothness K."""

    gamma: float
    e: float
    cap: Cap | None
    K: float | None

    @classmethod
    def of(cls, network: Network, loss: Loss | None) -> Start | None:
        """None where A1 or the least value is not known."""
        constants = None if loss is None else constants_of(loss)
        known = constants is not None and constants.dominance == "quadratic" and constants.gamma
        if loss is None or constants is None or not known or minimum_of(loss) is None:
            return None
        gamma = float(constants.gamma or 0.0)
        e = 2 * sqrt(max(float(excess(loss, network.product)), 0.0) / gamma) * (1 + 8 * EPS)
        minimiser = minimiser_of(loss)
        if not (constants.mu > 0 and minimiser is not None):
            return cls(gamma, e, None, constants.K)
        cap = float(np.linalg.norm(minimiser, 2)) * (1 + 64 * EPS), sqrt(gamma / (2 * constants.mu))
        return cls(gamma, e, cap, constants.K)


NEEDS = f"it needs a loss with assumption {ASSUMPTIONS['quadratic']} and a known least value"


def certified(name: str, network: Network, loss: Loss, start: Start, found: Travel | None) -> Certificate:
    """What follows of a travel."""
    if found is None:
        return along_trajectory(name, network, loss, 0.0, "the loss can move the weights too far")
    certificate = along_trajectory(name, network, loss, found.alpha)
    if certificate.rate is None:
        return certificate
    return replace(certificate, knots=found.knots(start.gamma), radius=found.radius)


@np.errstate(over="ignore", invalid="ignore")
def travel(
    network: Network, norms: list[float] | None, first: float, cap: Cap | None, floor: Floor | None = None
) -> Travel | None:
    """The bounds until e, `first` at the start, is 0 or on the floor alone; None where lambda_min(T) may be 0 before.

    norms: upper bounds of |W_l|; without them there is the floor alone.
    """
    floor = floor or (lambda e: 0.0)
    e = first
    weights = None if norms is None else Moving(network, norms)
    least = floor(e) if weights is None else max(weights.least, floor(e))
    known = [(e, least)]
    if weights is not None and least > 0:
        h = max(first, 0.0) / (least * STEPS)
        for _ in range(MOST_STEPS):
            if e <= 0 or weights.least <= floor(e):
                break
            size = None if cap is None else (cap[0] + cap[1] * e) / network.scale
            least = max(weights.after(h, size), floor(e))
            e = max(e - h * least, 0.0)
            known.append((e, least))
    while e > first * FALL**FALLS and floor(e) > 0:
        known.append((e * FALL, floor(e)))
        e *= FALL
    found = np.array(known)
    done = e <= first * FALL**FALLS
    return Travel(found[:, 0], found[:, 1]) if done and found[:, 1].min() > 0 else None


class Moving:
    """Upper bounds of the norms of words in the weights, and the lower bound of lambda_min(T) that follows, in time."""

    def __init__(self, network: Network, norms: list[float], disturbed: bool = False) -> None:
        small = network.at_least(_longest(network)).core if isinstance(network, CompressedNetwork) else network
        assert isinstance(small, LinearNetwork)
        self.words, self.c, depth = _words(network, small, norms, disturbed), network.scale, network.depth
        places = self.words.places
        self.whole = places.get(tuple(range(-depth, 0)), places.get(tuple(range(1, depth + 1))))
        self.y = self.words.start
        self.blurred = (8 * (network.dims[0] * network.dims[-1] + 4) + MOST_STEPS) * EPS * self.greatest(self.y)
        self.falling = network.lambda_min_T - self.blurred
        self.ends = [_least_eigenvalues(small, side, self.blurred / self.c**2) for side in ("prefixes", "suffixes")]

    @property
    def least(self) -> float:
        """The lower bound of lambda_min(T)."""
        return max(self.falling, self.c**2 * float((self.ends[0] * self.ends[1]).sum()) - self.blurred)

    def greatest(self, y: np.ndarray) -> float:
        """An upper bound of |T| from norms of words."""
        K, G = self.words.ends
        return self.c**2 * float((_at(y, K) * _at(y, G)).sum())

    def after(self, h: float, size: float | None, disturbed: Callable[[np.ndarray], float] | None = None) -> float:
        """least after a step h of the clock, during which |W| / c is at most `size`.

        disturbed: upper bounds of the norms -> eps, how fast each layer moves besides.
        """

        def growth(U: np.ndarray) -> np.ndarray:
            if self.whole is not None and size is not None:
                U = U.copy()
                U[self.whole] = min(U[self.whole], size)
            grown = self.c * self.words.growth(U)
            return grown if disturbed is None else grown + disturbed(U) * self.words.disturbance(U)

        U, F = _majorant(self.y, h, growth)
        if not (np.isfinite(U).all() and np.isfinite(F).all()):
            self.falling, self.ends = 0.0, [np.zeros_like(side) for side in self.ends]
            return 0.0
        K, G = self.words.ends
        k, g = _at(U, K), _at(U, G)
        dk, dg = (np.where(places < 0, 0.0, F[places]) for places in (K, G))
        self.falling -= h * self.c**2 * float((dk * g + k * dg).sum())
        self.ends = [np.maximum(self.ends[0] - h * dk, 0.0), np.maximum(self.ends[1] - h * dg, 0.0)]
        self.y = U
        return self.least


_KNOWN: WeakKeyDictionary[Network, dict[bool, Words]] = WeakKeyDictionary()
"""`path` and `combined` of a network need the same words."""


def _words(network: Network, small: LinearNetwork, norms: list[float], disturbed: bool) -> Words:
    known = _KNOWN.setdefault(network, {})
    if disturbed not in known:
        longest = min(_longest(network), LONGEST_DISTURBED) if disturbed else _longest(network)
        known[disturbed] = Words(small.weights, norms, longest, disturbed)
    return known[disturbed]


def _longest(network: Network) -> int:
    return min(2 * network.depth + 1, LONGEST)


def _majorant(
    y: np.ndarray, h: float, growth: Callable[[np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """(U, F(U)) with U >= y + h F(U), F the growth."""
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
