"""Explicit Runge-Kutta steps of many members in one compiled loop, each with its own clock.

What a record needs is found on the way: L - f*, what was dissipated and the defect of the compression after each step,
L - f*, ||grad L||_F and the change of the imbalance at the times to save.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from flowsim.methods import Diffrax
from flowsim.methods.diffrax_steps import solver_of
from flowsim.methods.jax_support import LossArgument, Tree
from flowsim.network import backpropagate, unflatten
from flowsim.runs.paths import SAVED
from flowsim.runs.recorder import BELOW
from flowsim.runs.together import Defects, Equations, Groups, Shape, Together, Told, norm, with_row

SPARE = 32
"""A call has room for so many rejected attempts, and for the search of a level, beyond its steps and times to save."""
CROSSINGS = 12
"""At most so many iterations locate where a member's loss crosses its level, within one step."""
LOCATED = 1e-12
"""Relative: a crossing is located where an iteration moves it by less, the noise of the loss."""
TINY = np.finfo(float).tiny


class Tableau(NamedTuple):
    """rows: the coefficients of stage 1, 2, ... in those before, the last of them the step itself; weights: of all
    stages in the step; error: of all stages in its error, None where there is no estimate; order: of that estimate."""

    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    error: tuple[float, ...] | None
    order: float


@cache
def tableau_of(name: str) -> Tableau:
    """That of diffrax's solver of this name."""
    import diffrax

    if name == "Euler":
        return Tableau(((1.0,),), (1.0, 0.0), None, 1.0)
    solver = solver_of(Diffrax(name))
    own, order = solver.tableau, float(solver.error_order(diffrax.ODETerm(lambda t, y, args: y)))
    rows = [tuple(map(float, row)) for row in own.a_lower]
    weights, error = tuple(map(float, own.b_sol)), tuple(map(float, own.b_error))
    if own.fsal:  # the slope at the end is a stage
        return Tableau(tuple(rows), weights, error, order)
    return Tableau((*rows, weights), (*weights, 0.0), (*error, 0.0), order)


class Step(NamedTuple):
    """The end of a step, the slope there, the integral of ||grad L||_F^2 along it (B,), its error, all its slopes."""

    state: Tree
    slope: Tree
    spent: Tree
    error: Tree
    slopes: Tree


def _step(equations: Equations, tableau: Tableau, y: Tree, slope: Tree, h: Tree, slopes: Tree) -> Step:
    """From y, where the slope is known, by h (B,): y_i = y + h sum_j a_ij F(y_j); slopes: room for all F(y_j)."""
    from jax import lax

    def combined(row: tuple[float, ...], slopes: Tree) -> Tree:
        return y + h * sum(a * slopes[j] for j, a in enumerate(row) if a)

    stages = [partial(combined, row) for row in tableau.rows]

    def stage(i: Tree, carry: Tree) -> Tree:
        z = lax.switch(i, stages, carry[2])
        slope = equations.velocity(z)
        return z, slope, carry[2].at[i + 1].set(slope)

    z, slope, slopes = lax.fori_loop(0, len(stages), stage, (y, slope, slopes.at[0].set(slope)))
    square = sum(b * slopes[j] ** 2 for j, b in enumerate(tableau.weights) if b).sum(0)
    error = None
    if tableau.error is not None:
        error = h * sum(e * slopes[j] for j, e in enumerate(tableau.error) if e)
    return Step(z, slope, h * square, error, slopes)


class Settings(NamedTuple):
    """Of the steps: rtol, atol, the coefficients of the controller, a fixed size or None, and the end."""

    rtol: Tree
    atol: Tree
    coefficients: Sequence[Tree]
    step_size: Tree | None
    t1: Tree


class Carry(NamedTuple):
    """Where members are, and what one call hands to the next; times and counts (B,), states and slopes (size, B).

    begun, here: where their last step began and ended, the time, the state and the slope there; excess: L - f* here;
    level: of L - f*, to stop at; t_next: where the next step is to end; control: the controller's numbers; place: how
    many of the times to save are done; located: the end is found, where L - f* has fallen to the level; bracket: where
    it is sought, and between what; tries: how often so far; final: the state at the end of what is done, with L - f*
    and ||grad L||_F there, and what the last step dissipates up to there; sound: the last attempt was finite.
    """

    begun: tuple[Tree, Tree, Tree]
    here: tuple[Tree, Tree, Tree]
    excess: Tree
    level: Tree
    t_next: Tree
    control: Tree
    place: Tree
    located: Tree
    bracket: tuple[Tree, Tree, Tree]
    tries: Tree
    final: tuple[Tree, Tree, Tree, Tree]
    sound: Tree

    @property
    def end(self) -> Tree:
        """The time that is reached (B,)."""
        import jax.numpy as jnp

        return jnp.where(self.located, self.bracket[0], self.here[0])


