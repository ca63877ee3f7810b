"""What steering wrappers need of a loaded model, resolved here so that no wrapper reads a model folder."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from medgen.errors import InputError
from medgen.generation.model import LoadedModel, load_model
from medgen.models.condition import Condition
from medgen.models.seam import Model, Prediction
from medgen.prepare.grid import GeometryRecord
from medgen.steering.context import Context, Known


def context_of(model: LoadedModel) -> Context:
    """The model as steering sees it."""
    spec, told = model.spec, model.encoder.schema.names
    return Context(
        # Where images follow masks, no label is decoded that steering could measure.
        known=Known(model.joint, () if spec.mask else spec.label_names, frozenset(model.schema.names).difference(told)),
        encoder=model.encoder,
        decode=lambda latents: model.codec.decode(model.statistics.restore(latents)),
        voxel_ml=_voxel_ml(model),
        # One sample is one call, but a second model is loaded once.
        other=lru_cache(lambda folder: second_model(model, folder)),
    )


def _voxel_ml(model: LoadedModel) -> float | None:
    """A voxel's volume in the subjects' own space, where it is the same for all."""
    sizes = [GeometryRecord.from_json(r["geometry"]).voxel_ml for r in model.spec.records]
    return sizes[0] if sizes and max(sizes) <= min(sizes) * (1 + 1e-6) else None


def second_model(model: LoadedModel, folder: Path) -> Model:
    """Another model folder as a denoiser of the first one's latents, asked by the first one's conditions.

    Raises:
        InputError: not a model folder, or one of other latents or columns.
    """
    other = load_model(folder, model.device)
    _same_latents(model, other, folder)
    _same_columns(model, other, folder)
    denoise = other.process.as_model(other.network)
    ours, theirs = (
        [torch.tensor(v, device=model.device) for v in (m.encoder.centre, m.encoder.scale)] for m in (model, other)
    )

    def asked(x: torch.Tensor, sigma: torch.Tensor, cond: Condition, *, taps: Sequence[str] = ()) -> Prediction:
        # Two trainings standardise by their own cohorts: the same value is another number to each.
        values = (cond.values * ours[1] + ours[0] - theirs[0]) / theirs[1]
        return denoise(x, sigma, replace(cond, values=values), taps=taps)

    same = ours[0].equal(theirs[0]) and ours[1].equal(theirs[1])
    return denoise if same else asked


def _same_latents(model: LoadedModel, other: LoadedModel, folder: Path) -> None:
    mine, its = model.codec.state_dict(), other.codec.state_dict()
    same_codec = model.spec.codec.kind == other.spec.codec.kind and mine.keys() == its.keys()
    if not same_codec or not all(t.shape == its[n].shape and torch.equal(t, its[n]) for n, t in mine.items()):
        raise InputError(f"{folder} has another codec than the model; give a model trained on the same codec")
    if bool(model.spec.mask) != bool(other.spec.mask):
        raise InputError(f"{folder} and the model do not both follow masks; give a model of the same route to pairs")
    if model.spec.latent_shape != other.spec.latent_shape:
        shapes = [" x ".join(map(str, m.spec.latent_shape)) for m in (other, model)]
        raise InputError(f"{folder} draws latents of {shapes[0]}, the model of {shapes[1]}; give one of the same shape")
    a, b = (torch.tensor([m.statistics.mean, m.statistics.std]) for m in (model, other))
    if not torch.allclose(a, b, rtol=1e-4, atol=1e-5):
        raise InputError(f"{folder} standardises latents otherwise; give a model trained on the same cases")


def _same_columns(model: LoadedModel, other: LoadedModel, folder: Path) -> None:
    mine, its = (
        [(c.name, c.kind, c.levels, c.period, c.tokens, c.width) for c in m.encoder.schema.covariates]
        for m in (model, other)
    )
    if mine != its:
        names = ", ".join(n for n, *_ in its) or "nothing"
        raise InputError(f"{folder} is conditioned on {names}; give a model with the same columns and levels")
    if model.encoder.text != other.encoder.text:
        raise InputError(f"{folder} reads texts with another encoder than the model; give one trained with the same")
    labels = [(m.spec.label_values, m.spec.label_names) for m in (model, other)]
    if model.spec.mask and labels[0] != labels[1]:
        raise InputError(f"{folder} follows masks of other labels than the model; give one of the same labels")
