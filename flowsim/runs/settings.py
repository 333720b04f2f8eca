"""The one schema of a run: shared by the command's flags, files and the provenance of results."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flowsim.checks import mistake
from flowsim.errors import InputError
from flowsim.methods import Method, method_named
from flowsim.values import Json


class RunConfig(BaseModel):
    """How a problem is simulated; every field is a flag of `flowsim simulate`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    t1: float = Field(gt=0)
    method: str = "dop853"
    step_size: float | None = Field(None, gt=0)
    rtol: float = Field(1e-8, gt=0, le=1)
    atol: float = Field(1e-10, ge=0)
    save_points: int = Field(101, ge=2)
    stop_loss: float | None = Field(None, gt=0)
    stop_gradient: float | None = Field(None, gt=0)
    max_steps: int | None = Field(None, ge=1)
    wall_limit: float | None = Field(None, gt=0)
    reduce: Literal["auto", "always", "never"] = "auto"
    backend: Literal["numpy", "jax"] = "numpy"

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
        return method_named(self.method, rtol=self.rtol, atol=self.atol, step_size=self.step_size, backend=self.backend)

    def simulate_arguments(self, but: Collection[str] = ()) -> Json:
        """The keyword arguments of simulate that are neither the problem nor the method (nor one of `but`)."""
        return self.model_dump(exclude={"method", "step_size", "rtol", "atol", "backend", *but})
