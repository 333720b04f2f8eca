"""diffrax's solvers and step-size controllers, driven in jitted segments that carry the controller's state.

Values inside a step are ends of shorter steps of the method itself, for implicit methods under its own error control:
the interpolants of diffrax, and any through derivatives, lose the stiff components. The dissipated energy, the
integral of the power, comes from the method's own quadrature: its stages and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flowsim.dynamics import Dynamics, Motion, split
from flowsim.errors import InputError
from flowsim.losses import excess
from flowsim.methods.jax_support import LossArgument, Tree, as_argument, float64
from flowsim.methods.steps import DENSE_JACOBIAN_LIMIT, Counts, IntegrationFailure, Segment
from flowsim.network import hessian_product, product
from flowsim.problem import gradients

if TYPE_CHECKING:
    from flowsim.methods.diffrax import Diffrax

SEGMENT_NUMBERS = 2**21
"""A segment keeps the state after each of its steps; it is as long as this many numbers allow."""
LONGEST_SEGMENT = 64
EVALUATED_AT_ONCE = 64
"""Dense output is compiled for up to this many times at once."""
MOST_INNER_STEPS = 64
"""Dense output of an implicit method may take so many steps within one of the run's."""


class Traced(NamedTuple):
    """What the compiled functions are given: an Equation whose loss, scale and weight decay are traced."""

    argument: LossArgument
    scale: Tree
    weight_decay: Tree
    dynamics: Dynamics
    depth: int

    def gradients(self, weights: Sequence[Tree]) -> tuple[Tree, list[Tree]]:
        """The product, and the gradients of the objective."""
        return gradients(self.argument.loss, weights, self.scale, self.weight_decay)

    def hessian_product(self, weights: Sequence[Tree], directions: Sequence[Tree]) -> list[Tree]:
        """The derivative of the gradients along the directions."""
        found = hessian_product(self.argument.loss, weights, directions, self.scale)
        return [H + self.weight_decay * V for H, V in zip(found, directions, strict=True)]

    def product(self, state: Sequence[Tree]) -> Tree:
        """W of a state."""
        return product(state[: self.depth], self.scale)


def traced(motion: Motion) -> Traced:
    """The motion, for the compiled functions; no decay stays a number that is not traced, and costs nothing."""
    network, decay = motion.problem.network, motion.problem.weight_decay
    loss, scale = as_argument(motion.problem.stacked_loss), np.array(network.scale, float)
    return Traced(loss, scale, np.array(decay) if decay else 0.0, motion.dynamics, network.depth)


def check_traced(args: Traced, state: Sequence[np.ndarray]) -> None:
    """Refuse a dynamics of one's own whose velocity jax cannot trace, or that has other shapes then. InputError."""
    import jax

    dynamics = args.dynamics
    if dynamics.built_in:
        return
    shapes = [jax.ShapeDtypeStruct(W.shape, np.float64) for W in state]
    try:
        with float64():
            found = jax.eval_shape(partial(dynamics.velocity, args), jax.ShapeDtypeStruct((), np.float64), shapes)
        fits = [V.shape for V in found] == [W.shape for W in state]
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(
            f"Argument `method` must not be one of diffrax's for {dynamics.name}, whose velocity jax cannot trace"
            f" ({type(error).__name__}: {reason}); use dop853, or radau where it is stiff, or jax.numpy alone in it."
        ) from error
    if not fits:
        raise InputError(f"Argument `dynamics` must return arrays of the state's shapes to jax too: {dynamics.name}.")


class Carry(NamedTuple):
    """What one segment hands to the next."""

    t: Tree
    t_next: Tree
    y: Tree
    solver_state: Tree
    controller_state: Tree


