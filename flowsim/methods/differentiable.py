"""Gradient flow for programs in jax: its vector field, and its flow map, which jax differentiates.

Nothing here changes jax's settings, and nothing is compressed: the weights are the state, and whoever calls has them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

import numpy as np

from flowsim.checks import as_choice, as_count, as_float_array, as_number
from flowsim.dynamics import Dynamics, as_dynamics
from flowsim.errors import InputError
from flowsim.losses import StackedLoss, is_built_in
from flowsim.losses.base import BuiltIn
from flowsim.methods.base import Method
from flowsim.methods.diffrax import Diffrax
from flowsim.methods.diffrax_steps import Traced, controller_of
from flowsim.methods.jax_support import LossArgument, Tree, float64
from flowsim.methods.table import as_method
from flowsim.network import product
from flowsim.problem import Problem
from flowsim.values import Array, Value, frozen

Args = Mapping[str, Array] | None
"""Arrays of the loss and the scale by name, in the place of the problem's."""
Layers = tuple[Array, ...]
VectorField = Callable[..., Layers]

LEAST_RTOL_IN_EPS = 10.0
"""A relative tolerance below so many units of round-off is none: no step would be short enough."""


def vector_field(problem: Problem, dynamics: Dynamics | str | None = None) -> VectorField:
    """Gradient flow as a pure function of jax: (t, (W_1, ..., W_L), args) -> (-dL/dW_1, ..., -dL/dW_L).

    The arguments are those of diffrax.ODETerm; gradient flow does not use t. The state is a tuple of layers W_l
    (h_{l-1} x h_l), and the velocity is one of the same shapes and dtypes. Weight decay is the problem's. dynamics: as
    for simulate; with momentum the state is the layers and then their velocities. args is None or a mapping that puts
    arrays in the place of the problem's: "scale" and "weight_decay" (numbers), and of the loss what its constructor
    takes, by its names there, in the loss's shapes: Y of SquaredLoss, Y and mask of MaskedSquaredLoss, X and y of
    ExponentialLoss and LogisticLoss, and X and Y, both, of LeastSquares. jit, vmap, grad and jvp apply, in the state
    and in args, whose entries are not looked at (a label may be any number).

    A loss of the user's own has to be one that jax can trace; jax differentiates its `gradient`, whatever else it
    declares. Its method `with_data(mapping)`, where it has one, gets what args hold besides scale, and returns a loss.

    Precision: jax's. Where it computes in float64 (jax.config.update("jax_enable_x64", True), or inside `with
    jax.enable_x64(True):`) and the layers are float64, so is everything, and the velocity is that of problem.velocity.
    Where it does not, jax turns weights, target and data into float32, without a word, and the velocity has seven
    digits.

    problem: its network says the shapes and the scale; its weights are not used.
    Raises InputError for a network that is compressed or has operators as layers, a loss that jax cannot trace, and, of
    the function, for layers of other shapes and unknown names or other shapes in args.

    In one's own integration, here the Saxe mode of one balanced unit a layer:

    >>> import diffrax, jax, jax.numpy as jnp
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[0.1]], [[0.1]])))
    >>> term = diffrax.ODETerm(fs.vector_field(problem))
    >>> control = diffrax.PIDController(rtol=1e-10, atol=1e-12)
    >>> with jax.enable_x64(True):
    ...     weights = tuple(map(jnp.asarray, problem.network.weights))
    ...     flow = diffrax.diffeqsolve(term, diffrax.Dopri8(), 0.0, 3.0, None, weights, stepsize_controller=control)
    ...     W_1, W_2 = (layer[-1] for layer in flow.ys)
    ...     W = W_1 @ W_2
    >>> bool(abs(W.item() - fs.exact.saxe_mode(3.0, s=2.0, u0=0.01)) < 1e-9)
    True
    """
    check_traceable(problem, "gradient")
    obeyed, depth = as_dynamics(dynamics), problem.network.depth

    def velocity(t: Array, state: Layers, args: Args = None) -> Layers:
        layers = as_layers(problem, state, obeyed.second_order)
        loss, scale, decay = model(problem, args)
        found = obeyed.velocity(Traced(LossArgument(loss), scale, decay, obeyed, depth), t, layers)
        return tuple(V.astype(W.dtype) for V, W in zip(found, layers, strict=True))

    return velocity


