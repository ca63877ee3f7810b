"""How often a run needs each part, stage by stage, and what a stage holds beside them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from types import MappingProxyType
from typing import Any

from medgen.cohort.joint import Joint
from medgen.config import Config, TrainingConfig
from medgen.doctor import parts
from medgen.doctor.evaluations import Evaluations, Sampling
from medgen.models.condition import ConditionEncoder
from medgen.registry import resolve
from medgen.stages.run import SEGMENTED, with_known
from medgen.store.pool import SHARE
from medgen.store.prepared import Prepared
from medgen.training.autoencoder import VALIDATED
from medgen.training.diffusion import BANDS, HELD_OUT_SHARE, LEVELS_A_BAND, TRAINING_SHARE
from medgen.training.ema import GAMMAS

REPORT = "report"
_PANEL_ROWS, _PANEL_STEPS = 3, 8


@dataclass(frozen=True)
class Amount:
    """How much of a stage a run does.

    Attributes:
        units: steps, encodings or samples.
        unit: what one is called.
        each: part -> how often for a unit.
        beside: part -> how often beside the units, over the whole stage: validations.
        minutes: that end it earlier.
        resident_bytes: on the device beside what its parts count: the cohort, or its latents.
        disk_bytes: that it writes, where it is much.
        times: so often in all, where a run goes fold by fold.
    """

    units: int
    unit: str
    each: Mapping[str, float]
    beside: Mapping[str, float] = field(default_factory=dict)
    minutes: float | None = None
    resident_bytes: int = 0
    disk_bytes: int = 0
    times: int = 1

    @property
    def parts(self) -> tuple[str, ...]:
        """All that it needs."""
        return tuple(dict.fromkeys([*self.each, *self.beside]))


def amounts(
    c: Config,
    store: Prepared,
    encoder: ConditionEncoder,
    joint: Joint,
    row: Mapping[str, Any],
    *,
    training: int,
    cases: int,
    folds: int = 1,
    memory_bytes: int | None = None,
    segmenters: Mapping[str, int] = MappingProxyType({}),
) -> tuple[dict[str, Amount], Evaluations]:
    """What an experiment's stages take.

    Args:
        c: the experiment.
        store: its prepared cohort, foreseen or real.
        encoder: of the conditions.
        joint: of the covariates.
        row: conditions of a case.
        training: cases that train; of a fold, where there are folds.
        cases: all cases.
        folds: models that are trained.
        memory_bytes: of the device: a cohort that takes too much of it is shown through a window.
        segmenters: steps of the segmenters that the stages ``segmented`` and ``report`` train, where they do.

    Returns:
        Stage -> its amount, and what one sample takes.

    Raises:
        InputError: steering that does not fit the conditions.
    """
    d, g = c.diffusion, c.generate
    held_out = max(0, cases - training)
    rows = training * (1 + c.latents.copies) * (2 if c.latents.mirror else 1)
    encoded = rows + held_out * (2 if c.latents.mirror else 1)
    sampling = Sampling(
        resolve("diffusion", d.process, "build")(**d.process_options),
        g.sampler,
        g.sampler_options,
        g.steps,
        g.guidance,
        g.steering,
        encoder,
        joint,
        store.label_names,
        row,
    )
    asked = sampling.of_a_sample()
    found = {}
    if SEGMENTED in segmenters:
        found[SEGMENTED] = _segmenter(segmenters[SEGMENTED], store, training, memory_bytes)
    found |= {
        "autoencoder": _codec(c, store, training, held_out, memory_bytes),
        "latents": Amount(encoded, "encoding", {parts.ENCODE: 1.0}, disk_bytes=encoded * _row_bytes(c, store)),
        "diffusion": _diffusion(c, store, sampling, rows, held_out, memory_bytes),
    }
    drawn = asked
    if c.distil is not None:
        found["distilled"] = _distilled(c, sampling)
        drawn = sampling.plain("euler", c.distil.steps)
    found["synthetic"] = Amount(g.n, "sample", _of(drawn, decodes=1))
    if REPORT in segmenters:
        found[REPORT] = _segmenter(segmenters[REPORT], store, training, memory_bytes)
    return {name: replace(a, times=folds) for name, a in found.items()}, asked


def _steps(t: TrainingConfig) -> int:
    return t.steps * t.accumulate


def _validations(t: TrainingConfig) -> int:
    return -(-t.steps // t.validate_every)


def _segmenter(steps: int, store: Prepared, training: int, memory_bytes: int | None) -> Amount:
    """A segmenter that a stage trains; what else it does with it is little beside that."""
    ids = 1 if len(store.label_values) <= 128 else 2
    cohort = prod(store.shape) * (2 * len(store.channels) + ids) * training
    if memory_bytes is not None:
        cohort = min(cohort, int(SHARE * memory_bytes))
    return Amount(steps, "step", {parts.SEGMENTER_STEP: 1.0}, resident_bytes=cohort)


def _codec(c: Config, store: Prepared, training: int, held_out: int, memory_bytes: int | None) -> Amount:
    a = c.autoencoder
    bytes_a_value = 1 if a.sampling.storage == "uint8" else 2
    ids = 0 if len(store.label_values) < 2 else 1 if len(store.label_values) < 128 else 2
    case = prod(store.shape) * (bytes_a_value * len(store.channels) + ids)
    cohort = case * (a.sampling.resident or training)
    if memory_bytes is not None:
        cohort = min(cohort, int(SHARE * memory_bytes))
    looked_at = (min(VALIDATED, held_out) + (held_out > 0)) * _validations(a.training)
    beside = {parts.ENCODE: float(looked_at), parts.DECODE: float(looked_at)} if looked_at else {}
    return Amount(_steps(a.training), "step", {parts.CODEC_STEP: 1.0}, beside, a.training.minutes, cohort)


def _diffusion(
    c: Config, store: Prepared, sampling: Sampling, rows: int, held_out: int, memory_bytes: int | None
) -> Amount:
    d = c.diffusion
    whole = 1.0 if d.patch is None else d.full_share
    each = {name: share for name, share in ((parts.DENOISER_STEP, whole), (parts.CROP_STEP, 1 - whole)) if share > 0}
    bands = len(BANDS) * LEVELS_A_BAND * len(GAMMAS) * held_out
    curve = d.memorisation.samples * sampling.plain("heun", d.memorisation.steps).rows if d.memorisation.samples else 0
    panel = _PANEL_ROWS * sampling.plain("heun", _PANEL_STEPS).rows
    times = _validations(d.training)
    beside = {parts.FORWARD: float(times * (bands + curve + panel)), parts.DECODE: float(times * _PANEL_ROWS)}
    of_a_row = _row_bytes(c, store)
    kept = ((TRAINING_SHARE, of_a_row * rows), (HELD_OUT_SHARE, of_a_row * held_out))
    # What exceeds its share of the device is read from disk.
    resident = sum(size for share, size in kept if memory_bytes is None or size <= share * memory_bytes)
    return Amount(_steps(d.training), "step", each, beside, d.training.minutes, resident)


def _row_bytes(c: Config, store: Prepared) -> int:
    """Of a row of latents: mean and log-variance in float32, a byte that says what files reach, and a followed mask."""
    channels = int(c.autoencoder.options.get("latent_channels", 4))
    stride = with_known(resolve("models", c.autoencoder.kind, "stride"), c.autoencoder.options)
    of_a_latent = 8 * channels + 1
    if c.pairs == "mask":
        of_a_latent += stride**3 * (1 if len(store.label_values) <= 127 else 2)
    return of_a_latent * (prod(store.shape) // stride**3)


def _distilled(c: Config, sampling: Sampling) -> Amount:
    distil = c.distil
    assert distil is not None
    t, steps = distil.training, _steps(distil.training)
    path = sampling.of_a_path(distil.steps, distil.teacher_steps)
    asked = sampling.of_an_objective(distil.kind, distil.options, distil.steps)
    paths = t.batch * -(-steps // distil.reuse)
    beside = {name: many * paths for name, many in _of(path).items()}
    return Amount(steps, "step", {parts.STUDENT_STEP: float(max(1, asked.rows + asked.rows_back))}, beside, t.minutes)


def _of(e: Evaluations, *, decodes: int = 0) -> dict[str, float]:
    """What a sample takes, as parts."""
    whole = {
        parts.FORWARD: e.rows,
        parts.FORWARD_BACK: e.rows_back,
        parts.DECODE: e.decodes + decodes,
        parts.DECODE_BACK: e.decodes_back,
    }
    return {name: float(many) for name, many in whole.items() if many}
