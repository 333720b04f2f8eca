"""stochastic_paths: many paths at once, compiled: descent's steps as a scan, the flow by diffrax's Euler-Maruyama."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from flowsim.checks import as_count, as_number, check_memory
from flowsim.compression.control import choose_model
from flowsim.dynamics import Motion
from flowsim.errors import InputError, NumericalFailure
from flowsim.losses.samples import Drawn
from flowsim.methods import GradientDescent
from flowsim.methods.descent_steps import batches_of
from flowsim.methods.jax_support import LossArgument, Tree, as_argument, float64
from flowsim.network import backpropagate, flatten, unflatten
from flowsim.problem import Problem, gradients
from flowsim.progress import Count, counting
from flowsim.runs.recorder import growth_limit
from flowsim.runs.stopping import save_times
from flowsim.stochastic.flow import Noise, StochasticFlow, applied, factors, noise_of, squares
from flowsim.stochastic.result import StochasticPaths
from flowsim.values import Array

AT_ONCE = 250
"""Paths that are walked side by side."""
FINER = 4
"""Steps of Euler-Maruyama for each step of descent, unless asked for otherwise."""
CHUNK = 256
"""Steps of descent that are compiled into one scan."""


class Model(NamedTuple):
    """What the compiled functions are given."""

    loss: LossArgument
    scale: Array
    decay: Array
    noise: Noise


def stochastic_paths(
    problem: Problem,
    subject: StochasticFlow | GradientDescent,
    *,
    t1: float,
    paths: int = 100,
    seed: int = 0,
    save_points: int | Sequence[float] | np.ndarray = 33,
    step_size: float | None = None,
    progress: Count | bool | None = None,
) -> StochasticPaths:
    """Many paths of stochastic training from one start, with the drift of every D_l that is to be expected.

    subject: GradientDescent with batch_size or label_noise (without momentum), each path with a seed of its own, or the
    StochasticFlow that is its limit. t1, save_points: as for simulate. paths: how many; path p of descent has the seed
    that the p-th of SeedSequence(seed).generate_state gives, kept in StochasticPaths.seeds. step_size: that of
    Euler-Maruyama, which diffrax takes; a quarter of the subject's by default. Its Brownian motion is a function of the
    seed alone. progress(done, paths) is called after each batch of paths; True shows a bar.

    Two layers are compressed, exactly; deeper networks are walked in full width.

    The prediction of a step of descent is what it does to D_l in the mean, given the weights:
    D_l(k+1) = (1 - x eta)^2 D_l(k) + eta^2 (G_l^T G_l - G_{l+1} G_{l+1}^T + Q_l), G of the whole loss, Q_l of its
    noise; it takes each batch for drawn from all samples: independent_batches. (Those of a pass are not, and far less
    noisy.) That of the flow: dD_l/dt = -2 x D_l + eta Q_l, from which Euler-Maruyama is off by O(its step).

    Raises InputError for arguments out of range, descent without noise or with momentum, and what the loss does not
    allow; NumericalFailure where a path diverges.

    Label noise on scalar weights: the mean drift of w_1^2 - w_2^2, that of its prediction, and its standard error.

    >>> import numpy as np
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[1.0]]), fs.LinearNetwork(([[1.5]], [[0.5]])))
    >>> flow = fs.stochastic_paths(problem, fs.StochasticFlow(0.05, label_noise=0.5), t1=10.0, paths=500)
    >>> bool(np.allclose(flow.changes[0][-1], flow.predictions[0][-1], rtol=0.05)), bool(flow.drift[-1, 0] > 0.2)
    (True, True)
    """
    if not isinstance(problem, Problem):
        raise InputError(f"Argument `problem` must be a Problem, but it is of type {type(problem).__name__}.")
    if not isinstance(subject, StochasticFlow | GradientDescent):
        raise InputError(
            "Argument `subject` must be a GradientDescent with batches or label noise, or a StochasticFlow, but it is"
            f" of type {type(subject).__name__}."
        )
    if isinstance(subject, GradientDescent) and (not subject.stochastic or subject.carries):
        raise InputError("Argument `subject` must have batch_size or label_noise, and no momentum.")
    begun, count = clock.perf_counter(), as_count(paths, "paths")
    t1, seed = as_number(t1, "t1", above=0.0), as_count(seed, "seed", least=0)
    descent = subject if isinstance(subject, GradientDescent) else GradientDescent(subject.step_size)
    core, width = _narrowed(problem, subject)
    kind, noise = noise_of(problem.loss, subject.batch_size, subject.label_noise)
    times = save_times(descent, t1, save_points) if descent is subject else _even(t1, save_points)
    check_memory(8 * len(times) * count, "paths", f"{count} of them", "ask for fewer")
    seeds = tuple(int(s) for s in np.random.SeedSequence(seed).generate_state(count))
    model = Model(
        as_argument(core.stacked_loss), np.array(core.network.scale, float), np.array(core.weight_decay, float), noise
    )
    finer = subject.step_size / FINER if step_size is None else as_number(step_size, "step_size", above=0.0)
    sums = _Sums([(len(times), h, h) for h in core.network.dims[1:-1]])
    losses, limit = [], growth_limit(problem)
    with counting(progress, "path") as tell, float64():
        for start in range(0, count, AT_ONCE):
            some = seeds[start : start + AT_ONCE]
            if isinstance(subject, GradientDescent):
                states, told = _descended(core, subject, model, kind, times, some)
            else:
                states, told = _flowed(core, subject, model, kind, times, some, finer)
            losses.append(_excess(core, states, limit))
            sums.add(core, states, told)
            if tell is not None:
                tell(start + len(some), count)
    changes, predictions, deviations = sums.statistics()
    seconds = clock.perf_counter() - begun
    return StochasticPaths(
        subject, times, np.concatenate(losses), changes, predictions, deviations, seeds, width, seconds
    )


def _narrowed(problem: Problem, subject: StochasticFlow | GradientDescent) -> tuple[Problem, str]:
    """What is walked: the core of two layers, exact; else the full weights."""
    method = subject if isinstance(subject, GradientDescent) else GradientDescent(subject.step_size, label_noise=1.0)
    model = choose_model(Motion(problem), method, "auto")
    return model.problem, model.reason


def _even(t1: float, save_points: int | Sequence[float] | np.ndarray) -> np.ndarray:
    """The times to save at: of a flow."""
    from flowsim.methods import Scipy

    return save_times(Scipy(), t1, save_points)


def _excess(core: Problem, states: np.ndarray, limit: float) -> np.ndarray:
    """(P, S): L - f*. Raises NumericalFailure where it is above the limit, or no number."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = core.excess(core.products(states))
        stayed = found <= limit
    if not stayed.all():
        lost = int((~stayed.all(axis=1)).sum())
        raise NumericalFailure(f"Of {len(found)} paths {lost} diverged; lower step_size, or the noise.")
    return found