class Walked(NamedTuple):
    """What members did in a call.

    steps (B,): how many; in rows (R, B), after none, one, ... of them, the last repeated: time, spent, excess, defect,
    fewer, moved: t, what was dissipated in the step, L - f*, the defect, that with a Krylov step fewer, and how far the
    weights are from the start; saved: at the times to save and, in the last place, at the end (S + 1, ..., B), NaN
    where they were not reached in the call; going (B,): there is more to do; idle (B,): nothing was done.
    """

    carry: Carry
    steps: Tree
    time: Tree
    spent: Tree
    excess: Tree
    defect: Tree
    fewer: Tree
    moved: Tree
    saved: Told
    going: Tree
    idle: Tree


def _controllers(settings: Settings) -> tuple[Tree, Tree]:
    """diffrax's controller with the tolerances, and one that is given an error in their unit."""
    import diffrax

    names = dict(zip(("pcoeff", "icoeff", "dcoeff"), settings.coefficients, strict=True))
    return diffrax.PIDController(settings.rtol, settings.atol, **names), diffrax.PIDController(0.0, 1.0, **names)


def _first_step(equations: Equations, tableau: Tableau, settings: Settings) -> tuple[Tree, Tree]:
    """Where the first step is to end, and the controller's numbers."""
    import diffrax
    import jax
    import jax.numpy as jnp

    y = equations.initial
    if settings.step_size is not None:
        return jnp.full(y.shape[1], settings.step_size), ()
    (controller, _), terms = _controllers(settings), diffrax.ODETerm(lambda t, y, args: y)

    def first(column: Tree, loss: LossArgument, scale: Tree) -> Tree:
        def velocity(terms: Tree, t: Tree, y: Tree, args: Tree) -> Tree:
            _, gradients = backpropagate(loss.loss, unflatten(y, equations.dims), scale)
            return -jnp.concatenate([G.ravel() for G in gradients])

        return controller.init(terms, 0.0, settings.t1, column, None, None, velocity, tableau.order)

    return jax.vmap(first, -1)(y, equations.loss, equations.scale)


def _begun(equations: Equations, tableau: Tableau, settings: Settings, low: Tree | None) -> Carry:
    """At t = 0."""
    import jax.numpy as jnp

    y, (t_next, control) = equations.initial, _first_step(equations, tableau, settings)
    slope, excess, zero = equations.velocity(y), equations.excess(y), jnp.zeros(y.shape[1])
    here, none, no = (zero, y, slope), jnp.zeros(y.shape[1], int), zero > 0
    level = jnp.full_like(excess, -jnp.inf) if low is None else low * excess
    final = y, excess, norm(slope), zero
    t_next = jnp.minimum(t_next, settings.t1)
    return Carry(here, here, excess, level, t_next, control, none, no, (zero, zero, zero), none, final, ~no)


class _Modes(NamedTuple):
    """What members do next (B,): look for where the level is reached, go to a time to save, or take a step."""

    locate: Tree
    save: Tree
    step: Tree


def _modes(carry: Carry, times: Tree, t1: Tree, room: Tree) -> _Modes:
    """A member that has reached its level, or t1, only goes to the times to save; room (B,): for another step."""
    import jax.numpy as jnp

    t, below = carry.here[0], carry.excess <= carry.level
    locate = below & ~carry.located & (t > 0)
    save = ~locate & (jnp.append(times, jnp.inf)[carry.place] <= carry.end * SAVED)
    return _Modes(locate, save, (t < t1) & (carry.t_next > t) & ~below & ~save & room)


class _Attempt(NamedTuple):
    """A step that was tried: whether it is kept, whether it was finite, and how it goes on."""

    keep: Tree
    finite: Tree
    t: Tree
    t_next: Tree
    control: Tree


