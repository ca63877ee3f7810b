"""Sections about the diffusion model and its student."""

from typing import Annotated, Literal

from pydantic import Field

from medgen.config.base import (
    Options,
    PatchTriple,
    Positive,
    Section,
    Share,
    UnitInterval,
)
from medgen.config.training import TrainingConfig


class DiffusionTrainingConfig(TrainingConfig):
    """The denoiser's: latents are small, and a batch holds more of them."""

    batch: Positive = 8


class DistilTrainingConfig(TrainingConfig):
    """The student's: it starts from the teacher's weights, at a low rate."""

    steps: Positive = 1000
    batch: Positive = 8
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4


class MemorisationConfig(Section):
    """The memorisation curve: how near samples come to training cases; see :mod:`medgen.training.memorisation`.

    ``samples`` are drawn at each validation on fixed seeds, 0 for none, in ``steps`` of the sampler; ``quantile`` of
    real cases' nearness is where a sample counts as a copy.
    """

    samples: Annotated[int, Field(ge=0)] = 12
    steps: Positive = 8
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.05


class DiffusionConfig(Section):
    """The process, its network and its training.

    ``patch``, in latents, mixes random crops with whole latents, a step being whole with the chance ``full_share``
    (:class:`medgen.training.diffusion.Crops`). ``ema`` is the average that the model gets: ``auto`` takes the better on
    held-out cases. ``keep: best`` takes the weights of the best validation whose samples do not copy training cases,
    ``last`` the last; without held-out cases it is the last. ``mask_padding`` leaves padding out of the loss where
    enough other training cases show what is there: for cases whose field of view cuts off what samples should have.
    Samples are then as large as the largest cases, and crops come out too large.
    """

    process: str = "flow"
    process_options: Options = {}
    network: str = "adaln_unet"
    network_options: Options = {}
    drop_all: Share = 0.1
    drop_each: Share = 0.1
    patch: PatchTriple | None = None
    full_share: UnitInterval = 0.5
    ema: Literal["auto", "short", "long"] = "auto"
    keep: Literal["best", "last"] = "best"
    mask_padding: bool = False
    memorisation: MemorisationConfig = MemorisationConfig()
    training: DiffusionTrainingConfig = DiffusionTrainingConfig()


class DistilConfig(Section):
    """A student that draws in a few steps; left out, samples are drawn by the model itself.

    It learns what ``generate`` says of sampling: guidance and steering are baked in. See
    :class:`medgen.generation.distil.Distillation`.
    """

    kind: str = "trajectory"
    options: Options = {}
    steps: Positive = 4
    teacher_steps: Positive = 16
    reuse: Positive = 8
    drop: Share = 0.1
    training: DistilTrainingConfig = DistilTrainingConfig()
