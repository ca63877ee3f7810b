"""What a wrapper may need to know beside its options: the request's columns, and the loaded model's way to anatomy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from medgen.cohort.joint import Joint
from medgen.cohort.schema import Covariate, Schema, volume_column
from medgen.cohort.where import known
from medgen.errors import InputError
from medgen.models.codec import Decoded
from medgen.models.condition import Condition, ConditionEncoder
from medgen.models.seam import Model


@dataclass(frozen=True)
class Known:
    """What can be asked of a model; known before it is trained.

    Attributes:
        joint: of the covariates users may ask for.
        labels: label names by id, background first; empty without labels.
        by_mask: those of the covariates that only the mask is asked for, where images follow masks.
    """

    joint: Joint
    labels: tuple[str, ...]
    by_mask: frozenset[str] = frozenset()

    @property
    def schema(self) -> Schema:
        """The covariates users may ask for."""
        return self.joint.schema

    def require(self, name: str, source: str) -> Covariate:
        """The covariate of that name, of which the denoiser itself is told.

        Raises:
            InputError: there is none, or the denoiser only sees the mask that was made for it.
        """
        column = known(name, self.schema, source)
        if name in self.by_mask:
            raise InputError(
                f"{source}: images follow masks, and '{name}' is asked of the mask alone; ask for it in the request"
            )
        return column

    @property
    def volumes(self) -> dict[str, int]:
        """Label name -> id, of the labels whose volume can be asked for."""
        columns = self.schema.names
        return {name: i for i, name in enumerate(self.labels) if i and volume_column(name) in columns}


@dataclass(frozen=True)
class Context:
    """A loaded model as wrappers see it; made at the edge, by the generator.

    A wrapper whose signature has the keyword ``context`` is given it.

    Attributes:
        known: what can be asked for.
        encoder: rows of covariates -> condition.
        decode: standardised latents (B, C, x, y, z) -> image and label logits.
        voxel_ml: volume of a decoded voxel; None where a registration gave every case its own.
        other: a second model folder of the same latent space -> its model.
    """

    known: Known
    encoder: ConditionEncoder
    decode: Callable[[torch.Tensor], Decoded]
    voxel_ml: float | None
    other: Callable[[Path], Model]

    def asked(self, cond: Condition, columns: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Values (B, len(columns)) of numeric columns in their own units, and whether each is asked (B, ...)."""
        index = [cond.columns.index(name) for name in columns]
        scale, centre = (
            cond.values.new_tensor([v[k] for k in index]) for v in (self.encoder.scale, self.encoder.centre)
        )
        return cond.values[:, index] * scale + centre, cond.present[:, index]
