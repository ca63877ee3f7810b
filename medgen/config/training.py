"""The section that every training has."""

from typing import Annotated, Literal

from pydantic import Field

from medgen.config.base import (
    Positive,
    Section,
)


class TrainingConfig(Section):
    """What the two trainings share.

    ``minutes`` ends a training early by the clock, the learning rate following whichever of steps and minutes is
    nearer its end; without it a training is a pure function of the config and the machine. ``accumulate`` batches make
    one step. A training that diverges goes back to its last good state at half the learning rate, ``rollbacks`` times
    at most.
    """

    steps: Positive = 2000
    minutes: Annotated[float, Field(gt=0)] | None = None
    batch: Positive = 2
    accumulate: Positive = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    warmup: Annotated[int, Field(ge=0)] = 50
    clip: Annotated[float, Field(gt=0)] = 1.0
    rollbacks: Annotated[int, Field(ge=0)] = 3
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    log_every: Positive = 20
    validate_every: Positive = 250
    checkpoint_seconds: Annotated[float, Field(gt=0)] = 60.0
