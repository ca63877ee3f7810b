"""From a model folder to samples: sample i is a pure function of (model, seed, i, request)."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medgen import __version__
from medgen.cohort.derive import derive
from medgen.cohort.requests import Row, check, resolve
from medgen.cohort.sample import Sample
from medgen.cohort.schema import Schema, Value, volume_column
from medgen.cohort.where import from_values
from medgen.errors import InputError
from medgen.generation.model import LoadedModel, load_model
from medgen.measure.volumes import label_volumes_ml
from medgen.prepare.grid import GeometryRecord
from medgen.prepare.intensity import IntensityRecord
from medgen.registry import check_options
from medgen.registry import resolve as plug_in
from medgen.sampling.noise import Key, streams
from medgen.steering.cfg import wrap as guide
from medgen.training.precision import device_of
from medgen.volume import Volume


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn.

    Attributes:
        sampler: kind of solver.
        options: its options.
        steps: of the solver.
        guidance: classifier-free guidance scale, 1 for none.
        batch: samples at a time; 1 gives the same bits whatever else is drawn.
        space: "native" restores a training case's own grid; "grid" keeps the model's.
    """

    sampler: str
    options: Mapping[str, Any]
    steps: int
    guidance: float
    batch: int = 1
    space: str = "native"


class Generator:
    """Draws samples from a model.

    Use :meth:`load`, then :meth:`sample` for one, or :meth:`draw` for rows of a plan.
    """

    def __init__(self, model: LoadedModel, drawing: Drawing | None = None) -> None:
        self.model = model
        defaults = model.spec.sampling
        self.drawing = drawing or Drawing(
            defaults["sampler"], defaults["options"], int(defaults["steps"]), float(defaults["guidance"])
        )
        if self.drawing.steps < 1:
            raise InputError(f"the sampler needs at least 1 step, not {self.drawing.steps}")
        check_options("sampling", self.drawing.sampler, "sample", self.drawing.options)
        self._solver = partial(plug_in("sampling", self.drawing.sampler, "sample"), **self.drawing.options)

    @staticmethod
    def load(folder: str | Path, *, device: str = "auto", drawing: Drawing | None = None) -> "Generator":
        """Load a model folder.

        Raises:
            InputError: not a model folder, damaged, or the device is not there.
        """
        return Generator(load_model(Path(folder), device_of(device)), drawing)

    @property
    def schema(self) -> Schema:
        """What can be asked for."""
        return self.model.schema

    def sample(
        self,
        *,
        seed: int = 0,
        index: int = 0,
        volumes_ml: Mapping[str, object] | None = None,
        force: bool = False,
        **covariates: object,
    ) -> Sample:
        """Draw one sample.

        Args:
            seed: of the dataset.
            index: of the sample in it.
            volumes_ml: label name -> requested volume or (low, high).
            force: allow requests that the cohort never covers.
            **covariates: name -> value, (low, high) or list of levels, for example ``age=(60, 80), sex="F"``.

        Returns:
            The sample; what was not asked for is drawn conditionally on what was.

        Raises:
            InputError: unknown covariate, or a request beyond the cohort without ``force``.
        """
        request = from_values(covariates, self.schema, volumes_ml=volumes_ml, force=force)
        check(request, self.schema, self.model.joint)
        row = resolve(request, self.model.joint, seed, index)
        return self.draw([row], [Key(seed, index)])[0]

    def draw(self, rows: Sequence[Row], keys: Sequence[Key]) -> list[Sample]:
        """Draw a sample for each resolved row, in batches of ``drawing.batch``.

        Args:
            rows: covariates, none missing.
            keys: (seed, index, attempt) of each.
        """
        samples = []
        for start in range(0, len(rows), self.drawing.batch):
            part = slice(start, start + self.drawing.batch)
            images, probabilities = self._decode(self._latents(rows[part], keys[part]))
            for b, (row, key) in enumerate(zip(rows[part], keys[part], strict=True)):
                samples.append(self._sample(images[b], None if probabilities is None else probabilities[b], row, key))
        return samples

    @torch.no_grad()
    def _latents(self, rows: Sequence[Row], keys: Sequence[Key]) -> torch.Tensor:
        model, drawing = self.model, self.drawing
        flags = {c.name: "yes" for c in model.encoder.schema.covariates if c.name not in model.schema}
        cond = model.encoder.encode([{**row.values, **flags} for row in rows]).to(model.device)
        steered = guide(model.process.as_model(model.network), scale=drawing.guidance)
        shape = model.spec.latent_shape
        noise = streams(keys, shape, model.device)
        return model.process.sample(steered, (len(rows), *shape), cond, self._solver, noise, steps=drawing.steps)

    @torch.no_grad()
    def _decode(self, latents: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        decoded = self.model.codec.decode(self.model.statistics.restore(latents))
        images = decoded.image.float().clamp(-1, 1).cpu().numpy()
        logits = decoded.label_logits
        return images, None if logits is None else logits.float().softmax(dim=1).cpu().numpy()

    def _sample(self, image: np.ndarray, probabilities: np.ndarray | None, row: Row, key: Key) -> Sample:
        """Back to a scanner's units and grid: those of a training case drawn by (seed, index)."""
        spec = self.model.spec
        chosen = int(np.random.default_rng([key.seed & (2**63 - 1), key.index, 7]).integers(len(spec.records)))
        record = spec.records[chosen]
        geometry = GeometryRecord.from_json(record["geometry"])
        native = self.drawing.space == "native"
        grid = geometry.source if native else geometry.target
        intensities = [IntensityRecord.from_json(r) for r in record["intensity"]]
        restored = geometry.invert_image(image, fill=-1.0) if native else image
        images = {
            name: Volume(r.invert(restored[c : c + 1]), grid.affine)
            for c, (name, r) in enumerate(zip(spec.channels, intensities, strict=True))
        }
        label: Volume | None = None
        measured: dict[str, Value] = {}
        if probabilities is not None:
            ids = geometry.invert_probabilities(probabilities) if native else probabilities.argmax(axis=0)
            values = np.asarray(spec.label_values, dtype=_label_type(spec.label_values))[ids]
            label = Volume(values[None], grid.affine)
            # In the subject's own space: on the model's grid a registration may have scaled the voxels.
            own = 1.0 if native else geometry.voxel_ml / geometry.target.voxel_ml
            on_grid = label_volumes_ml(values, spec.label_values[1:], grid.affine)
            volumes = {value: volume * own for value, volume in on_grid.items()}
            names = zip(spec.label_values[1:], spec.label_names[1:], strict=True)
            measured = {volume_column(name): round(volumes[value], 4) for value, name in names}
            told = derive(spec.derived, volumes, row.values)
            measured |= {name: told[name] for name in spec.derived}
        return Sample(
            sample_id=f"syn{key.index:06d}",
            images=images,
            label=label,
            covariates=_covariates(row.values, measured),
            sidecar=self._sidecar(row, key, measured, chosen),
        )

    def _sidecar(self, row: Row, key: Key, measured: Mapping[str, Value], record: int) -> dict[str, Any]:
        return {
            **provenance(self.model.sha256, self.drawing),
            "index": key.index,
            "attempt": key.attempt,
            "seed": key.seed,
            "request": {name: row.values[name] for name in sorted(row.asked)},
            "drawn": {name: v for name, v in row.values.items() if name not in row.asked},
            "extrapolated": list(row.extrapolated),
            "measured": dict(measured),
            "geometry_record": record,
            "effective_resolution_mm": list(self.model.spec.spacing_mm),
        }


def _label_type(values: Sequence[int]) -> type[np.integer[Any]]:
    """The smallest common integer type that holds a cohort's label values."""
    if min(values) >= 0 and max(values) < 256:
        return np.uint8
    return np.int16 if max(abs(v) for v in values) < 2**15 else np.int32


def provenance(sha256: str, drawing: Drawing) -> dict[str, Any]:
    """The part of a sidecar that all samples of a dataset share."""
    # The batch size is left out: it may differ between the shards of one dataset.
    how = {key: value for key, value in asdict(drawing).items() if key != "batch"}
    return {"medgen": __version__, "model_sha256": sha256, "drawing": how}


def _covariates(asked: Mapping[str, Value], measured: Mapping[str, Value]) -> dict[str, Value]:
    """A row of the participants table: conditions as drawn, what the label tells as measured beside ``requested_``."""
    requested = {f"requested_{name}" if name in measured else name: value for name, value in asked.items()}
    return {**requested, **measured}