class DiffraxSteps:
    """A method of diffrax from (t, state) to t1, in float64 whatever the user's jax setting.

    longest: how many steps a segment may hold. Raises InputError when an implicit method would need a dense Jacobian
    of more than DENSE_JACOBIAN_LIMIT weights.
    """

    def __init__(
        self, motion: Motion, method: Diffrax, t: float, state: np.ndarray, t1: float, longest: int = LONGEST_SEGMENT
    ) -> None:
        if method.kind.dense_jacobian and state.size > DENSE_JACOBIAN_LIMIT:
            raise InputError(
                f"Argument `method` must be explicit for {state.size} weights, but {method.name} forms a dense Jacobian"
                f" (at most {DENSE_JACOBIAN_LIMIT} weights); use tsit5, rkc or gauss-legendre."
            )
        self.motion, self.method, self.t, self.t1 = motion, method, t, t1
        self.length = min(longest, segment_steps(state.size))
        self.attempts, self.state = 0, np.array(state)
        self.counts = Counts(rhs_evaluations=None, rejected_steps=0)
        self.end = np.array(t1, float)
        self.args = traced(motion)
        check_traced(self.args, motion.split(self.state))
        step = None if method.step_size is None else np.array(min(method.step_size, t1 - t), float)
        with float64():
            self.solver, self.controller = solver_of(method), controller_of(method)
            self.carry = compiled().begin(
                self.solver, self.controller, np.array(t, float), self.end, motion.split(self.state), step, self.args
            )

    def advance(self) -> Segment:
        """Up to self.length accepted steps."""
        with float64():
            self.carry, record, accepted, attempts, healthy = compiled().segment(
                self.solver, self.controller, self.carry, self.end, self.args, self.length, None
            )
            count = int(accepted)
            if count == 0:
                reason = "no step size was accepted" if bool(healthy) else "the implicit stages were not solved"
                raise IntegrationFailure(f"{self.method.name} stopped at t = {self.t:.6g}: {reason}.")
            ends, energy, products = (np.asarray(record[name])[:count] for name in ("t", "energy", "product"))
            dense = _Dense(self, np.append(self.t, ends), self.state, record["state"])
        self._count(int(attempts), count)
        self.t, self.state = float(ends[-1]), dense.states[count - 1]
        return Segment(dense.times, products, energy, dense)

    def _count(self, attempts: int, accepted: int) -> None:
        self.attempts += attempts
        self.counts.rejected_steps = (self.counts.rejected_steps or 0) + attempts - accepted
        if self.method.name == "Euler":
            self.counts.rhs_evaluations = self.attempts
        elif self.method.kind.explicit:  # how often an implicit method iterates diffrax does not tell
            tableau = self.solver.tableau
            self.counts.rhs_evaluations = 1 + self.attempts * (tableau.num_stages - int(tableau.fsal))

    def move(self, state: np.ndarray) -> None:
        """Go on from another state at the time reached."""
        self.state = np.array(state)
        with float64():
            self.carry = compiled().restart(self.solver, self.carry, self.motion.split(self.state), self.args)


class _Dense:
    """The states at any times of a segment: at the ends of steps as computed, elsewhere from the step's start."""

    def __init__(self, steps: DiffraxSteps, times: np.ndarray, first: np.ndarray, record: Tree) -> None:
        self.solver, self.controller = steps.solver, steps.controller
        self.dims, self.args = steps.motion.problem.network.dims, steps.args
        self.times, self.first, self.record, self.states = times, first, record, np.asarray(record)

    def __call__(self, t: np.ndarray) -> np.ndarray:
        steps = np.clip(np.searchsorted(self.times, t, side="left") - 1, 0, len(self.times) - 2)
        found = self.states[steps]
        found[t == self.times[0]] = self.first
        inner = np.flatnonzero((t != self.times[0]) & (t != self.times[steps + 1]))
        for start in range(0, len(inner), EVALUATED_AT_ONCE):
            some = inner[start : start + EVALUATED_AT_ONCE]
            found[some] = self._between(steps[some], t[some])
        return found

    def _between(self, steps: np.ndarray, t: np.ndarray) -> np.ndarray:
        where = np.zeros((EVALUATED_AT_ONCE, 3))
        where[: len(t)] = np.stack([self.times[steps], self.times[steps + 1], t], axis=1)
        which = np.zeros(EVALUATED_AT_ONCE, int)
        which[: len(t)] = steps
        arguments = self.first, self.record, which, where, np.array(len(t)), self.dims, self.args
        with float64():
            return np.asarray(compiled().evaluate(self.solver, self.controller, *arguments))[: len(t)]


