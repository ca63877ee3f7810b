"""Sections about the cohort: where it is, how it is prepared, what conditions the model."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from medgen.config.base import (
    IntTriple,
    Options,
    Positive,
    Section,
    Seed,
    Share,
    Triple,
)


class PhantomConfig(Section):
    """The embedded cohort, used where no data is given."""

    n: Positive = 64
    spacing_mm: Annotated[float, Field(ge=1, le=8)] = 3.0
    seed: Seed = 0
    missing: Share = 0.0


class DataConfig(Section):
    """Where the cohort comes from: a folder or table, or the phantom.

    ``folds`` is a number of folds, or an nnU-Net ``splits_final.json``: a model is then trained for each fold that has
    seen none of its validation cases.

    ``unlabelled`` is what becomes of training cases without a label where others have one. ``condition``: they train
    as they are, and the model is told which cases have a label. ``segment``: a segmenter trained on the labelled
    training cases labels them first, in ``segmenter_steps``; where few cases have a label, the model then does not
    learn pairs from these few alone.
    """

    root: Path | None = None
    phantom: PhantomConfig | None = None
    format: str | None = None
    options: Options = {}
    validation: Share = 0.2
    folds: Annotated[int, Field(ge=2)] | Path | None = None
    unlabelled: Literal["condition", "segment"] = "condition"
    segmenter_steps: Positive = 1500

    @model_validator(mode="after")
    def _one_source(self) -> "DataConfig":
        if self.phantom is not None and self.root is not None:
            raise ValueError("data needs either 'root' or 'phantom', not both")
        return self


class PrepareConfig(Section):
    """From scans to arrays; see :class:`medgen.prepare.options.PrepareOptions`."""

    spacing_mm: Annotated[float, Field(gt=0)] | Triple | None = None
    shape: IntTriple | None = None
    stride: Positive | None = None
    n4: bool = False
    register_to: Literal["none", "rigid", "affine"] = "none"
    template: Path | None = None
    crop: Literal["foreground", "none"] = "foreground"
    channels: tuple[str, ...] | None = None


class CovariatesConfig(Section):
    """Which columns condition the model, and columns derived from others.

    ``spacing`` adds the native voxel size along each axis where it varies. ``text_encoder`` is the folder of the frozen
    encoder that text columns are read with, ``text_tokens`` of each text at most.
    """

    use: tuple[str, ...] | None = None
    schema_file: Path | None = None
    derived: dict[str, str] = {}
    spacing: bool = False
    text_encoder: Path | None = None
    text_tokens: Positive = 64