def _attempted(tableau: Tableau, settings: Settings, carry: Carry, step: Step) -> _Attempt:
    """A trial step that overflows is rejected; its state would make the error's scale, and the next step, NaN."""
    import jax
    import jax.numpy as jnp

    (t, y, _), t1, control = carry.here, settings.t1, carry.control
    finite = jnp.isfinite(step.state).all(0)
    if settings.step_size is not None:
        keep, t_new = finite, jnp.where(finite, carry.t_next, t)
        t_after = t_new + settings.step_size
    else:
        scale = settings.atol + settings.rtol * jnp.maximum(jnp.abs(y), jnp.abs(step.state))
        error = jnp.sqrt(((step.error / scale) ** 2).mean(0))
        error = jnp.where(finite & ~jnp.isnan(error), error, jnp.inf)
        _, controller = _controllers(settings)

        def adapted(t: Tree, t_next: Tree, error: Tree, control: Tree) -> Tree:
            return controller.adapt_step_size(t, t_next, 0.0, 0.0, None, error, tableau.order, control)

        keep, t_new, t_after, _, control, _ = jax.vmap(adapted)(t, carry.t_next, error, control)
        keep &= finite
    t_new = jnp.minimum(t_new, t1)
    near = t_after > t1 - 100 * jnp.finfo(jnp.float64).eps * jnp.abs(t1)
    t_after = jnp.where(near, jnp.where(keep, t1, t_new + 0.5 * (t1 - t_new)), t_after)
    return _Attempt(keep, finite, t_new, t_after, control)


def _advanced(
    equations: Equations, tableau: Tableau, settings: Settings, times: Tree, carry: Carry, modes: _Modes, slopes: Tree
) -> tuple[Carry, Tree, Step, Tree]:
    """After one more step of the method: where members are, which of them have taken a step of their own, the step and
    what is told of its end.

    The states at the times to save, and where the level is sought, are those after a shorter step of the method itself
    from where the last step began: as accurate as the whole one.
    """
    import jax.numpy as jnp

    (t, *_), at = carry.here, carry.bracket[0]
    save_at = jnp.minimum(times[jnp.minimum(carry.place, len(times) - 1)], t)
    begin = _where(modes.step, carry.here, carry.begun)
    target = jnp.where(modes.step, carry.t_next, jnp.where(modes.locate, at, save_at))
    step = _step(equations, tableau, begin[1], begin[2], target - begin[0], slopes)
    told, tried = (equations.excess(step.state), norm(step.slope)), _attempted(tableau, settings, carry, step)
    excess, _ = told
    keep = tried.keep & modes.step
    bracket = _where(keep, (tried.t, t, tried.t), carry.bracket)
    seek = modes.locate | keep
    nearer = _nearer(bracket, excess, step.slope, carry.level * BELOW)
    tries = jnp.where(keep, 0, carry.tries + modes.locate)
    there = (jnp.abs(nearer[0] - at) <= LOCATED * t) | (tries == CROSSINGS)
    located = carry.located | (modes.locate & there)
    after = Carry(
        _where(keep, carry.here, carry.begun),
        _where(keep, (tried.t, step.state, step.slope), carry.here),
        jnp.where(keep, excess, carry.excess),
        carry.level,
        jnp.where(modes.step, tried.t_next, carry.t_next),
        _where(modes.step, tried.control, carry.control),
        carry.place + modes.save,
        located,
        _where(seek & ~located, nearer, bracket),
        tries,
        _where(seek, (step.state, *told, step.spent), carry.final),
        jnp.where(modes.step, tried.finite, carry.sound),
    )
    return after, keep, step, told


def _where(condition: Tree, new: Tree, old: Tree) -> Tree:
    """Lane by lane, of all arrays of a tuple."""
    import jax
    import jax.numpy as jnp

    return jax.tree.map(partial(jnp.where, condition), new, old)


def _nearer(bracket: Tree, excess: Tree, slope: Tree, level: Tree) -> tuple[Tree, Tree, Tree]:
    """(at, low, high), nearer to where L - f* falls to the level, from L - f* and dW/dt at `at`.

    By Newton's method for log (L - f*), whose slope is -||grad L||^2 / (L - f*); halfway where that leaves the bracket.
    """
    import jax.numpy as jnp

    at, low, high = bracket
    above = jnp.log(jnp.maximum(excess, TINY) / level)
    low, high = jnp.where(above > 0, at, low), jnp.where(above > 0, high, at)
    found = at + above * excess / norm(slope) ** 2
    return jnp.where((found > low) & (found < high), found, 0.5 * (low + high)), low, high


