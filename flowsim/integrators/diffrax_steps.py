"""diffrax's solvers and step-size controllers, driven in jitted segments that carry the controller's state.

The state is the pair (weights, q) with dq/dt = ||grad L||_F^2, so that the dissipated energy comes from the method's
own quadrature; error control looks at the weights alone.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np

from flowsim.errors import InputError
from flowsim.integrators.base import DENSE_JACOBIAN_LIMIT, Counts, IntegrationFailure, Segment
from flowsim.integrators.jax_support import as_argument, float64
from flowsim.methods import Diffrax
from flowsim.network import backpropagate, product, unflatten
from flowsim.problem import Problem

SEGMENT_NUMBERS = 2**21
"""A segment keeps the stages of each of its steps; it is as long as this many numbers allow."""
LONGEST_SEGMENT = 32
EVALUATED_AT_ONCE = 16
"""Dense output is compiled for this many times at once."""
HERMITE = np.array(
    [
        [1, 0, 0, -10, 15, -6],
        [0, 1, 0, -6, 8, -3],
        [0, 0, 0.5, -1.5, 1.5, -0.5],
        [0, 0, 0, 10, -15, 6],
        [0, 0, 0, -4, 7, -3],
        [0, 0, 0, 0.5, -1, 0.5],
    ]
)
"""The quintic Hermite basis: value, first and second derivative at 0, then at 1; ascending powers."""


class Carry(NamedTuple):
    """What one segment hands to the next."""

    t: Any
    t_next: Any
    y: Any
    solver_state: Any
    controller_state: Any


class DiffraxSteps:
    """A method of diffrax from (t, state) to t1, in float64 whatever the user's jax setting.

    longest: how many steps a segment may hold. Raises InputError when an implicit method would need a dense Jacobian
    of more than DENSE_JACOBIAN_LIMIT weights.
    """

    def __init__(
        self, problem: Problem, method: Diffrax, t: float, state: np.ndarray, t1: float, longest: int = LONGEST_SEGMENT
    ) -> None:
        if not method.kind.explicit and state.size > DENSE_JACOBIAN_LIMIT:
            raise InputError(
                f"Argument `method` must be explicit for {state.size} weights, but {method.name} forms a dense Jacobian"
                f" (at most {DENSE_JACOBIAN_LIMIT} weights); use tsit5, rkc or gauss-legendre."
            )
        self.problem, self.method, self.t, self.t1 = problem, method, t, t1
        self.length = max(1, min(longest, SEGMENT_NUMBERS // (16 * state.size)))
        with float64():
            import jax.numpy as jnp

            self.end = jnp.asarray(t1, float)
            self.args = as_argument(problem.loss), jnp.asarray(problem.network.scale, float)
            self.solver, self.controller = _solver(method), _controller(method)
            weights = [jnp.asarray(W) for W in unflatten(np.array(state), problem.network.dims)]
            step = None if method.step_size is None else jnp.asarray(min(method.step_size, t1 - t), float)
            self.carry = _compiled().begin(
                self.solver,
                self.controller,
                jnp.asarray(t, float),
                self.end,
                (weights, jnp.zeros((), float)),
                step,
                self.args,
            )
        self.attempts = 0
        self.counts = Counts(rhs_evaluations=None, rejected_steps=0)

    def advance(self) -> Segment:
        """Up to self.length accepted steps."""
        compiled = _compiled()
        with float64():
            self.carry, record, accepted, attempts, healthy = compiled.segment(
                self.solver, self.controller, self.carry, self.end, self.args, self.length
            )
            count = int(accepted)
            times = np.concatenate([[self.t], np.asarray(record["t"])[:count]])
            energy = np.asarray(record["energy"])[:count]
            products = np.asarray(record["product"])[:count]
        if count == 0:
            reason = "no step size was accepted" if bool(healthy) else "the implicit stages were not solved"
            raise IntegrationFailure(f"{type(self.solver).__name__} stopped at t = {self.t:.6g}: {reason}.")
        self._count(int(attempts), count)
        dense = _Dense(self.solver, times, record["dense"], self.args, compiled.evaluate)
        self.t = float(times[-1])
        return Segment(times, products, energy, dense)

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
        with float64():
            import jax.numpy as jnp

            weights = [jnp.asarray(W) for W in unflatten(np.array(state), self.problem.network.dims)]
            self.carry = _compiled().restart(self.solver, self.carry, weights, self.args)


class _Dense:
    """The dense output of a segment, as flat NumPy states."""

    def __init__(self, solver: Any, times: np.ndarray, infos: Any, args: Any, evaluate: Any) -> None:
        self.solver, self.times, self.infos, self.args, self.compiled = solver, times, infos, args, evaluate

    def __call__(self, t: np.ndarray) -> np.ndarray:
        count = len(t)
        t = np.pad(t, (0, -count % EVALUATED_AT_ONCE), mode="edge")
        steps = np.clip(np.searchsorted(self.times, t, side="left") - 1, 0, len(self.times) - 2)
        where = np.stack([self.times[steps], self.times[steps + 1], t], axis=1)
        with float64():
            parts = [
                np.asarray(self.compiled(self.solver, self.infos, steps[some], where[some], self.args))
                for some in np.split(np.arange(len(t)), len(t) // EVALUATED_AT_ONCE)
            ]
        return np.concatenate(parts)[:count]


def _solver(method: Diffrax) -> Any:
    import diffrax

    solver = getattr(diffrax, method.name)
    if method.kind.explicit:
        return solver()
    # diffrax's own choice, one very cheap chord step, rejects most steps of this flow at tight tolerances
    import jax.numpy as jnp
    from optimistix import Chord

    rtol, atol = (method.rtol, method.atol) if method.step_size is None else (1e-10, 1e-12)
    tolerances = jnp.asarray([0.01 * rtol, 0.01 * atol], float)
    return solver(root_finder=Chord(*tolerances, _weights_norm))


def _controller(method: Diffrax) -> Any:
    import diffrax
    import jax.numpy as jnp

    if method.step_size is not None:
        return diffrax.ConstantStepSize()
    settings = {
        name: jnp.asarray(getattr(method, name), float) for name in ("rtol", "atol", "pcoeff", "icoeff", "dcoeff")
    }
    return diffrax.PIDController(**settings, norm=_weights_norm)


def _weights_norm(y: Any) -> Any:
    from optimistix import rms_norm

    return rms_norm(y[0])


class _Compiled(NamedTuple):
    begin: Any
    restart: Any
    segment: Any
    evaluate: Any


@cache
def _compiled() -> _Compiled:
    import diffrax
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    from jax import lax

    def velocity(t: Any, y: Any, args: Any) -> Any:
        argument, scale = args
        _, gradients = backpropagate(argument.loss, y[0], scale)
        return [-G for G in gradients], sum(jnp.vdot(G, G) for G in gradients)

    terms = diffrax.ODETerm(velocity)

    def error_order(solver: Any) -> Any:
        return solver.error_order(terms) if isinstance(solver, diffrax.AbstractAdaptiveSolver) else None

    @eqx.filter_jit
    def begin(solver: Any, controller: Any, t: Any, t1: Any, y: Any, step: Any, args: Any) -> Carry:
        t_next, state = controller.init(terms, t, t1, y, step, args, solver.func, error_order(solver))
        t_next = jnp.minimum(t_next, t1)
        return Carry(t, t_next, y, solver.init(terms, t, t_next, y, args), state)

    @eqx.filter_jit
    def restart(solver: Any, carry: Carry, weights: Any, args: Any) -> Carry:
        y = weights, carry.y[1]
        return carry._replace(y=y, solver_state=solver.init(terms, carry.t, carry.t_next, y, args))

    @eqx.filter_jit
    def segment(solver: Any, controller: Any, carry: Carry, t1: Any, args: Any, length: int) -> Any:
        order = error_order(solver)

        def attempt(carry: Carry) -> Any:
            y, error, dense, solver_state, result = solver.step(
                terms, carry.t, carry.t_next, carry.y, args, carry.solver_state, False
            )
            healthy = diffrax.is_successful(result)
            if error is not None:
                error = jax.tree.map(lambda e: jnp.where(jnp.isnan(e) | ~healthy, jnp.inf, e), error)
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
                "energy": y[1] - carry.y[1],
                "product": product(y[0], args[1]),
                "dense": dense,
            }
            return state, entry, keep, healthy

        shapes = eqx.filter_eval_shape(attempt, carry)[1]
        record = jax.tree.map(lambda s: jnp.zeros((length, *s.shape), s.dtype), shapes)

        def going(loop: Any) -> Any:
            carry, _, accepted, attempts, _ = loop
            moving = (carry.t < t1) & (carry.t_next > carry.t)
            return moving & (accepted < length) & (attempts < 50 + 10 * length)

        def body(loop: Any) -> Any:
            carry, record, accepted, attempts, _ = loop
            carry, entry, keep, healthy = attempt(carry)
            # a rejected attempt is written too, and overwritten by the next one
            record = jax.tree.map(lambda r, e: r.at[accepted].set(e), record, entry)
            return carry, record, accepted + keep, attempts + 1, healthy

        return lax.while_loop(going, body, (carry, record, jnp.asarray(0), jnp.asarray(0), jnp.asarray(True)))

    @eqx.filter_jit
    def evaluate(solver: Any, infos: Any, steps: Any, where: Any, args: Any) -> Any:
        def at(step: Any, where: Any) -> Any:
            return jnp.concatenate([jnp.ravel(W) for W in interpolate(solver, infos, step, where, args)])

        return jax.vmap(at)(steps, where)

    def interpolate(solver: Any, infos: Any, step: Any, where: Any, args: Any) -> Any:
        start, end, t = where
        info = jax.tree.map(lambda x: x[step], infos)
        if isinstance(solver, diffrax.AbstractESDIRK):  # its own interpolant has order 3 only
            return quintic(info["y0"][0], info["y1"][0], end - start, (t - start) / (end - start), args)
        return solver.interpolation_cls(t0=start, t1=end, **info).evaluate(t)[0]

    def quintic(y0: Any, y1: Any, step: Any, s: Any, args: Any) -> Any:
        """The Hermite interpolant through y, y' = F(y) and y'' = F'(y) F(y) at both ends, at s in [0, 1]."""
        ends = []
        for y in (y0, y1):
            flow = lambda weights: velocity(0.0, (weights, 0.0), args)[0]  # noqa: E731
            ends += [y, *jax.jvp(flow, (y,), (flow(y),))]
        powers = s ** jnp.arange(6)
        factors = HERMITE @ powers * jnp.array([1.0, step, step**2] * 2)
        return jax.tree.map(lambda *parts: sum(f * part for f, part in zip(factors, parts, strict=True)), *ends)

    return _Compiled(begin, restart, segment, evaluate)
