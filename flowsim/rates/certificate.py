"""What a theorem says about one problem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from flowsim.display import Shown, Table
from flowsim.errors import InputError
from flowsim.losses import Loss, constants_of, excess, minimum_of
from flowsim.network import Network
from flowsim.values import Json

Scope = Literal["trajectory", "instant"]
Law = Literal["exponential", "hyperbolic"]
ASSUMPTIONS = {"quadratic": "A1 (Polyak-Lojasiewicz)", "linear": "A1' (||grad f||_F >= gamma (f - f*))"}
OVERFLOW = "its numbers overflow float64: scale weights and target down"
TIED = 1e-9
"""Rates that are apart by less count as equal."""
TINY = 1e-280
ROUNDING = 64 * float(np.finfo(float).eps)
"""What the last sums and products of a bound, of nonnegative terms, may have gained, relative to it."""


@dataclass(frozen=True, repr=False)
class Certificate(Shown):
    """A lower bound alpha on lambda_min(T), T the operator of LinearNetwork.apply_T, and the rate that follows from it.

    alpha is a lower bound in the face of rounding too: what the arithmetic leaves uncertain is taken off.
    applies: whether the theorem's assumptions on network and loss are known to hold; reason: where not, which fails;
    where they do, a remark. alpha may be there without a rate: then the network is as the theorem asks, the loss not.
    scope "trajectory": lambda_min(T(t)) >= alpha for all t; "instant": at the present weights only.
    law "exponential": L(t) - f* <= excess exp(-rate t), rate = alpha gamma, under assumption A1 of [MVM23],
    ||grad f||_F^2 >= gamma (f - f*): gamma = 2 for SquaredLoss, for LeastSquares twice the square of the least nonzero
    singular value of X;
    law "hyperbolic": L(t) - f* <= excess / (1 + excess rate t), rate = alpha gamma^2, under A1',
    ||grad f||_F >= gamma (f - f*): exponential and logistic loss. excess: L(0) - f*.
    name: of the theorem, as `certify` calls it.
    radius: how far the weights can move, ||W(t) - W(0)||_F over all layers, where the theorem bounds it.
    discrete: whether it is one on gradient descent with a step size, at its steps; else it is on the flow.
    knots: (t, x) with L(t) - f* <= excess exp(-x) at the times t, where the theorem gives more than a constant rate.

    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
    >>> flow, best = fs.simulate(problem, t1=0.5), fs.certify(problem).best
    >>> bool((flow.excess <= best.bound(flow.time) + 1e-9).all())
    True
    """

    name: str
    applies: bool
    alpha: float | None = None
    scope: Scope = "trajectory"
    law: Law = "exponential"
    rate: float | None = None
    reason: str | None = None
    excess: float | None = None
    radius: float | None = None
    discrete: bool = False
    knots: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,), (0.0,))

    def bound(self, t: ArrayLike) -> np.ndarray:
        """The upper bound on L(t) - f* at the times t (t >= 0).

        Raises InputError when the certificate has no rate (see its reason).

        >>> import flowsim as fs
        >>> certificate = fs.Certificate("mine", True, alpha=2.0, rate=4.0, excess=1.0)
        >>> certificate.bound([0.0, 0.5]).round(4).tolist()  # exp(-4 t)
        [1.0, 0.1353]
        """
        if self.rate is None or self.excess is None:
            raise InputError(f"Certificate {self.name} has no rate and so no bound: {self.reason}")
        if self.law == "exponential":
            times, exponents = np.array(self.knots)
            when = np.asarray(t, float)
            with np.errstate(over="ignore"):
                beyond = self.rate * np.maximum(when - times[-1], 0.0)
            return self.excess * np.exp(-(np.interp(when, times, exponents) + beyond))
        return self.excess / (1 + self.excess * self.rate * np.asarray(t))

    def shown(self) -> Table:
        """What it says, in a few lines."""
        applies = "yes" if self.applies else "no"
        scope = "for all t >= 0" if self.scope == "trajectory" else "at these weights only"
        rows = [("certificate", self.name), ("applies", applies), ("alpha", _number(self.alpha))]
        if self.alpha is not None:
            rows[-1] = ("alpha", f"{_number(self.alpha)} <= lambda_min(T), {scope}")
        if self.rate is not None:
            falls = "exp(-rate t)" if self.law == "exponential" else "1 / (1 + excess rate t)"
            rows += [("rate", f"{self.rate:.6g}: L - f* <= excess {falls}"), ("excess", _number(self.excess))]
        if self.radius is not None:
            rows.append(("radius", f"{self.radius:.6g} >= ||W(t) - W(0)||_F"))
        if self.reason:
            rows.append(("remark", self.reason))
        return Table(rows)

    def to_json(self) -> Json:
        """A JSON-able record; what is not known is None."""
        return {
            "name": self.name,
            "applies": self.applies,
            "alpha": self.alpha,
            "scope": self.scope,
            "law": self.law,
            "rate": self.rate,
            "radius": self.radius,
            "reason": self.reason,
        }


def refused(name: str, reason: str, scope: Scope = "trajectory") -> Certificate:
    """A certificate that does not apply, and why."""
    return Certificate(name, False, scope=scope, reason=reason)


def at_this_instant(name: str, alpha: float) -> Certificate:
    """lambda_min(T) >= alpha at the present weights: no rate follows."""
    certain = _certain(alpha)
    if certain is None:
        return refused(name, OVERFLOW, scope="instant")
    return Certificate(name, True, certain, scope="instant", reason="it holds at these weights only")


def along_trajectory(
    name: str,
    network: Network,
    loss: Loss | None,
    alpha: float,
    remark: str | None = None,
    dominance: Literal["quadratic", "linear"] = "quadratic",
) -> Certificate:
    """lambda_min(T(t)) >= alpha for all t >= 0, and the rate that follows where f* is known and the loss is dominated
    so: alpha gamma under A1 ("quadratic"), alpha gamma^2 under A1' ("linear")."""
    certain = _certain(alpha)
    if certain is None:
        return refused(name, OVERFLOW)
    if loss is None:
        return Certificate(name, True, certain, reason="the rate needs a loss (a target or data), and there is none")
    constants = constants_of(loss)
    if constants is None or constants.dominance != dominance or constants.gamma is None:
        reason = f"assumption {ASSUMPTIONS[dominance]} is not known for this loss"
        return Certificate(name, False, certain, reason=reason)
    if minimum_of(loss) is None:
        return Certificate(name, False, certain, reason="the least value f* of this loss is not known (`minimum`)")
    rate = certain * constants.gamma ** (1 if dominance == "quadratic" else 2)
    first = float(excess(loss, network.product))
    if not (np.isfinite(rate) and np.isfinite(first)):
        return refused(name, OVERFLOW)
    law: Law = "exponential" if dominance == "quadratic" else "hyperbolic"
    remarks = "; ".join(part for part in (remark, constants.remark) if part) or None
    return Certificate(name, True, certain, law=law, rate=rate, excess=first, reason=remarks)