class _Sums:
    """Means over paths of the change of every D_l, of its prediction, and of the square of their difference."""

    def __init__(self, shapes: Sequence[tuple[int, ...]]) -> None:
        self.change, self.told, self.gap, self.square = ([np.zeros(shape) for shape in shapes] for _ in range(4))
        self.count = 0

    def add(self, core: Problem, states: np.ndarray, told: Sequence[np.ndarray]) -> None:
        """States (P, S, size) with the predictions (P, S, h, h) of D_l."""
        weights, start = unflatten(states, core.network.dims), core.network.weights
        for k, ((W, V), (W0, V0)) in enumerate(zip(pairwise(weights), pairwise(start), strict=True)):
            D0 = W0.T @ W0 - V0 @ V0.T
            change, prediction = W.mT @ W - V @ V.mT - D0, told[k] - D0
            self.change[k] += change.sum(0)
            self.told[k] += prediction.sum(0)
            self.gap[k] += (change - prediction).sum(0)
            self.square[k] += ((change - prediction) ** 2).sum(0)
        self.count += len(states)

    def statistics(self) -> tuple[tuple[np.ndarray, ...], ...]:
        """(mean changes, mean predictions, standard deviations of the difference)."""
        n = self.count
        changes, told = (tuple(total / n for total in totals) for totals in (self.change, self.told))
        spread = tuple(
            np.sqrt(np.maximum(square - gap**2 / n, 0.0) / (n - 1)) if n > 1 else np.full_like(gap, np.nan)
            for square, gap in zip(self.square, self.gap, strict=True)
        )
        return changes, told, spread


def _imbalances(weights: Sequence[Array]) -> list[Array]:
    return [W.T @ W - V @ V.T for W, V in pairwise(weights)]


