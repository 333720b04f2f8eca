"""What a simulation returns: a status, the loss and the invariants at the saved times, the weights at any time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flowsim.checks import as_count, as_number
from flowsim.display import Shown, Table
from flowsim.dynamics import Motion
from flowsim.errors import InputError
from flowsim.losses import UnknownLoss, minimum_of
from flowsim.methods import Method
from flowsim.methods.citations import citation
from flowsim.network import LinearNetwork, unflatten
from flowsim.problem import Problem
from flowsim.rates import Certificates, certify
from flowsim.runs import derived, series, words
from flowsim.runs.record import Record
from flowsim.runs.tail import Tail
from flowsim.values import Layer, Value, sealed

if TYPE_CHECKING:
    import xarray

    from flowsim.progress import Progress
    from flowsim.runs.global_error import GlobalError

CHEAP_FROM = 10**6
"""From this many weights on certificates are those of a few products with the hidden layers."""


def as_trajectory(value: object) -> Trajectory:
    """The value if it is a Trajectory. Raises InputError."""
    if not isinstance(value, Trajectory):
        raise InputError(
            f"Argument `trajectory` must be a Trajectory, but it is of type {type(value).__name__}; simulate returns"
            " one, load reads one from its file."
        )
    return value


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory(Record, Value, Shown):
    """A simulated gradient flow or gradient descent: a frozen value, whose arrays are read-only.

    Record tells its parts. Times are in the
    flow's own unit, 1 / [loss per squared weight]; for gradient descent t = k step_size.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss(np.ones((5, 1))), fs.fan_out((5, 60, 80, 1), seed=0))
    >>> flow = fs.simulate(problem, t1=0.05)
    >>> weights = flow.weights_at(0.02)  # between two saved times: integrated again from the last one
    >>> np.allclose(flow.product_at(0.02), np.linalg.multi_dot(weights))
    True
    >>> bool(flow.imbalance_drift.max() < 1e-6), bool(abs(flow.energy_residual).max() < 1e-6)
    (True, True)
    """

    @property
    def loss(self) -> np.ndarray:
        """(S): L at the saved times."""
        return derived.loss(self, self.excess)

    @property
    def step_time(self) -> np.ndarray:
        """The ends of all accepted steps, 0 included."""
        return self.steps.time

    @property
    def step_loss(self) -> np.ndarray:
        """L at step_time."""
        return derived.loss(self, self.steps.excess)

    @cached_property
    def imbalance_drift(self) -> np.ndarray:
        """(S, L-1): ||D_l(t) - D_l(0)||_F / max(1, ||D_l(0)||_F)."""
        return sealed(derived.imbalance_drift(self))

    @property
    def error_estimate(self) -> np.ndarray:
        """The estimated compression error of the weights at the saved times; 0 where the full weights were used."""
        return self.reduction.error

    @property
    def weights_change(self) -> float:
        """||W(t) - W(0)||_F over all layers at the end."""
        return float(np.linalg.norm(self.checkpoints.states[-1] - self.checkpoints.states[0]))

    @property
    def energy_residual(self) -> np.ndarray:
        """(E(0) - E(t) - dissipated) / E(0) at step_time: 0 for the exact flow; NaN of a dynamics without `power`.

        Of gradient flow E = L - f* and what is dissipated is the integral of ||grad L||_F^2. Weight decay x adds
        x/2 ||W||_F^2 to E and x W to the gradient; other dynamics have their own (`Steps`). For gradient descent the
        integral is the sum of step_size ||grad L||_F^2: the residual is of order step_size.
        """
        return derived.energy_residual(self)

    def weights_at(self, t: float) -> list[np.ndarray]:
        """[W_1, ..., W_L] at time t: a checkpoint where there is one, else integrated again from the last one before t.

        Raises InputError when t lies outside the simulated interval, or when the loss was not saved with a loaded
        trajectory and t is not a checkpoint.
        """
        compressed, state = self.reduction.network, self._state_at(float(t))
        if compressed is None:
            return unflatten(state, self.problem.network.dims)
        weights, kept = self.problem.network.weights, float(self.kept(t)[0])
        return [compressed.lift(state, layer, W, kept) for layer, W in enumerate(weights, start=1)]

    def layer_at(self, t: float, layer: int) -> Layer:
        """W_l(t) alone, l = layer = 1 .. L. Raises InputError as weights_at."""
        compressed, state = self.reduction.network, self._state_at(float(t))
        if not 1 <= as_count(layer, "layer") <= self.problem.network.depth:
            raise InputError(f"Argument `layer` must be at most {self.problem.network.depth}, but it is {layer}.")
        if compressed is None:
            return unflatten(state, self.problem.network.dims)[layer - 1]
        return compressed.lift(state, layer, self.problem.network.weights[layer - 1], float(self.kept(t)[0]))

    def network_at(self, t: float) -> LinearNetwork:
        """The network at time t, with its full weights; its origin: the time, the method, and whose weights moved."""
        network = self.problem.network
        origin = {"time": float(t), "method": str(self.method), "started_from": network.origin}
        return LinearNetwork(tuple(self.weights_at(t)), network.scale, origin)

    @property
    def simulated(self) -> Problem:
        """The problem that was integrated: the compressed network's core where the width was compressed."""
        compressed = self.reduction.network
        return self.problem if compressed is None else compressed.problem(self.problem.loss, self.problem.weight_decay)

    @property
    def simulated_motion(self) -> Motion:
        """The problem that was integrated under its dynamics."""
        return Motion(self.simulated, self.dynamics)

    def core_at(self, t: float) -> LinearNetwork:
        """The network that was integrated, at time t: small where the width was compressed, of the same product."""
        network = self.simulated.network
        return network.with_weights(unflatten(self._state_at(float(t)), network.dims))

    def product_at(self, t: float) -> np.ndarray:
        """W(t) = scale W_1(t) ... W_L(t), as integrated."""
        return self.core_at(t).product

    @cached_property
    def products(self) -> np.ndarray:
        """(C, n, m): W(t) at checkpoints.times, as integrated."""
        return sealed(self.simulated.products(self.checkpoints.states))

    @cached_property
    def singular_values(self) -> np.ndarray:
        """(C, min(n, m)): the singular values of W(t), descending, at checkpoints.times."""
        return sealed(np.linalg.svd(self.products, compute_uv=False))

    def sharpness(self) -> np.ndarray:
        """(C): the largest eigenvalue of the Hessian of L in all weights (with weight decay x of L + x/2 ||W||_F^2), at
        checkpoints.times, in 1 / [time].

        Gradient descent is stable about a minimum where step_size times it is below 2 (Cohen et al., ICLR 2021). NaN
        where the Hessian is not finite.

        Where the width was compressed it is that of the directions in the levels of the bases, which the run does not
        leave. For two layers and a convex f these have the largest eigenvalue of all (proved in runs/series.py). For
        more, levels are added until it changes by 1e-6 of itself (with three layers it only grows). Two things can be
        missed: what the ends never reach, where the bases are complete; and, where weights are small far from a
        minimum, some 1e-3 to 1e-2 of it in very wide networks, since the eigenvector spreads over more levels than are
        tried.

        Raises InputError where the loss was not saved with a loaded run.

        Scalar weights, L = (w_1 w_2 - y)^2 / 2: at the minimum it is w_1^2 + w_2^2.

        >>> import flowsim as fs
        >>> problem = fs.Problem(fs.SquaredLoss([[3.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
        >>> fs.simulate(problem, t1=0.1).sharpness()[0].round(9).item()
        10.0
        """
        return series.sharpness(self)

    def kernel_distance(self) -> np.ndarray:
        """(C): ||T(t) - T(0)||_F / ||T(0)||_F at checkpoints.times: how far training is from that of a fixed kernel.

        T is the operator of LinearNetwork.apply_T, the tangent kernel of the product. Not a number where T(0) = 0.

        >>> import flowsim as fs
        >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[2.0]], [[0.0]])))
        >>> flow = fs.simulate(problem, t1=9.0)  # T = w_1^2 + w_2^2, w_1^2 - w_2^2 = 4 and w_1 w_2 -> 2
        >>> flow.kernel_distance().round(6)[[0, -1]].tolist()  # sqrt(4^2 + 4 2^2) / 4 - 1
        [0.0, 0.414214]
        """
        return series.kernel_distance(self)

    def effective_rank(self) -> np.ndarray:
        """(C): exp(-sum_k p_k log p_k), p_k = sigma_k / (sigma_1 + sigma_2 + ...), of the singular values of W(t).

        From 1 (rank one) to min(n, m) (all equal); 0 where W = 0. Roy, Vetterli, "The effective rank: a measure of
        effective dimensionality", EUSIPCO 2007, Definition 1.

        >>> import numpy as np
        >>> import flowsim as fs
        >>> problem = fs.Problem(fs.SquaredLoss(np.diag([4.0, 0.0])), fs.balanced((2, 2, 2), scale=0.5, seed=0))
        >>> fs.simulate(problem, t1=20.0).effective_rank()[-1].round(1).item()
        1.0
        """
        return series.effective_rank(self)

    def layer_singular_values(self, layer: int) -> np.ndarray:
        """(C, min(h_{l-1}, h_l)): the singular values of W_l(t), descending, at checkpoints.times, l = layer = 1 .. L.

        W_1 and W_L are known whatever was compressed; a hidden layer is lifted to its full width. Raises InputError
        where layer is no number from 1 to L, and for a hidden layer that is not at hand as an array: of a network drawn
        or loaded in compressed form, or with operators as layers.

        >>> import flowsim as fs
        >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[3.0]], [[1.0]])))
        >>> fs.simulate(problem, t1=0.1).layer_singular_values(1)[0].tolist()
        [3.0]
        """
        return series.layer_singular_values(self, layer)

    def alignment(self) -> np.ndarray:
        """(C, L-1): |<v_l, u_{l+1}>| at checkpoints.times, v_l the top right singular vector of W_l(t), u_{l+1} the
        top left one of W_{l+1}(t).

        1 where the layers are aligned, as they come to be on separable data: Ji, Telgarsky, "Gradient descent aligns
        the layers of deep linear networks", ICLR 2019. It means nothing where the largest singular value of a layer is
        not simple. Raises InputError for three layers or more that are not all at hand as arrays: of a network drawn or
        loaded in compressed form, or with operators as layers.

        >>> import flowsim as fs
        >>> problem = fs.Problem(fs.SquaredLoss([[2.0], [1.0]]), fs.balanced((2, 4, 3, 1), seed=0))
        >>> fs.simulate(problem, t1=0.1).alignment()[-1].round(6).tolist()
        [1.0, 1.0]
        """
        return series.alignment(self)

    def series(self) -> xarray.Dataset:
        """All of the series above as a Dataset over checkpoint_time: sharpness, kernel_distance, effective_rank, and
        alignment and layer_singular_values_l where the layers are at hand as arrays.

        Raises InputError where the loss was not saved with a loaded run.

        >>> import numpy as np
        >>> import flowsim as fs
        >>> problem = fs.Problem(fs.SquaredLoss(np.ones((2, 2))), fs.fan_in((2, 4, 2), seed=0))
        >>> sorted(fs.simulate(problem, t1=0.1, save_points=3).series().data_vars)[:3]
        ['alignment', 'effective_rank', 'kernel_distance']
        """
        from flowsim.runs.dataset import series_of

        return series_of(self)

    def _state_at(self, t: float) -> np.ndarray:
        end = float(self.time[-1])
        if not 0.0 <= t <= end * (1 + 1e-12):
            raise InputError(f"Argument `t` must lie in [0, {end:g}], the simulated interval, but it is {t:g}.")
        times = self.checkpoints.times
        index = max(int(np.searchsorted(times, t, side="right")) - 1, 0)
        if t == times[index] or t >= end:
            return self.checkpoints.states[index]
        if isinstance(self.problem.loss, UnknownLoss):
            raise InputError(
                f"Argument `t` must be one of the {len(times)} checkpoints, but it is {t:g}: the file does not hold the"
                " user's own loss; pass it to load(path, loss=...)."
            )
        integrator = self.method.start(self.simulated_motion, float(times[index]), self.checkpoints.whole(index), end)
        while True:
            segment = integrator.advance()
            if segment.times[-1] >= t:
                return segment.evaluate(np.array([t]))[0, : self.checkpoints.states.shape[1]]

    @cached_property
    def dataset(self) -> xarray.Dataset:
        """All of it as an xarray Dataset with long names; `step_*` variables are known at every step."""
        from flowsim.runs.dataset import dataset_of

        return dataset_of(self)

    @cached_property
    def resolved_until(self) -> float | None:
        """Until when L - f* is that of the flow, not round-off and error; None where it is to the end."""
        return derived.resolved_until(self)

    @property
    def rate_seen(self) -> float | None:
        """log((L(0) - f*) / (L(t) - f*)) / t, t the end, or resolved_until; None where the loss did not change."""
        return derived.rate_seen(self, self.resolved_until)

    @cached_property
    def certificates(self) -> Certificates:
        """All certificates of the problem, cheap for a wide network; of the network alone where there is no loss.

        Of a run that was recorded elsewhere they are those of the flow with the same start.
        """
        problem = self.problem
        subject = problem.network if isinstance(problem.loss, UnknownLoss) else problem
        return certify(
            subject, method=self._certified_method, dynamics=self.dynamics, cheap=problem.network.size > CHEAP_FROM
        )

    @property
    def _certified_method(self) -> Method | None:
        """What certificates are of: of weights that were recorded elsewhere, the flow from them."""
        return None if self.method.kind.recorded else self.method

    def certify_tail(self, t: float | None = None) -> Tail:
        """What is proved of all times after t, the end unless given, from the weights there: `Tail`.

        Raises InputError where the loss was not saved with a loaded run, or t lies outside the simulated interval.

        >>> import flowsim as fs
        >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.fan_in((1, 5, 5, 5, 1), seed=0))
        >>> flow = fs.simulate(problem, t1=30.0, stop_loss=1e-6)
        >>> flow.certify_tail().share > 0.9 > flow.certify_tail(0.0).share
        True
        """
        if isinstance(self.problem.loss, UnknownLoss):
            raise InputError("The run was loaded without its own loss; pass it to load(path, loss=...).")
        at = float(self.time[-1]) if t is None else float(t)
        core = self.core_at(at)
        there = Problem(self.problem.loss, core, weight_decay=self.problem.weight_decay)
        wide = core.size > CHEAP_FROM
        found = certify(there, method=self._certified_method, dynamics=self.dynamics, cheap=wide)
        best = found.best if found.best is not None and found.best.rate else None
        radii = [entry.radius for entry in found if entry.radius is not None]
        return Tail(at, best, found.lambda_min_T, min(radii, default=None))

    def global_error(self, *, progress: Progress | bool | None = None, wall_limit: float | None = None) -> GlobalError:
        """How far the weights and the loss are from those of the exact flow with the same start: an estimate.

        A tolerance is a bound on the error of one step; this is what the errors of all steps have come to. The flow is
        solved again from the start, in the compressed form that was integrated, by a method fit for the problem whose
        tolerance is 1e-2 to 1e-3 of the run's (`runs.tight.Tight`), and the two are compared; the estimated error of
        the compression is added. Where the run is as tight as float64 allows, it is an order of magnitude.

        progress(t, excess, initial_excess) is called at the checkpoints; True shows a bar. wall_limit: seconds.

        Raises InputError for gradient descent, and for a run that was loaded without its own loss.
        """
        from flowsim.runs.global_error import global_error

        if wall_limit is not None:
            as_number(wall_limit, "wall_limit", above=0.0)
        return global_error(self, progress, wall_limit)

    @property
    def nbytes(self) -> int:
        """The memory that the record takes, the problem's weights apart."""
        arrays = [self.time, self.excess, self.gradient_norm, self.imbalance_change, self.error_estimate]
        arrays += [*vars(self.steps).values(), *vars(self.checkpoints).values()]
        return sum(array.nbytes for array in arrays)

    def shown(self) -> Table:
        """What there is to say of the run, in a few lines."""
        step = np.diff(self.step_time)
        sizes = f"steps {step.min():.3g} to {step.max():.3g}" if len(step) else "no step"
        unknown = isinstance(self.problem.loss, UnknownLoss)
        certified, end = words.certified(self, self.certificates.best, unknown), words.number(float(self.time[-1]))
        first, known = words.number(float(self.loss[0])), minimum_of(self.problem.loss) is not None
        fallen = f" (L - f* to {words.ratio(self)} of its start)" if known else f" ({words.ratio(self)})"
        tail, recorded = words.tail(self), self.method.kind.recorded
        certified += " for the flow from its start" if recorded and self.certificates.best else ""
        return Table(
            [
                ("status", f"{self.status}: {self.message}"),
                ("network", f"dims {self.problem.network.dims}, {self.problem.network.size} weights"),
                ("width", f"{self.reduction.reason}{self._compression()}"),
                ("method", str(self.method)),
                *([] if self.motion.is_plain else [("dynamics", words.obeyed(self))]),
                (
                    "work",
                    f"{self.stats['steps']} steps, {self.stats['rhs_evaluations']} right-hand sides, {sizes},"
                    f" {self.stats['seconds']:.3g} s, {self.nbytes / 2**20:.3g} MiB",
                ),
                ("loss", f"{first} to {words.final_loss(self, unknown)} at t = {end}{fallen}"),
                ("rate", f"seen {words.mean_rate(self)}; certified {certified}"),
                *([] if tail is None else [("tail", tail)]),
                ("drift", words.drifts(self) or "no law is known"),
            ]
        )

    def _compression(self) -> str:
        compressed = self.reduction.network
        if compressed is None:
            return ""
        return f", widths {compressed.core.dims[1:-1]}, estimated error {words.compression_error(self)}"

    def citation(self) -> str:
        """What to cite for this run, as BibTeX: the paper, flowsim, the method's library and formula."""
        return citation(self.method)

    def save(self, path: str | Path) -> None:
        """Write NetCDF to the path: dataset, checkpoints, loss, and the configuration as one JSON attribute.

        The file is written beside and renamed. Raises InputError when the place cannot be written.
        """
        from flowsim.runs.encoding import write

        write(self, path)
