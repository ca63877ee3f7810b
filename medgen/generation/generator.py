"""From a model folder to samples: sample i is a pure function of (model, seed, i, request)."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medgen import __version__
from medgen.cohort.derive import derive
from medgen.cohort.requests import Row, check, resolve
from medgen.cohort.sample import Sample
from medgen.cohort.schema import SPACING_COLUMNS, Schema, Value, volume_column
from medgen.cohort.where import Request, from_values
from medgen.edit import chain as edits
from medgen.errors import ExtrapolationWarning, InputError
from medgen.generation.masks import FAULT, DrawnMasks, EditedMasks, GivenMasks, Mask, Masks
from medgen.generation.model import LoadedModel, load_model
from medgen.generation.place import placed, record_of
from medgen.generation.steer import context_of
from medgen.measure.volumes import label_volumes_ml
from medgen.models import tiling
from medgen.models.condition import Condition
from medgen.models.mask import to_cells
from medgen.prepare.grid import GeometryRecord
from medgen.prepare.intensity import IntensityRecord
from medgen.registry import check_options
from medgen.registry import resolve as plug_in
from medgen.sampling.noise import Key, streams
from medgen.steering import chain
from medgen.steering.context import Context
from medgen.training.precision import device_of
from medgen.volume import Volume

_NOT_RECORDED = ("batch", "masks", "edits")


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn.

    Attributes:
        sampler: kind of solver.
        options: its options.
        steps: of the solver.
        guidance: classifier-free guidance scale, 1 for none: short for a ``cfg`` entry before all steering.
        batch: samples at a time; 1 gives the same bits whatever else is drawn.
        space: "native" restores a training case's own grid; "grid" keeps the model's.
        steering: entries ``{"kind": ..., <options>}``, the first one innermost; from Python also functions from a
            model to a model, such as ``lambda model: medgen.steering.gradient.guide(model, measure)``.
        tile: voxels along each axis that the codec decodes at once; left out, the machine's memory decides.
        masks: label maps that images follow in place of the label model's, only where the model's images follow masks:
            a path (:meth:`medgen.generation.masks.GivenMasks.read`), or arrays (:meth:`~.GivenMasks.of`).
        edits: entries ``{"kind": ..., <options>}`` of :mod:`medgen.edit`, by which masks are changed before they are
            followed; likewise.
    """

    sampler: str
    options: Mapping[str, Any]
    steps: int
    guidance: float
    batch: int = 1
    space: str = "native"
    steering: chain.Steps = ()
    tile: int | None = None
    masks: Path | Sequence[np.ndarray] | None = None
    edits: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, eq=False)
class Draft:
    """A decoded draw on the model's grid, before a training case lends it grid and units.

    Attributes:
        latent: (C, x, y, z) standardised, on the CPU.
        image: (C, X, Y, Z) as decoded: real cases lie in [-1, 1].
        probabilities: (L, X, Y, Z) of the label ids, None without labels.
        row: what was asked and drawn.
        key: (seed, index, attempt).
        mask: where the label map comes from that the image follows, None where it follows none.
    """

    latent: torch.Tensor
    image: np.ndarray
    probabilities: np.ndarray | None
    row: Row
    key: Key
    mask: Mapping[str, Any] | None = None

    @property
    def fault(self) -> str:
        """Why its mask could not be edited as asked; empty where nothing is wrong."""
        return str((self.mask or {}).get(FAULT, ""))


