"""What is proved of the rest of a flow or of gradient descent from the weights that a run has come to."""

from __future__ import annotations

from dataclasses import dataclass

from flowsim.display import Shown, Table
from flowsim.rates import Certificate
from flowsim.values import Json


@dataclass(frozen=True, repr=False)
class Tail(Shown):
    """The best certificate of the weights at `time`, for all that comes after: whatever was certified at t = 0.

    What is certified is the model that was simulated, from the weights that it came to: the exact flow (or gradient
    descent) from there, in the compressed form where the width was compressed.
    time: from when on; certificate: None where nothing is certified; lambda_min_T: at that time; radius: the distance
    of the limit from the weights at that time, over all layers (Frobenius), at most; None where none is proved.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((2, 2))), fs.fan_in((2, 5, 4, 2), seed=0))
    >>> tail = fs.simulate(problem, t1=90.0, stop_loss=1e-8).certify_tail()
    >>> bool(tail.share > 0.9), bool(tail.radius < 0.1)
    (True, True)
    """

    time: float
    certificate: Certificate | None
    lambda_min_T: float
    radius: float | None = None

    @property
    def rate(self) -> float | None:
        """The rate at which L - f* falls from there on, at least."""
        return None if self.certificate is None else self.certificate.rate

    @property
    def share(self) -> float:
        """alpha over lambda_min(T) at that time: 1 is all that a bound of it can say."""
        if self.certificate is None or not self.certificate.alpha or not self.lambda_min_T:
            return 0.0
        return self.certificate.alpha / self.lambda_min_T

    def words(self) -> str:
        """In one sentence."""
        if not self.rate:
            return f"from t = {self.time:.4g} on nothing is certified"
        limit = "" if self.radius is None else f", to a limit within {self.radius:.2g} of the weights there"
        return (
            f"from t = {self.time:.4g} on proved to converge at a rate of at least {self.rate:.4g}, {self.share:.1%} of"
            f" what lambda_min(T) is there{limit}"
        )

    def shown(self) -> Table:
        """The certificate, and from when on."""
        table = None if self.certificate is None else self.certificate.shown()
        return Table([*([] if table is None else table.rows), ("in words", self.words())])

    def to_json(self) -> Json:
        """The object that `flowsim certify RUN.nc --json` prints."""
        return {
            "time": self.time,
            "rate": self.rate,
            "share": self.share,
            "radius": self.radius,
            "lambda_min_T": self.lambda_min_T,
            "certificate": None if self.certificate is None else self.certificate.to_json(),
        }
