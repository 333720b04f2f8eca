"""The one schema of a run: shared by the command's flags, files and the provenance of results."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowsim.checks import mistake
from flowsim.errors import InputError
from flowsim.methods import ATOL, DEFAULT_METHOD, LEAST_RTOL, RTOL, Method, method_named
from flowsim.values import Json

Positive = Annotated[float, Field(gt=0)]
StopLoss = Annotated[float | None, Field(gt=0)]
Steps = Annotated[int | None, Field(ge=1)]
WallLimit = Annotated[float | None, Field(gt=0)]
Rtol = Annotated[float, Field(ge=LEAST_RTOL, le=1)]
Atol = Annotated[float, Field(ge=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
BatchSize = Annotated[int | None, Field(ge=1)]
Nonnegative = Annotated[float, Field(ge=0)]
Reduce = Literal["auto", "always", "never"]
"""What the settings of a run can be, for every schema that has them."""


OF_THE_METHOD = (
    "step_size",
    "rtol",
    "atol",
    "backend",
    "momentum",
    "nesterov",
    "schedule",
    "batch_size",
    "label_noise",
    "seed",
    "independent_batches",
)
"""The settings that are the method's."""
OF_THE_PROBLEM = ("weight_decay",)
"""Those that are the problem's; the others are simulate's."""


class RunConfig(BaseModel):
    """How a problem is simulated; every field is a flag of `flowsim simulate`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    t1: Positive
    method: str | None = None
    step_size: Positive | None = None
    rtol: Rtol = RTOL
    atol: Atol = ATOL
    save_points: int = Field(101, ge=2)
    stop_loss: StopLoss = None
    stop_gradient: StopLoss = None
    max_steps: Steps = None
    wall_limit: WallLimit = None
    reduce: Reduce = "auto"
    backend: Literal["numpy", "jax"] = "numpy"
    momentum: Momentum = 0.0
    nesterov: bool = False
    schedule: str | None = None
    batch_size: BatchSize = None
    label_noise: Nonnegative = 0.0
    seed: Annotated[int, Field(ge=0)] = 0
    independent_batches: bool = False
    weight_decay: Nonnegative = 0.0
    dynamics: str | None = None

    @classmethod
    def build(cls, **values: Any) -> RunConfig:
        """The configuration; every mistake is reported at once in one InputError."""
        try:
            return cls(**values)
        except ValidationError as error:
            found = [f"`{'.'.join(map(str, e['loc']))}` {mistake(e, cls.model_fields)}" for e in error.errors()]
            raise InputError(f"Argument{'s' if len(found) > 1 else ''} {'; '.join(found)}.") from error

    def method_value(self) -> Method:
        """The method with its settings. Raises InputError for an unknown one."""
        own = {name: getattr(self, name) for name in OF_THE_METHOD}
        return method_named(DEFAULT_METHOD if self.method is None else self.method, **own)

    def simulate_arguments(self, but: Collection[str] = ()) -> Json:
        """The keyword arguments of simulate that are neither the problem nor the method (nor one of `but`)."""
        return self.model_dump(exclude={"method", *OF_THE_METHOD, *OF_THE_PROBLEM, *but})
