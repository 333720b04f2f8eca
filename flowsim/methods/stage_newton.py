"""Newton's method for the stages of diffrax's implicit methods, measured in the weights and never below round-off.

A stage is z = y_i + gamma h f with f = F(z): diffrax asks for f (or, implicit Euler, for k = h f). In a stiff direction
round-off makes F uncertain by |lambda| eps |z|, so that no tolerance on f can be met there; the correction of z that
belongs to one of f, gamma h df, shrinks to a few eps |z| whatever h |lambda| is. It is what is measured here.
The Jacobian is formed at the first iterate and again whenever the corrections shrink slowly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np

from flowsim.methods.jax_support import Tree

SHARE = 0.01
"""The stages are solved to this share of the tolerance of a step."""
MOST_ITERATIONS = 20
SLOW = 0.1
"""Corrections that shrink by less than this factor ask for a new Jacobian."""
DIVERGED = 2.0
LEAST_CORRECTION = 8 * np.finfo(float).eps
"""Of the greatest weight: what rounding leaves of the residual of a factored matrix."""

TINY = np.finfo(float).tiny


def stage_newton(rtol: float, atol: float) -> Tree:
    """The root finder for steps whose error is held to rtol and atol."""
    return _kind()(np.array(SHARE * rtol), np.array(SHARE * atol))


@cache
def _kind() -> Callable[..., Tree]:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optimistix as optx
    from jax import lax
    from jax.flatten_util import ravel_pytree
    from jax.scipy.linalg import lu_factor, lu_solve

    class State(eqx.Module):
        factors: Tree
        size: Tree
        rate: Tree
        count: Tree

    def factored(fn: Tree, y: Tree, args: Tree) -> Tree:
        flat, shaped = ravel_pytree(y)
        return lu_factor(jax.jacfwd(lambda v: ravel_pytree(fn(shaped(v), args)[0])[0])(flat))

    def moved(diff: Tree, args: Tree) -> tuple[Tree, Tree]:
        """(how far a correction moves the weights, the weights that it starts from)."""
        if len(args) == 5:  # implicit Euler
            return ravel_pytree(diff)[0], ravel_pytree(args[2])[0]
        _, diagonal, _, prod, _, base, _, control = args
        return diagonal * ravel_pytree(prod(diff, control))[0], ravel_pytree(base)[0]

    class StageNewton(optx.AbstractRootFinder):
        rtol: Tree
        atol: Tree
        norm: Tree = optx.max_norm

        def init(
            self, fn: Tree, y: Tree, args: Tree, options: Tree, f_struct: Tree, aux_struct: Tree, tags: Tree
        ) -> State:
            return State(factored(fn, y, args), jnp.array(jnp.inf), jnp.array(0.0), jnp.array(0))

        def step(self, fn: Tree, y: Tree, args: Tree, options: Tree, state: State, tags: Tree) -> Tree:
            factors = lax.cond(state.rate > SLOW, lambda: factored(fn, y, args), lambda: state.factors)
            residual, aux = fn(y, args)
            flat, shaped = ravel_pytree(y)
            diff = lu_solve(factors, ravel_pytree(residual)[0])
            change, base = moved(shaped(diff), args)
            least = jnp.maximum(LEAST_CORRECTION * jnp.max(jnp.abs(base)), TINY)
            scale = jnp.maximum(self.atol + self.rtol * jnp.abs(base), least)
            size = jnp.sqrt(jnp.mean((change / scale) ** 2))
            return shaped(flat - diff), State(factors, size, size / state.size, state.count + 1), aux

        def terminate(self, fn: Tree, y: Tree, args: Tree, options: Tree, state: State, tags: Tree) -> Tree:
            left = jnp.where(state.rate < 1, state.size * state.rate / (1 - state.rate), jnp.inf)
            converged = (state.count >= 2) & ((state.size <= 1) | (left <= 1))
            growing = (state.count >= 3) & (state.rate > DIVERGED) & ~converged
            diverged = (state.count >= 1) & ~jnp.isfinite(state.size) | growing
            result = optx.RESULTS.where(diverged, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful)
            return converged | diverged, result

        def postprocess(
            self, fn: Tree, y: Tree, aux: Tree, args: Tree, options: Tree, state: State, tags: Tree, result: Tree
        ) -> Tree:
            return y, aux, {}

    return StageNewton
