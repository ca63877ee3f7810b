"""The parts that the stages of an experiment are made of: a step of training, an encoding, a forward pass, a decoding.

The same parts are timed on this machine (:mod:`medgen.doctor.steps`) and counted for another one
(:mod:`medgen.doctor.counted`); :mod:`medgen.doctor.amounts` says how often a run needs each.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from medgen import config as configs
from medgen.doctor.stand_ins import Zeros, segmenter_task
from medgen.generation.model import build_codec, build_network
from medgen.models import tiling
from medgen.models.codec import Codec
from medgen.models.condition import Condition, ConditionEncoder, crop_box
from medgen.models.mask import MaskInput
from medgen.models.text import TextStates
from medgen.registry import resolve
from medgen.stages.codec import autoencoder_task
from medgen.stages.run import Run
from medgen.store.latent_rows import LatentRows
from medgen.store.latents import LatentStatistics
from medgen.training.autoencoder import AutoencoderTask
from medgen.training.diffusion import DiffusionTask, LatentSet
from medgen.training.loop import Task
from medgen.training.precision import autocast

CODEC_STEP, ENCODE, DECODE, DECODE_BACK = "codec_step", "encode", "decode", "decode_back"
DENOISER_STEP, CROP_STEP, FORWARD, FORWARD_BACK = "denoiser_step", "crop_step", "forward", "forward_back"
STUDENT_STEP, SEGMENTER_STEP = "student_step", "segmenter_step"
PARTS = (
    SEGMENTER_STEP,
    CODEC_STEP,
    ENCODE,
    DENOISER_STEP,
    CROP_STEP,
    STUDENT_STEP,
    FORWARD,
    FORWARD_BACK,
    DECODE,
    DECODE_BACK,
)
_RATE = 1e-6
RATE_WIDTH, RATE_EXTENT = 32, 32
RATE_FLOPS = 3 * 2 * 27 * RATE_WIDTH**2 * RATE_EXTENT**3
"""Of a convolution, forward and backward, that says how fast a machine is."""


@dataclass(frozen=True)
class Job:
    """What is asked of an experiment's networks, JSON-able.

    Attributes:
        config: of the experiment.
        channels: of the image.
        labels: ids that the codec carries.
        label_ids: of the cohort, background included.
        shape: of the prepared grid.
        encoder: of the conditions.
        rows: covariates of a few cases.
        mask: labels and stride of the masks that images follow, None where they follow none.
        at_once: rows of the denoiser's usual call while samples are drawn: two with guidance.
        parts: that the run needs.
        precision: of trainings for which the config sets none.
    """

    config: Mapping[str, Any]
    channels: int
    labels: int
    label_ids: int
    shape: tuple[int, int, int]
    encoder: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    mask: tuple[int, int] | None
    at_once: int
    parts: tuple[str, ...]
    precision: str = "auto"

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> "Job":
        """From what ``dataclasses.asdict`` gave, through JSON."""
        mask = None if raw["mask"] is None else (int(raw["mask"][0]), int(raw["mask"][1]))
        x, y, z = (int(n) for n in raw["shape"])
        return Job(**{**raw, "shape": (x, y, z), "mask": mask, "parts": tuple(raw["parts"])})


class Networks:
    """Codec and denoiser of a job with what trains them, and the parts as functions without arguments.

    Weights and tasks are made at once, on the CPU or on ``device``; what else a part needs is made when it runs, so
    that it can run where tensors hold no values.

    Args:
        job: see :class:`Job`.
        device: where they run.
    """

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job, self.device = job, device
        self.run = Run(configs.build(dict(job.config), "the config"), Path(), lambda *_: None)
        c, d = self.run.config, self.run.config.diffusion
        codec = build_codec(self.run.codec_kind(), job.channels, job.labels).to(device)
        encoder = ConditionEncoder.from_json(job.encoder)
        if encoder.text is not None:
            encoder = replace(encoder, states=TextStates(encoder.text, c.covariates.text_encoder))
        self.latent = (codec.latent_channels, *(n // codec.stride for n in job.shape))
        mask = None if job.mask is None else MaskInput(*job.mask)
        network = build_network(self.run.network_kind(), self.latent[0], encoder.schema, mask).to(device)
        a = c.autoencoder.model_copy(
            update={"training": c.autoencoder.training.model_copy(update={"learning_rate": _RATE})}
        )
        self.codec: Codec = codec
        self.network: nn.Module = network
        zeros = Zeros(job.channels, job.labels, job.shape, a.patch, a.training.batch, device)
        self.codec_task: AutoencoderTask = autoencoder_task(codec, zeros.as_sampler(), [], a, 0)
        asked = SEGMENTER_STEP in job.parts
        self.segmenter_task = segmenter_task(job.channels, job.label_ids, job.shape, device) if asked else None
        self.process = resolve("diffusion", d.process, "build")(**d.process_options)
        rows = max(d.training.batch, c.distil.training.batch if c.distil else 1, job.at_once, c.generate.batch)
        self.cond = encoder.encode([job.rows[i % len(job.rows)] for i in range(rows)]).to(device)
        self.denoiser_task = self._denoiser_task(self.latent[1:], d.training.batch)

    def part(self, name: str, *, budget: int | None = None) -> Callable[[], Any]:
        """One part as a function.

        Args:
            name: of it.
            budget: bytes for activations of an encoding or decoding; by default what the device allows.
        """
        c, d = self.run.config, self.run.config.diffusion
        crop = d.patch or self.latent[1:]
        at_once, student = self.job.at_once, c.distil.training if c.distil else d.training
        works: dict[str, Callable[[], Any]] = {
            SEGMENTER_STEP: lambda: step(cast(Task, self.segmenter_task), self.device, self.job.precision),
            CODEC_STEP: partial(step, self.codec_task, self.device, c.autoencoder.training.precision),
            ENCODE: partial(self._encode, budget),
            DENOISER_STEP: lambda: step(self.denoiser_task, self.device, d.training.precision),
            CROP_STEP: lambda: self._step(crop, d.training.batch, d.training.precision),
            STUDENT_STEP: lambda: self._step(self.latent[1:], student.batch, student.precision),
            FORWARD: partial(self._forward, at_once, back=False),
            FORWARD_BACK: partial(self._forward, at_once, back=True),
            DECODE: partial(self._decode, budget),
            DECODE_BACK: self._decode_back,
        }
        return works[name]

    def _denoiser_task(self, extent: Sequence[int], batch: int) -> DiffusionTask:
        d, size = self.run.config.diffusion, (self.latent[0], *extent)
        mean = torch.randn(batch, *size).to(self.device)
        cond = self.cond.rows(slice(0, batch))
        if tuple(extent) != self.latent[1:]:
            cond = cond.crop(crop_box((0, 0, 0), extent, self.latent[1:]).to(self.device))
        weight = torch.ones_like(mean[:, :1]) if d.mask_padding else None
        rows = LatentRows(mean, torch.zeros_like(mean), self.device, weight=weight, masks=cond.mask)
        return DiffusionTask(
            self.network,
            self.process,
            LatentSet(rows, replace(cond, mask=None)),
            LatentStatistics((0.0,) * size[0], (1.0,) * size[0]),
            None,
            batch=batch,
            learning_rate=_RATE,
            drop_all=d.drop_all,
            drop_each=d.drop_each,
            seed=0,
        )

    def _step(self, extent: Sequence[int], batch: int, precision: str) -> None:
        """A step of the denoiser on other extents or another batch, with the optimiser of the usual one."""
        task = self._denoiser_task(extent, batch)
        task.optimisers = self.denoiser_task.optimisers
        step(task, self.device, precision)

    @torch.no_grad()
    def _encode(self, budget: int | None) -> None:
        image = torch.zeros(1, self.job.channels, *self.job.shape, device=self.device)
        label = torch.zeros(1, *self.job.shape, dtype=torch.int64, device=self.device) if self.job.labels else None
        tiling.encode(self.codec, image, label, tile=self.run.config.latents.tile, budget=budget)

    @torch.no_grad()
    def _decode(self, budget: int | None) -> None:
        latent = torch.zeros(1, *self.latent, device=self.device)
        tiling.decode(self.codec, latent, tile=self.run.config.generate.tile, budget=budget)

    def _decode_back(self) -> None:
        """As steering by what is decoded does: whole, and differentiated."""
        latent = torch.zeros(1, *self.latent, device=self.device, requires_grad=True)
        with torch.enable_grad():
            decoded = self.codec.decode(latent)
            out = decoded.image if decoded.label_logits is None else decoded.label_logits
            torch.autograd.grad(out.float().softmax(dim=1).sum(), latent)

    def _forward(self, rows: int, *, back: bool) -> None:
        """The denoiser as a sampler asks it, and differentiated where steering does that."""
        model = self.process.as_model(self.network)
        x = torch.zeros(rows, *self.latent, device=self.device, requires_grad=back)
        with torch.set_grad_enabled(back):
            out = model(x, torch.ones(rows, device=self.device), self._conditions(rows)).x0
            if back:
                torch.autograd.grad(out.sum(), x)

    def _conditions(self, rows: int) -> Condition:
        return self.cond.rows(slice(0, rows))


def step(task: Task, device: torch.device, precision: str) -> None:
    """One step as :func:`medgen.training.loop.train` takes it, without clipping."""
    with autocast(device, precision):
        # Late in the training, so that an adversary takes part.
        for loss, name, _ in task.step(0, 0.9):
            task.optimisers[name].zero_grad(set_to_none=True)
            with torch.autocast(device.type, enabled=False):
                loss.backward()
            task.optimisers[name].step()