@dataclass(frozen=True, eq=False)
class FlowMap(Value):
    """The flow map of gradient flow, weights at 0 -> weights at t1, differentiable by jax: Phi(weights, args).

    flow = FlowMap(problem, t1=...) is a function of the initial layers (W_1, ..., W_L) and of args (see vector_field):
    flow(weights, args) is the tuple of layers at t1, flow.loss(weights, args) is L there (without weight decay's
    energy); jax.grad, jit and vmap apply to both, in the weights and in args. With ts, times that ascend strictly
    within [0, t1], both are stacks over ts: (len(ts), h_{l-1}, h_l) and (len(ts),). A step ends at each of ts, but of
    steps of one size, where diffrax interpolates. dynamics: as for simulate; with momentum the weights start at rest.

    method: an explicit Diffrax, or its name; by default Diffrax("Tsit5", rtol=1e-8, atol=1e-10). adjoint: one of
    diffrax's; by default RecursiveCheckpointAdjoint(), which differentiates the steps that were taken, backwards, and
    recomputes what it does not keep; jax.jvp needs another, such as DirectAdjoint(). max_steps: the most steps of an
    integration; what needs more raises diffrax's error, as a flow that does not stay finite does.

    The whole network is integrated, never a compressed form of it, whose bases would depend on the weights that jax
    differentiates in: a wide network costs its size. Precision as in vector_field; what goes backwards too.

    Raises InputError as vector_field does, for another method than an explicit Diffrax, times out of range, a value of
    the loss that jax cannot trace (flow.loss), and a tolerance that the precision of the weights does not allow: 1e-8
    needs float64.

    How the loss at t = 1 depends on a factor c of all weights: dL/dc against a quotient of differences.

    >>> import jax, jax.numpy as jnp
    >>> import flowsim as fs
    >>> problem = fs.Problem(fs.SquaredLoss([[2.0]]), fs.LinearNetwork(([[0.1]], [[0.1]])))
    >>> flow = fs.FlowMap(problem, fs.Diffrax("Tsit5", rtol=1e-11, atol=1e-13), t1=1.0)
    >>> def loss(c):
    ...     return flow.loss([c * W for W in problem.network.weights])
    >>> with jax.enable_x64(True):
    ...     slope = float(jax.grad(loss)(jnp.asarray(1.0)))
    ...     quotient = float(loss(1.0 + 1e-4) - loss(1.0 - 1e-4)) / 2e-4
    >>> abs(slope - quotient) < 1e-6 * abs(slope)
    True

    and on the target, which args puts in the place of the problem's:

    >>> with jax.enable_x64(True):
    ...     slope = jax.grad(lambda Y: flow.loss(problem.network.weights, {"Y": Y}))(jnp.array([[2.0]]))
    >>> slope.shape
    (1, 1)
    """

    problem: Problem
    method: Method | str | None = None
    _: KW_ONLY
    t1: float
    dynamics: Dynamics | str | None = None
    ts: Sequence[float] | np.ndarray | None = None
    adjoint: Tree = None
    max_steps: int = 4096

    def __post_init__(self) -> None:
        t1 = as_number(self.t1, "t1", above=0.0)
        settled = {"method": _explicit(self.method), "t1": t1, "max_steps": as_count(self.max_steps, "max_steps")}
        settled["dynamics"] = as_dynamics(self.dynamics)
        if self.ts is not None:
            settled["ts"] = _times(self.ts, t1)
        for name, value in settled.items():
            object.__setattr__(self, name, value)
        _ = self.field  # a problem that has none is refused here

    @cached_property
    def field(self) -> VectorField:
        """The vector field that is integrated."""
        return vector_field(self.problem, self.dynamics)

    def __call__(self, weights: Sequence[Array], args: Args = None) -> Layers:
        """The layers at t1, or stacks of them at ts."""
        layers = self._integrated(weights, args)
        return layers if self.ts is not None else tuple(W[-1] for W in layers)

    def loss(self, weights: Sequence[Array], args: Args = None) -> Array:
        """L at t1, or (len(ts),) at ts, of the flow from these weights."""
        import jax

        check_traceable(self.problem, "value")
        loss, scale, _ = model(self.problem, args)
        values = jax.vmap(lambda layers: loss.value(product(layers, scale)))(self._integrated(weights, args))
        return values if self.ts is not None else values[-1]

    def _integrated(self, weights: Sequence[Array], args: Args) -> Layers:
        """Stacks of the layers at ts, or at t1 alone."""
        import diffrax
        import jax.numpy as jnp

        method, layers = cast(Diffrax, self.method), as_layers(self.problem, weights)
        _check_precision(method, jnp.result_type(*layers))
        inert = cast(Dynamics, self.dynamics).second_order
        state = (*layers, *(jnp.zeros_like(W) for W in layers)) if inert else layers
        ts = None if self.ts is None else np.asarray(self.ts)
        states = diffrax.diffeqsolve(
            diffrax.ODETerm(self.field),
            getattr(diffrax, method.name)(),  # its loop over the stages as the adjoint wants it
            0.0,
            self.t1,
            method.step_size,
            state,
            None if args is None else dict(args),
            saveat=diffrax.SaveAt(t1=True) if ts is None else diffrax.SaveAt(ts=ts),
            stepsize_controller=_controller(method, ts),
            adjoint=diffrax.RecursiveCheckpointAdjoint() if self.adjoint is None else self.adjoint,
            max_steps=self.max_steps,
        ).ys
        return tuple(states[: len(layers)])