def _walk(
    together: Together,
    alive: Tree,
    begun: Carry | None,
    times: Tree,
    low: Tree | None,
    settings: Settings,
    *,
    shape: Shape,
    tableau: Tableau,
    longest: int,
) -> Walked:
    """Up to `longest` steps of the members that are alive, fewer where t1 is reached, or L - f* <= low (L(0) - f*).

    begun: where the call before has ended, None at the start. All members do one step of the method at a time, each its
    own; the states after these are a log, of which rows are picked for what is found afterwards.
    """
    import jax.numpy as jnp
    from jax import lax

    equations = Equations(together, shape.dims, shape.halo)
    carry = _begun(equations, tableau, settings, low) if begun is None else begun
    count, saves = longest + 1, len(times) + 1
    rows = longest + min(len(times), longest) + SPARE

    def modes(carry: Carry, steps: Tree) -> _Modes:
        return _Modes(*(alive & mode for mode in _modes(carry, times, settings.t1, steps < longest)))

    def going(loop: Tree) -> Tree:
        row, carry, steps, *_ = loop
        return (row < rows - 2) & jnp.stack(modes(carry, steps)).any()

    def body(loop: Tree) -> Tree:
        row, carry, steps, log, nodes, saved, slopes = loop
        mode = modes(carry, steps)
        after, keep, step, told = _advanced(equations, tableau, settings, times, carry, mode, slopes)
        row, steps = row + 1, steps + keep
        at_node, at_save = jnp.where(keep, steps, count), jnp.where(mode.save, carry.place, saves)
        here = after.here[0], step.spent, told[0], row
        nodes = [_put(all_, at_node, new) for all_, new in zip(nodes, here, strict=True)]
        saved = [_put(all_, at_save, new) for all_, new in zip(saved, (*told, row), strict=True)]
        return row, after, steps, log.at[row].set(step.state), nodes, saved, step.slopes

    log = jnp.zeros((rows, *carry.here[1].shape)).at[0].set(carry.here[1])
    none, nan = jnp.zeros((count, len(alive))), jnp.full((saves, len(alive)), jnp.nan)
    nodes = [none.at[0].set(carry.here[0]), none, none.at[0].set(carry.excess), none.astype(int)]
    saved = [nan, nan, jnp.full(nan.shape, -1)]
    slopes = jnp.zeros((len(tableau.weights), *carry.here[1].shape))
    begin = jnp.asarray(0), carry, jnp.zeros(len(alive), int), log, nodes, saved, slopes
    row, carry, steps, log, nodes, saved, _ = lax.while_loop(going, body, begin)

    final, excess, norm, spent = carry.final
    log, last = log.at[row + 1].set(final), jnp.arange(count)[:, None] >= steps
    time, lost, losses, node = nodes
    node = jnp.where(last, row + 1, node)
    lost = jnp.where((jnp.arange(count)[:, None] == steps) & (steps > 0), spent, jnp.where(last, 0.0, lost))
    saved = [all_.at[-1].set(end) for all_, end in zip(saved, (excess, norm, row + 1), strict=True)]
    defects = Defects(together, shape)

    def watched(k: Tree, found: Tree) -> Tree:
        return with_row(found, k, defects.at(_picked(log, node[k])))

    def drifted(s: Tree, drift: Tree) -> Tree:
        told = jnp.where(saved[2][s] < 0, jnp.nan, equations.drift(_picked(log, jnp.maximum(saved[2][s], 0))))
        return drift.at[s].set(told)

    defect, fewer, moved = lax.fori_loop(0, steps.max() + 1, watched, (none, none, none))
    beyond = jnp.arange(count)[:, None] > steps.max()
    defect, fewer, moved = (jnp.where(beyond, all_[steps.max()], all_) for all_ in (defect, fewer, moved))
    drift = jnp.full((saves, len(shape.dims) - 2, len(alive)), jnp.nan)
    first = jnp.where(alive, (saved[2] < 0).argmin(0), saves).min()
    drift = lax.fori_loop(first, (saved[2][:-1] >= 0).any(1).sum() + first, drifted, drift)
    drift = drifted(saves - 1, drift)
    return Walked(
        carry,
        steps,
        jnp.where(last, carry.end, time),
        lost,
        jnp.where(last, excess, losses),
        defect,
        fewer,
        moved,
        Told(saved[0], saved[1], drift),
        jnp.stack(modes(carry, 0 * steps)).any(0),
        (steps == 0) & (saved[2][:-1] < 0).all(0),
    )


def _put(all_: Tree, rows: Tree, new: Tree) -> Tree:
    """(R, B) with new (B,) in a row of its own for each lane, nowhere where there is no such row; quicker than what XLA
    makes of a scatter."""
    import jax.numpy as jnp

    return jnp.where(jnp.arange(len(all_))[:, None] == rows, new, all_)


def _picked(log: Tree, rows: Tree) -> Tree:
    """(size, B) of (R, size, B): a row of its own for each lane."""
    import jax.numpy as jnp

    return jnp.take_along_axis(log, rows[None, None], 0)[0]


@cache
def walking(shape: Shape, tableau: Tableau, longest: int) -> Groups:
    """_walk for groups: arguments members, alive and begun are grouped."""
    return Groups(partial(_walk, shape=shape, tableau=tableau, longest=longest), 3)