class Generator:
    """Draws samples from a model.

    Use :meth:`load`, then :meth:`sample` for one, or :meth:`draw` for rows of a plan.
    """

    def __init__(self, model: LoadedModel, drawing: Drawing | None = None, context: Context | None = None) -> None:
        self.model = model
        self.context = context or context_of(model)
        defaults = model.spec.sampling
        self.drawing = drawing or Drawing(
            defaults["sampler"],
            defaults["options"],
            int(defaults["steps"]),
            float(defaults["guidance"]),
            steering=defaults["steering"],
        )
        if self.drawing.steps < 1:
            raise InputError(f"the sampler needs at least 1 step, not {self.drawing.steps}")
        check_options("sampling", self.drawing.sampler, "sample", self.drawing.options)
        self._solver = partial(plug_in("sampling", self.drawing.sampler, "sample"), **self.drawing.options)
        dropped = model.spec.trained_on.get("dropped", {})  # older models do not say
        chances = (float(dropped.get(key, 1.0)) for key in ("all", "each"))
        columns = len(model.encoder.schema.names)
        chain.check_nulls(self.drawing.steering, self.drawing.guidance, *chances, columns=columns)
        denoise = model.process.as_model(model.network)
        self.denoiser = chain.apply(denoise, self.drawing.steering, self.drawing.guidance, self.context)
        self.masks = self._masks(by_default=drawing is None)
        self._decided = chain.decides(self.drawing.steering, model.schema)

    @staticmethod
    def load(
        folder: str | Path,
        *,
        device: str = "auto",
        drawing: Drawing | None = None,
        text_encoder: str | Path | None = None,
    ) -> "Generator":
        """Load a model folder.

        Args:
            folder: of the model.
            device: auto, cpu, cuda, cuda:N or mps.
            drawing: how samples are drawn, the model's way by default.
            text_encoder: folder of the model's text encoder, where that is no longer where it was in training.

        Raises:
            InputError: not a model folder, damaged, or the device is not there.
        """
        encoder = None if text_encoder is None else Path(text_encoder)
        return Generator(load_model(Path(folder), device_of(device), text_encoder=encoder), drawing)

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
        steering: chain.Steps | None = None,
        mask: np.ndarray | None = None,
        **covariates: object,
    ) -> Sample:
        """Draw one sample.

        Args:
            seed: of the dataset.
            index: of the sample in it.
            volumes_ml: label name -> requested volume or (low, high).
            force: allow requests that the cohort never covers.
            steering: in place of the generator's own, see :class:`Drawing`.
            mask: (X, Y, Z) label values on the model's grid for the image to follow, where the model's images do.
            **covariates: name -> value, (low, high) or list of levels, for example ``age=(60, 80), sex="F"``.

        Returns:
            The sample; what was not asked for is drawn conditionally on what was.

        Raises:
            InputError: unknown covariate, or a request beyond the cohort without ``force``.

        Warns:
            ExtrapolationWarning: the cohort has no case like what is asked for; ``sidecar["extrapolated"]`` and
                ``sidecar["plausibility"]`` of the sample say so too.
        """
        request = from_values(covariates, self.schema, volumes_ml=volumes_ml, force=force)
        check(request, self.schema, self.model.joint)
        row = resolve(request, self.model.joint, seed, index)
        if beyond := row.extrapolation:
            warnings.warn(f"the request is extrapolation: {beyond}", ExtrapolationWarning, stacklevel=2)
        drawing = self.drawing if steering is None else steered(self.drawing, steering)
        if mask is not None:
            drawing = replace(drawing, masks=(mask,))
        drawn_by = self if drawing is self.drawing else Generator(self.model, drawing, self.context)
        return drawn_by.draw([row], [Key(seed, index)])[0]

    def require_texts(self, requests: Iterable[Request]) -> None:
        """Refuse before anything is drawn what a text would refuse later.

        Raises:
            InputError: a text is asked for, and the text encoder is not there or is another one.
        """
        states = self.model.encoder.states
        if states is not None and any(self.schema[name].is_text for r in requests for name in r.given):
            states.require()

    def draw(self, rows: Sequence[Row], keys: Sequence[Key]) -> list[Sample]:
        """Draw a sample for each resolved row, in batches of ``drawing.batch``.

        Args:
            rows: covariates, none missing.
            keys: (seed, index, attempt) of each.
        """
        return [self.finish(draft) for draft in self.drafts(rows, keys)]

    def drafts(self, rows: Sequence[Row], keys: Sequence[Key]) -> Iterator[Draft]:
        """As :meth:`draw`, before :meth:`finish`: what gates judge."""
        rows = self._placed(rows, keys)
        for start in range(0, len(rows), self.drawing.batch):
            part = slice(start, start + self.drawing.batch)
            masks = list(self.masks(rows[part], keys[part])) if self.masks else []
            latents = self._latents(self._followed(self._encoded(rows[part]), masks), keys[part])
            images, probabilities = self._decode(latents)
            for b, (row, key) in enumerate(zip(rows[part], keys[part], strict=True)):
                own = None if probabilities is None else probabilities[b]
                label, origin = (masks[b].probabilities, masks[b].origin) if masks else (own, None)
                yield Draft(latents[b].float().cpu(), images[b], label, row, key, origin)

    def finish(self, draft: Draft) -> Sample:
        """Bring a draft to the grid and the units of the training case that lends them.

        Raises:
            InputError: the draft holds what is no number.
        """
        if not np.isfinite(draft.image).all():
            raise InputError(
                f"sample {draft.key.index} of the model {self.model.spec.name} is not finite; lower the guidance, take "
                "more steps or turn steering off"
            )
        if draft.fault:
            raise InputError(
                f"sample {draft.key.index}: {draft.fault}; leave that mask out, or let gates leave the sample out"
            )
        return self._sample(draft)

    def condition(self, rows: Sequence[Row], keys: Sequence[Key]) -> Condition:
        """What resolved rows ask of the network, on its device, with the masks that it follows."""
        rows = self._placed(rows, keys)
        return self._followed(self._encoded(rows), list(self.masks(rows, keys)) if self.masks else [])

    def _masks(self, *, by_default: bool) -> Masks | None:
        """The source of masks of a model whose images follow them."""
        model, d = self.model, self.drawing
        if model.labels is None:
            if d.masks is not None or d.edits:
                what = "masks are" if d.masks is not None else "an edit of masks is"
                raise InputError(
                    f"{what} given, but the model {model.spec.name} draws image and label together and follows no "
                    "mask; train one with pairs: mask"
                )
            return None
        masks: Masks
        if d.masks is not None:
            given = d.masks
            masks = GivenMasks.read(given, model.spec) if isinstance(given, Path) else GivenMasks.of(given, model.spec)
        else:
            # Its own sampler where nothing else is said; steering speaks of the image model's latents.
            drawing = None if by_default else replace(d, steering=(), masks=None, edits=())
            drawn = Generator(model.labels, drawing)

            # The image's native spacing is its mask's, which has other training cases to lend it one.
            spacing = frozenset(SPACING_COLUMNS).intersection(self.schema.names)

            def probabilities(rows: Sequence[Row], keys: Sequence[Key]) -> Iterator[np.ndarray]:
                rows = [replace(row, asked=row.asked | spacing) for row in rows]
                for draft in drawn.drafts(rows, keys):
                    assert draft.probabilities is not None, "a label model draws labels"
                    yield draft.probabilities

            masks = DrawnMasks(probabilities)
        if d.edits:
            edits.check(d.edits, model.spec.label_names)
            masks = EditedMasks(masks, d.edits, model.spec)
        return masks

    def _followed(self, cond: Condition, masks: Sequence[Mask]) -> Condition:
        if not masks:
            return cond
        ids = torch.from_numpy(np.stack([mask.ids for mask in masks])).to(self.model.device)
        return replace(cond, mask=to_cells(ids, self.model.codec.stride))

    def _placed(self, rows: Sequence[Row], keys: Sequence[Key]) -> list[Row]:
        """The rows as they are asked of the network, with the geometry record that each gets."""
        rows, records = [self._left_open(row) for row in rows], self.model.spec.records
        return [placed(row, self.schema, records, key) for row, key in zip(rows, keys, strict=True)]

    def _encoded(self, rows: Sequence[Row]) -> Condition:
        encoder = self.model.encoder
        flags = {c.name: "yes" for c in encoder.schema.covariates if c.name not in self.schema}
        return encoder.encode([{**row.values, **flags} for row in rows]).to(self.model.device)

    def _left_open(self, row: Row) -> Row:
        """The row without what steering or given masks decide: it was not asked, and nothing was drawn.

        Nor is anything else that was not asked left where steering decides: it was drawn without regard to that, and
        would contradict it. The network has learnt what the rest is like given what is asked.
        """
        row = self._as_given(row)
        if not self._decided:
            return row
        both = sorted(row.asked & self._decided)
        if both:
            raise InputError(f"'{both[0]}' is asked for by the request and by the steering; ask for it in one of them")
        return replace(row, values={n: v if n in row.asked else None for n, v in row.values.items()})

    def _as_given(self, row: Row) -> Row:
        if self.drawing.masks is None:
            return row
        told = [volume_column(name) for name in self.model.spec.label_names[1:]]
        asked = sorted(row.asked.intersection(told))
        if asked and not self.drawing.edits:
            raise InputError(
                f"'{asked[0]}' is asked for, but the masks are given as they are; add an edit of the kind 'volume', or "
                "do not ask for it"
            )
        free = {*told, *self.model.spec.derived} - row.asked
        return replace(row, values={n: None if n in free else v for n, v in row.values.items()})

    @torch.no_grad()
    def _latents(self, cond: Condition, keys: Sequence[Key]) -> torch.Tensor:
        model, drawing = self.model, self.drawing
        shape = model.spec.latent_shape
        noise = streams(keys, shape, model.device)
        return model.process.sample(self.denoiser, (len(keys), *shape), cond, self._solver, noise, steps=drawing.steps)

    @torch.no_grad()
    def _decode(self, latents: torch.Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        restored = self.model.statistics.restore(latents)
        decoded = tiling.decode(self.model.codec, restored, tile=self.drawing.tile, device="cpu")
        images = decoded.image.float().numpy()
        logits = decoded.label_logits
        return images, None if logits is None else logits.float().softmax(dim=1).numpy()

    def _sample(self, draft: Draft) -> Sample:
        """Back to a scanner's units and grid: those of a training case drawn by (seed, index)."""
        spec, row, key = self.model.spec, draft.row, draft.key
        image, probabilities = draft.image.clip(-1, 1), draft.probabilities
        chosen = record_of(spec.records, row, key)
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
            sidecar=self._sidecar(draft, measured, chosen),
        )

    def provenance(self) -> dict[str, Any]:
        """The part of a sidecar that all samples of a dataset share."""
        # The batch size is left out: it may differ between the shards of one dataset. Masks are said by their content.
        how = {f.name: getattr(self.drawing, f.name) for f in fields(Drawing) if f.name not in _NOT_RECORDED}
        how |= {"options": dict(self.drawing.options), "steering": chain.recorded(self.drawing.steering)}
        how |= {"masks": self.masks.recorded()} if self.masks else {}
        return {"medgen": __version__, "model_sha256": self.model.sha256, "drawing": how}

    def _sidecar(self, draft: Draft, measured: Mapping[str, Value], record: int) -> dict[str, Any]:
        row, key = draft.row, draft.key
        mask = {} if draft.mask is None else {"mask": dict(draft.mask)}
        return {
            **self.provenance(),
            **mask,
            "index": key.index,
            "attempt": key.attempt,
            "seed": key.seed,
            "request": {name: row.values[name] for name in sorted(row.asked)},
            "drawn": {name: v for name, v in row.values.items() if name not in row.asked},
            "extrapolated": list(row.extrapolated),
            "plausibility": float(f"{row.plausibility:.4g}"),
            "unlike_cohort": row.unlike_cohort,
            "measured": dict(measured),
            "geometry_record": record,
            "effective_resolution_mm": list(self.model.spec.effective_resolution_mm),
        }


def _label_type(values: Sequence[int]) -> type[np.integer[Any]]:
    """The smallest common integer type that holds a cohort's label values."""
    if min(values) >= 0 and max(values) < 256:
        return np.uint8
    return np.int16 if max(abs(v) for v in values) < 2**15 else np.int32


def steered(drawing: Drawing, steering: chain.Steps) -> Drawing:
    """Another steering; its own ``cfg`` takes the place of the guidance that ``drawing`` had from elsewhere."""
    own = any(isinstance(step, Mapping) and step.get("kind") == "cfg" for step in steering)
    return replace(drawing, steering=tuple(steering), guidance=1.0 if own else drawing.guidance)


def _covariates(asked: Mapping[str, Value], measured: Mapping[str, Value]) -> dict[str, Value]:
    """A row of the participants table: conditions as drawn, what the label tells as measured beside ``requested_``."""
    requested = {f"requested_{name}" if name in measured else name: value for name, value in asked.items()}
    return {**requested, **measured}