def _controller(method: Diffrax, ts: np.ndarray | None) -> Tree:
    """The method's own; one that adapts ends a step at each of ts, and diffrax need not interpolate."""
    import diffrax

    own = controller_of(method)
    return own if ts is None or method.step_size is not None else diffrax.ClipStepSizeController(own, step_ts=ts)


def as_layers(problem: Problem, weights: Sequence[Array], with_velocities: bool = False) -> Layers:
    """The layers (and their velocities) as arrays of jax. Raises InputError where their shapes are not those of the
    problem's network."""
    wanted = list(pairwise(problem.network.dims)) * (2 if with_velocities else 1)
    layers = tuple(map(_in_jax, weights))
    found = [W.shape for W in layers]
    if found != wanted:
        raise InputError(f"Argument `weights` must be layers of shapes {wanted}, but they are of shapes {found}.")
    return layers


def model(problem: Problem, args: Args) -> tuple[StackedLoss, Array, Array]:
    """The loss, as jax traces it, the scale and the weight decay, with args in the place of the problem's own."""
    loss: Any = problem.loss
    data = {name: _in_jax(value) for name, value in (args or {}).items()}
    if isinstance(loss, BuiltIn):
        for name in data:
            as_choice(name, "args", ("scale", "weight_decay", *loss.data_parts))
    if is_built_in(loss):  # jax's arrays, in the precision that it computes in
        parts = loss.parts().items()
        loss = loss.from_parts({name: _in_jax(one) if isinstance(one, np.ndarray) else one for name, one in parts})
    scale = data.pop("scale", problem.network.scale)
    decay = data.pop("weight_decay", problem.weight_decay)
    if not data:
        return loss, scale, decay
    if not hasattr(loss, "with_data"):
        raise InputError(
            f"Argument `args` must hold no more than scale and weight_decay, but it names {', '.join(data)}:"
            f" {type(loss).__name__} has no with_data, which would give the loss of other data."
        )
    return loss.with_data(data), scale, decay


def _in_jax(array: Array) -> Array:
    """An array of jax. Of NumPy's it gets a copy: jax may hold one that it has met to the precision it had then."""
    import jax.numpy as jnp

    return jnp.asarray(np.array(array) if isinstance(array, np.ndarray) else array)


def check_traceable(problem: Problem, name: str) -> None:
    """Refuse a network that is not all arrays, and a loss whose function of that name jax cannot trace."""
    import jax

    if not problem.network.is_dense:
        kind = type(problem.network).__name__
        raise InputError(
            f"Argument `problem` must have arrays as layers, but its {kind} is compressed or has operators, which jax"
            " does not trace: the state of the flow is all weights."
        )
    matrix = jax.ShapeDtypeStruct(tuple(problem.loss.shape), np.float64)
    with float64():
        try:
            jax.eval_shape(getattr(problem.loss, name), matrix)
        except Exception as error:
            reason = (str(error).splitlines() or [""])[0]
            raise InputError(
                f"Argument `problem` must have a loss that jax can trace, but its {name} raised {type(error).__name__}:"
                f" {reason} Use jax.numpy alone in it, without float() and without branches on values."
            ) from error


def _explicit(method: Method | str | None) -> Diffrax:
    found = Diffrax() if method is None else as_method(method)
    if not isinstance(found, Diffrax) or not found.kind.explicit:
        raise InputError(
            f"Argument `method` must be an explicit Diffrax, such as Diffrax('Tsit5') or Diffrax('Dopri8'), but it is"
            f" {found.key}, which cannot be differentiated here."
        )
    return found


def _times(ts: Sequence[float] | np.ndarray, t1: float) -> np.ndarray:
    times = as_float_array(ts, "ts")
    if times.ndim != 1 or times.size == 0 or (np.diff(times) <= 0).any() or times[0] < 0 or times[-1] > t1:
        raise InputError("Argument `ts` must ascend strictly within [0, t1], but it does not.")
    return frozen(times)


def _check_precision(method: Diffrax, dtype: np.dtype) -> None:
    least = LEAST_RTOL_IN_EPS * float(np.finfo(dtype).eps)
    if method.step_size is None and method.rtol < least:
        raise InputError(
            f"Argument `method` must have an rtol of at least {least:.2g} for weights in {dtype}, but it is"
            f' {method.rtol:g}; let jax compute in float64 (jax.config.update("jax_enable_x64", True)).'
        )