def segment_steps(size: int) -> int:
    """How many steps a segment of a state of that size may hold."""
    return max(1, min(LONGEST_SEGMENT, SEGMENT_NUMBERS // size))


def solver_of(method: Diffrax) -> Tree:
    """The solver of diffrax."""
    import diffrax

    solver = getattr(diffrax, method.name)
    if method.name == "Euler":
        return solver()
    if method.kind.explicit:
        return solver(scan_kind="lax")
    from flowsim.methods.stage_newton import MOST_ITERATIONS, stage_newton

    rtol, atol = (method.rtol, method.atol) if method.step_size is None else (1e-10, 1e-12)
    return solver(root_finder=stage_newton(rtol, atol), root_find_max_steps=MOST_ITERATIONS)


def nodes_of(tableau: Tree) -> np.ndarray:
    """c_1 = 0, c_2, ..., c_s of a tableau, which diffrax has without the first."""
    return np.concatenate([[0.0], tableau.c])


def controller_of(method: Diffrax) -> Tree:
    """The step-size controller of diffrax."""
    import diffrax

    if method.step_size is not None:
        return diffrax.ConstantStepSize()
    names = ("rtol", "atol", "pcoeff", "icoeff", "dcoeff")
    return diffrax.PIDController(**{name: np.array(getattr(method, name), float) for name in names})


class Compiled(NamedTuple):
    """The pieces of a trajectory that are compiled."""

    begin: Callable[..., Carry]
    restart: Callable[..., Carry]
    segment: Callable[..., Tree]
    evaluate: Callable[..., Tree]
    shorter: Callable[..., Tree]


@cache
def compiled() -> Compiled:
    """Compiled once for each solver, shape and loss."""
    import diffrax
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    from jax import lax

    def velocity(t: Tree, y: Tree, args: Tree) -> Tree:
        return args.dynamics.velocity(args, t, y)

    terms = diffrax.ODETerm(velocity)

    def error_order(solver: Tree) -> Tree:
        return solver.error_order(terms) if isinstance(solver, diffrax.AbstractAdaptiveSolver) else None

    def energy(solver: Tree, dense: Tree, t: Tree, h: Tree, args: Tree) -> Tree:
        """The integral of the power over a step of length h from t: h sum_i w_i b(t + c_i h) ||dW/dt_i||_F^2; for the
        Euler methods b ||W_1 - W_0||_F^2 / h."""
        depth, per_h = args.depth, 1.0 / jnp.where(h > 0, h, 1.0)
        if "k" not in dense:
            moved = zip(dense["y0"][:depth], dense["y1"][:depth], strict=True)
            share = args.dynamics.power(t)
            return 0.0 * h if share is None else per_h * share * sum(jnp.sum((new - old) ** 2) for old, new in moved)
        tableau = solver.tableau
        share = args.dynamics.power(t + h * nodes_of(tableau))
        squares = sum(jnp.sum(k**2, axis=(1, 2)) for k in dense["k"][:depth])  # of h dW/dt
        return 0.0 * h if share is None else per_h * (jnp.asarray(tableau.b_sol) @ (share * squares))

    @eqx.filter_jit
    def begin(solver: Tree, controller: Tree, t: Tree, t1: Tree, y: Tree, step: Tree, args: Tree) -> Carry:
        if isinstance(controller, diffrax.ConstantStepSize):  # whose own steps divide t1 - t into equal parts
            t_next, state = t + step, step
        else:
            t_next, state = controller.init(terms, t, t1, y, step, args, solver.func, error_order(solver))
        t_next = jnp.minimum(t_next, t1)
        return Carry(t, t_next, y, solver.init(terms, t, t_next, y, args), state)

    @eqx.filter_jit
    def restart(solver: Tree, carry: Carry, weights: Tree, args: Tree) -> Carry:
        return carry._replace(y=weights, solver_state=solver.init(terms, carry.t, carry.t_next, weights, args))

    @eqx.filter_jit
    def segment(solver: Tree, controller: Tree, carry: Carry, t1: Tree, args: Tree, length: int, level: Tree) -> Tree:
        """Up to `length` accepted steps, fewer where t1 is reached or (if a level is given) L - f* <= level."""
        order = error_order(solver)

        def attempt(carry: Carry) -> Tree:
            y, error, dense, solver_state, result = solver.step(
                terms, carry.t, carry.t_next, carry.y, args, carry.solver_state, False
            )
            healthy = diffrax.is_successful(result)
            # a trial step that overflows is rejected; its state would make the error's scale, and the next step, NaN
            finite = jnp.all(jnp.stack([jnp.isfinite(W).all() for W in y]))
            y = [jnp.where(finite, new, old) for new, old in zip(y, carry.y, strict=True)]
            healthy &= finite
            if error is not None:
                error = jax.tree.map(lambda e: jnp.where(jnp.isnan(e) | ~healthy, jnp.inf, e), error)
            if isinstance(controller, diffrax.ConstantStepSize):
                controller_state = carry.controller_state
                keep, t = True, jnp.where(healthy, carry.t_next, carry.t)
                t_next = t + controller_state
            else:
                keep, t, t_next, _, controller_state, _ = controller.adapt_step_size(
                    carry.t, carry.t_next, carry.y, y, args, error, order, carry.controller_state
                )
            keep = jnp.asarray(keep) & healthy
            t = jnp.minimum(t, t1)
            near = t_next > t1 - 100 * jnp.finfo(jnp.float64).eps * jnp.abs(t1)
            t_next = jnp.where(near, jnp.where(keep, t1, t + 0.5 * (t1 - t)), t_next)
            select = lambda new, old: jax.tree.map(lambda a, b: jnp.where(keep, a, b), new, old)  # noqa: E731
            state = Carry(t, t_next, select(y, carry.y), select(solver_state, carry.solver_state), controller_state)
            entry = {
                "t": t,
                "energy": energy(solver, dense, carry.t, carry.t_next - carry.t, args),
                "product": args.product(y),
                "state": jnp.concatenate([jnp.ravel(W) for W in y]),
            }
            return state, entry, keep, healthy

        shapes = eqx.filter_eval_shape(attempt, carry)[1]
        record = jax.tree.map(lambda s: jnp.zeros((length, *s.shape), s.dtype), shapes)

        def going(loop: Tree) -> Tree:
            carry, _, accepted, attempts, _ = loop
            moving = (carry.t < t1) & (carry.t_next > carry.t)
            if level is not None:
                moving &= excess(args.argument.loss, args.product(carry.y)) > level
            return moving & (accepted < length) & (attempts < 50 + 10 * length)

        def body(loop: Tree) -> Tree:
            carry, record, accepted, attempts, _ = loop
            carry, entry, keep, healthy = attempt(carry)
            # a rejected attempt is written too, and overwritten by the next one
            record = jax.tree.map(lambda r, e: r.at[accepted].set(e), record, entry)
            return carry, record, accepted + keep, attempts + 1, healthy

        return lax.while_loop(going, body, (carry, record, jnp.asarray(0), jnp.asarray(0), jnp.asarray(True)))

    def shorter(solver: Tree, y0: Tree, start: Tree, t: Tree, dims: Sequence[int], args: Tree) -> Tree:
        """The state at t by an explicit method from (start, y0), a shorter step, as accurate as the whole one; and the
        integral of the power along it."""
        weights = split(y0, dims)
        state = solver.init(terms, start, t, weights, args)
        weights, _, dense, *_ = solver.step(terms, start, t, weights, args, state, False)
        spent = energy(solver, dense, start, t - start, args)
        return jnp.concatenate([jnp.ravel(W) for W in weights]), spent

    def adapted(
        solver: Tree, controller: Tree, y0: Tree, start: Tree, t: Tree, dims: Sequence[int], args: Tree
    ) -> Tree:
        """The state at t by an implicit method from (start, y0): one shorter step, more where its error asks for them.

        An interpolant through derivatives would multiply the error of the stiff components by h |lambda|.
        """
        begun = begin(solver, controller, start, t, split(y0, dims), t - start, args)
        carry, *_ = segment(solver, controller, begun, t, args, MOST_INNER_STEPS, None)
        return jnp.where(carry.t == t, jnp.concatenate([jnp.ravel(W) for W in carry.y]), jnp.nan)

    @eqx.filter_jit
    def evaluate(
        solver: Tree,
        controller: Tree,
        first: Tree,
        record: Tree,
        steps: Tree,
        where: Tree,
        count: Tree,
        dims: Sequence[int],
        args: Tree,
    ) -> Tree:
        def at(y0: Tree, where: Tree) -> Tree:
            start, _, t = where
            if isinstance(solver, diffrax.AbstractERK | diffrax.Euler):
                return shorter(solver, y0, start, t, dims, args)[0]
            return adapted(solver, controller, y0, start, t, dims, args)

        def put(k: Tree, states: Tree) -> Tree:
            step = steps[k]
            return states.at[k].set(at(jnp.where(step == 0, first, record[step - 1]), where[k]))

        return lax.fori_loop(0, count, put, jnp.zeros((len(steps), len(first))))

    return Compiled(begin, restart, segment, evaluate, shorter)
