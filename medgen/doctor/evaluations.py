"""How often drawing a sample asks the denoiser and the codec, found by drawing one with stubs that only count.

Guidance asks twice, intervals of it not always, steering by volumes decodes and differentiates: whatever plugs in is
asked itself, and no table of costs has to follow it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from medgen.cohort.joint import Joint
from medgen.diffusion.process import Process
from medgen.models.codec import Decoded
from medgen.models.condition import Condition, ConditionEncoder
from medgen.models.seam import Model, Prediction
from medgen.registry import resolve
from medgen.sampling import heun
from medgen.sampling.noise import Key, streams
from medgen.steering import chain
from medgen.steering.context import Context, Known
from medgen.training.distil.objective import Batch
from medgen.training.distil.paths import levels, paths
from medgen.training.distil.straight import time_of

_SHAPE = (1, 4, 4, 4)


@dataclass
class Evaluations:
    """What a sample takes.

    Attributes:
        rows: of the denoiser, without a gradient.
        rows_back: of it, differentiated.
        calls: of it.
        decodes: of the codec, beside the last one.
        decodes_back: of these, differentiated.
    """

    rows: int = 0
    rows_back: int = 0
    calls: int = 0
    decodes: int = 0
    decodes_back: int = 0

    @property
    def at_once(self) -> int:
        """Rows of a usual call."""
        return max(1, round((self.rows + self.rows_back) / max(1, self.calls)))


@dataclass(frozen=True)
class _Counted:
    """A denoiser and a decoder that count."""

    labels: int
    found: Evaluations = field(default_factory=Evaluations)

    def model(self, x: torch.Tensor, sigma: torch.Tensor, cond: Condition, *, taps: Sequence[str] = ()) -> Prediction:
        back = torch.is_grad_enabled() and x.requires_grad
        self.found.calls += 1
        self.found.rows += 0 if back else len(x)
        self.found.rows_back += len(x) if back else 0
        return Prediction(0.5 * x)

    def decode(self, latent: torch.Tensor) -> Decoded:
        back = torch.is_grad_enabled() and latent.requires_grad
        self.found.decodes += 0 if back else len(latent)
        self.found.decodes_back += len(latent) if back else 0
        logits = latent.mean(dim=1, keepdim=True) * torch.linspace(-1, 1, max(1, self.labels)).reshape(1, -1, 1, 1, 1)
        return Decoded(latent[:, :1], logits if self.labels else None)


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
        process: of the model.
        sampler: kind of solver.
        options: of it.
        steps: of it.
        guidance: short for a ``cfg`` entry.
        steering: entries.
        encoder: of the conditions.
        joint: of the covariates.
        labels: names by id, background first.
        row: covariates of a case.
    """

    process: Process
    sampler: str
    options: Mapping[str, Any]
    steps: int
    guidance: float
    steering: chain.Steps
    encoder: ConditionEncoder
    joint: Joint
    labels: tuple[str, ...]
    row: Mapping[str, Any]

    def _counted(self) -> tuple[_Counted, Model]:
        counted = _Counted(len(self.labels))
        # A second model is taken to cost what the first one does.
        context = Context(Known(self.joint, self.labels), self.encoder, counted.decode, 1.0, lambda _: counted.model)
        return counted, chain.apply(counted.model, self.steering, self.guidance, context)

    def of_a_sample(self) -> Evaluations:
        """What one sample takes.

        Raises:
            InputError: steering that does not fit the conditions.
        """
        counted, model = self._counted()
        solver = partial(resolve("sampling", self.sampler, "sample"), **self.options)
        self._draw(model, solver, self.steps)
        return counted.found

    def _draw(self, model: Model, solver: Any, steps: int) -> None:
        noise = streams([Key(0, 0)], _SHAPE, torch.device("cpu"))
        with torch.no_grad():
            cond = self.encoder.encode([self.row])
            self.process.sample(model, (1, *_SHAPE), cond, solver, noise, steps=steps)

    def of_a_path(self, steps: int, teacher_steps: int) -> Evaluations:
        """What one path of a teacher takes, for a student of ``steps``."""
        counted, model = self._counted()
        noise, cond = streams([Key(0, 0)], _SHAPE, torch.device("cpu")), self.encoder.encode([self.row])
        with torch.no_grad():
            shape = (1, *_SHAPE)
            paths(model, self.process, heun.sample, shape, cond, noise, steps=steps, teacher_steps=teacher_steps)
        return counted.found

    def of_an_objective(self, kind: str, options: Mapping[str, Any], steps: int) -> Evaluations:
        """What a student's objective asks of it for one row."""
        student = _Counted(len(self.labels))
        cond = self.encoder.encode([self.row])
        times = time_of(levels(self.process, steps, cond))
        path = torch.zeros(1, steps + 1, *_SHAPE, requires_grad=True)
        batch = Batch(path, times, cond, torch.zeros(1))
        resolve("training.distil", kind, "loss")(student.model, batch, **options)
        return student.found

    def plain(self, sampler: str, steps: int) -> Evaluations:
        """What a sample takes without guidance and steering, by another solver."""
        counted = _Counted(len(self.labels))
        self._draw(counted.model, resolve("sampling", sampler, "sample"), steps)
        return counted.found
