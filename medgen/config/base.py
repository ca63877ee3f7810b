"""What all sections of the experiment file share."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Triple = tuple[float, float, float]
IntTriple = tuple[int, int, int]
Options = dict[str, Any]
Positive = Annotated[int, Field(gt=0)]
PatchTriple = tuple[Positive, Positive, Positive]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0)]
PerLabel = UnitInterval | dict[str, UnitInterval] | None


class Section(BaseModel):
    """A part of the experiment file: unknown keys are errors, values cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)