def _certain(alpha: float) -> float | None:
    """[alpha]_+ less what rounding may have added to its last sums and products; None where it is no number."""
    return max(float(alpha), 0.0) * (1 - ROUNDING) if np.isfinite(alpha) else None


@dataclass(frozen=True, repr=False)
class Certificates(Shown):
    """All theorems on one problem, in a fixed order; index by position or by name.

    Balanced weights have no imbalance to certify with; what is left is the margin of the product, and not even
    that where the flow runs into the saddle W = 0:
    dims: the layer sizes; lambda_min_T: the least eigenvalue of T at the weights; entries: the certificates.

    >>> import flowsim as fs
    >>> network = fs.LinearNetwork(([[1.0]], [[1.0]]))
    >>> for Y in (2.0, -1.0):
    ...     problem = fs.Problem(fs.SquaredLoss([[Y]]), network)
    ...     end = fs.simulate(problem, t1=30.0).product_at(30.0)
    ...     print(round(fs.certify(problem).best.rate, 9), end.round(3).item())
    4.0 2.0
    0.0 0.0
    """

    dims: tuple[int, ...]
    lambda_min_T: float
    entries: tuple[Certificate, ...]

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[Certificate]:
        return iter(self.entries)

    def __getitem__(self, key: int | str) -> Certificate:
        if isinstance(key, int):
            return self.entries[key]
        for entry in self.entries:
            if entry.name == key:
                return entry
        raise KeyError(f"no certificate {key!r}; known: {', '.join(entry.name for entry in self.entries)}")

    @property
    def best(self) -> Certificate | None:
        """The greatest rate (alpha where no loss is given) among those that hold along the whole trajectory; of those
        within TIED of it the one whose bound falls fastest."""
        valid = [c for c in self.entries if c.applies and c.scope == "trajectory" and c.alpha is not None]
        best = max(valid, key=lambda c: (c.rate if c.rate is not None else -1.0, c.alpha or 0.0), default=None)
        if best is None or not best.rate or best.rate < TINY:
            return best
        least, t = best.rate * (1 - TIED), 1 / best.rate
        return min((c for c in valid if c.rate and c.rate >= least), key=lambda c: float(c.bound(t)))

    def shown(self) -> Table:
        """A row a theorem."""
        rows = [
            (
                c.name,
                "yes" if c.applies else "no",
                _number(c.alpha),
                _number(c.rate),
                "-" if c.rate is None else c.law,
                c.scope if c.applies else "-",
                c.reason or "",
            )
            for c in self.entries
        ]
        return Table(
            rows,
            ("certificate", "applies", "alpha", "rate", "law", "holds for", "remark"),
            f"dims {self.dims}, lambda_min(T) = {self.lambda_min_T:.6g}",
            _told(self.best),
        )

    def to_json(self) -> Json:
        """The object that `flowsim certify --json` prints."""
        return {
            "dims": list(self.dims),
            "lambda_min_T": self.lambda_min_T,
            "best": None if self.best is None else self.best.to_json(),
            "certificates": [entry.to_json() for entry in self.entries],
        }


def _told(best: Certificate | None) -> str:
    if best is None:
        return "best: none applies"
    if best.rate is None:
        return f"best: {best.name}: alpha alone, a rate needs a target or data"
    return f"best: {best.name}" + ("" if best.rate else ", and it is 0: no rate is certified")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"