def _descended(
    core: Problem, method: GradientDescent, model: Model, kind: Any, times: np.ndarray, seeds: Sequence[int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """States (P, S, size) of descent at times of its steps, and the predictions of D_l (P, S, h, h)."""
    wanted = method.clock.nearest(times).astype(int)
    drawn = [batches_of(method, core.loss, seed) for seed in seeds]
    start, walk = [np.asarray(W) for W in core.network.weights], _descend(drawn[0].kind, kind)
    begin = [np.stack([W] * len(seeds)) for W in (*start, *_imbalances(start))]
    carry, kept = begin, [begin]
    for first, last in pairwise(_chunks(wanted)):
        sizes = method.clock.sizes(first, last - first)
        batches = [[one.at(k) for k in range(first, last)] for one in drawn]
        names = batches[0][0].parts
        parts = {name: np.stack([[one.parts[name] for one in row] for row in batches], axis=1) for name in names}
        factor = np.stack([[one.factor for one in row] for row in batches], axis=1)
        carry = walk(carry, sizes, Drawn(parts, factor), model)
        if last in wanted:
            kept.append([np.asarray(part) for part in carry])
    depth = len(start)
    states = np.stack([flatten(parts[:depth]) for parts in kept], axis=1)
    return states, [np.stack([parts[depth + layer] for parts in kept], axis=1) for layer in range(depth - 1)]


def _chunks(wanted: np.ndarray) -> list[int]:
    """Numbers of steps from 0 on, those wanted among them, CHUNK apart at most."""
    found = [0]
    for k in wanted[1:].tolist():
        while k - found[-1] > CHUNK:
            found.append(found[-1] + CHUNK)
        found.append(k)
    return found


@cache
def _descend(batch: Any, kind: Any) -> Callable[..., Tree]:
    """Steps of descent with batches of losses of class `batch`; kind: of Noise.terms."""
    import jax

    def walk(carry: Tree, sizes: Tree, drawn: Tree, model: Model) -> Tree:
        def one(parts: Tree, now: Tree) -> Tree:
            eta, batches = now

            def step(path: Tree, at: Drawn) -> Tree:
                depth = (len(path) + 1) // 2
                weights, told = path[:depth], path[depth:]
                loss = model.loss.loss
                W, whole = backpropagate(loss, weights, model.scale)
                _, taken = gradients(at.loss(batch), weights, model.scale, model.decay)
                A, B = factors(weights, model.scale, *W.shape)
                Q = squares(model.noise.terms(kind, W), A, B)
                kept = (1 - eta * model.decay) ** 2
                means = [G.T @ G - H @ H.T + q for (G, H), q in zip(pairwise(whole), Q, strict=True)]
                moved = [V - eta * G for V, G in zip(weights, taken, strict=True)]
                return [*moved, *(kept * C + eta**2 * mean for C, mean in zip(told, means, strict=True))]

            return jax.vmap(step)(parts, batches), None

        return jax.lax.scan(one, carry, (sizes, drawn))[0]

    return jax.jit(walk)


def _flowed(
    core: Problem,
    subject: StochasticFlow,
    model: Model,
    kind: Any,
    times: np.ndarray,
    seeds: Sequence[int],
    finer: float,
) -> tuple[np.ndarray, list[np.ndarray]]:
    """States (P, S, size) of the stochastic flow at the times, and the predictions of D_l (P, S, h, h)."""
    start = [np.asarray(W) for W in core.network.weights]
    begin = [*start, *_imbalances(start)]
    steps = max(1, round(float(times[-1]) / finer))
    check_memory(8 * steps, "step_size", f"{steps} steps", "enlarge it")
    solve = _solver(kind, steps)
    eta = np.array(subject.step_size)
    found = [np.asarray(part) for part in solve(begin, np.array(seeds, np.uint32), times, eta, model)]
    depth = len(start)
    return flatten(found[:depth]), found[depth:]


@cache
def _solver(kind: Any, steps: int) -> Callable[..., Tree]:
    """Euler-Maruyama by diffrax, of the weights and of C_l with dC_l/dt = -2 x C_l + step_size Q_l beside them."""
    import diffrax
    import jax
    import jax.numpy as jnp
    import lineax

    def solve(begin: Tree, seeds: Tree, times: Tree, eta: Tree, model: Model) -> Tree:
        depth = (len(begin) + 1) // 2

        def drift(t: Tree, path: Tree, _: Tree) -> Tree:
            weights, told = path[:depth], path[depth:]
            W, G = gradients(model.loss.loss, weights, model.scale, model.decay)
            Q = squares(model.noise.terms(kind, W), *factors(weights, model.scale, *W.shape))
            return [*(-g for g in G), *(-2 * model.decay * C + eta * q for C, q in zip(told, Q, strict=True))]

        def diffusion(t: Tree, path: Tree, _: Tree) -> Tree:
            weights = path[:depth]
            W = model.scale * jnp.linalg.multi_dot(weights)
            terms = model.noise.terms(kind, W)
            A, B = factors(weights, model.scale, *W.shape)

            def moved(normals: Tree) -> Tree:
                N = jnp.sqrt(eta) * applied(terms, normals)
                layers = [-a.T @ N @ b.T for a, b in zip(A, B, strict=True)]
                return [*layers, *(jnp.zeros_like(C) for C in path[depth:])]

            return lineax.FunctionLinearOperator(moved, shapes)

        shapes = [jax.ShapeDtypeStruct((len(U),), jnp.float64) for U, _, _ in _shapes(kind, begin, model)]

        def one(seed: Tree) -> Tree:
            brownian = diffrax.UnsafeBrownianPath(shape=shapes, key=jax.random.PRNGKey(seed))  # steps are of one size
            terms = diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, brownian))
            return diffrax.diffeqsolve(
                terms,
                diffrax.Euler(),
                0.0,
                times[-1],
                times[-1] / steps,
                begin,
                saveat=diffrax.SaveAt(ts=times),
                adjoint=diffrax.ForwardMode(),
                max_steps=steps + 16,
            ).ys

        return jax.vmap(one)(seeds)

    return jax.jit(solve)


def _shapes(kind: Any, begin: Tree, model: Model) -> list[tuple[Array, Array, Array | None]]:
    """The terms of the noise at the start, for their sizes."""
    import jax.numpy as jnp

    n, m = begin[0].shape[0], begin[(len(begin) - 1) // 2].shape[1]
    return model.noise.terms(kind, jnp.zeros((n, m)))
