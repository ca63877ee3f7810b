"""Requests, samples that are kept on disk batch by batch, and their figures."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusion_bench import Bench, segmenter_identity
from PIL import Image

from medgen.cohort.requests import Row, resolve
from medgen.cohort.where import Fixed, Request
from medgen.evaluation.fidelity import Made, fidelity
from medgen.evaluation.reference import Reference
from medgen.files import atomic, digest, read_json, write_json
from medgen.generation.generator import Drawing, Generator
from medgen.models import tiling
from medgen.models.codec import Codec
from medgen.models.seam import Model
from medgen.registry import resolve as plug_in
from medgen.sampling.noise import Key, streams
from medgen.training.pictures import sheet

SEED = 2024
PERCENTILES = (5.0, 95.0)
_SHOWN = 8


@dataclass(frozen=True, eq=False)
class Drawn:
    """Samples on the prepared grid.

    Attributes:
        images: (n, C, X, Y, Z) in [-1, 1].
        labels: (n, X, Y, Z) ids.
        seconds_per_sample: of drawing and decoding.
        key: of what they are.
    """

    images: np.ndarray
    labels: np.ndarray
    seconds_per_sample: float
    key: str


def uniform_requests(bench: Bench, n: int) -> list[dict[str, float]]:
    """Volumes asked of n samples: uniform over the training cases' 5th to 95th percentile, each on its own."""
    ends = {c: np.percentile(bench.training_values(c), PERCENTILES) for c in bench.volumes}
    rng = np.random.default_rng(SEED)
    return [{c: float(low + rng.random() * (high - low)) for c, (low, high) in ends.items()} for _ in range(n)]


def real_requests(bench: Bench, n: int) -> list[dict[str, float]]:
    """Volumes asked of n samples: those of as many training cases, each of which lends them together."""
    known = [bench.store.cases[i].covariates for i in bench.store.indices("train")]
    rows = [
        {c: float(row[c]) for c in bench.volumes} for row in known if all(row.get(c) is not None for c in bench.volumes)
    ]
    chosen = np.random.default_rng(SEED).permutation(len(rows))
    return [rows[chosen[i % len(rows)]] for i in range(n)]


def answered(generator: Generator, requests: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Full rows of covariates: what is not asked for is drawn from the cohort's joint, given what is."""
    asked = [Request({name: Fixed(value) for name, value in r.items()}, force=True) for r in requests]
    return [resolve(request, generator.model.joint, SEED, i) for i, request in enumerate(asked)]


def draw(generator: Generator, rows: Sequence[Row], keys: Sequence[Key], denoiser: Model | None = None) -> torch.Tensor:
    """Latents (B, C, x, y, z) as the codec takes them, without gates; ``denoiser`` in place of the generator's."""
    model, drawing = generator.model, generator.drawing
    cond = generator.condition(rows, keys)
    shape = model.spec.latent_shape
    solver = partial(plug_in("sampling", drawing.sampler, "sample"), **drawing.options)
    noise = streams(keys, shape, model.device)
    with torch.no_grad():
        x = model.process.sample(
            denoiser or generator.denoiser, (len(rows), *shape), cond, solver, noise, steps=drawing.steps
        )
        return model.statistics.restore(x)


def kept(
    bench: Bench,
    folder: Path,
    name: str,
    how: Any,
    asked: Sequence[Any],
    work: Callable[[range], torch.Tensor],
    codec: Codec,
) -> Drawn:
    """Samples of one kind, drawn in batches that are kept, and decoded; more of them add to those that are there.

    Args:
        bench: the cohort.
        folder: of the arm.
        name: of the kind of samples.
        how: all that decides them beside the arm and what each is asked.
        asked: what each sample is asked, JSON-able.
        work: numbers of samples -> their latents.
        codec: decodes them.
    """
    n, size = len(asked), bench.options.batch
    place = folder / "samples" / f"{name}-{digest([how, size])[:8]}"
    latents, seconds, drawn_now = [], 0.0, False
    for start in range(0, n, size):
        part = range(start, min(start + size, n))
        path = place / f"{start:05d}-{digest(asked[part.start : part.stop])[:8]}.npz"
        if not path.exists():
            began = time.perf_counter()
            # What has run away is black, not an error.
            made = torch.nan_to_num(work(part)).float().cpu().numpy()
            took = time.perf_counter() - began
            with atomic(path) as temporary, temporary.open("wb") as stream:
                np.savez(stream, latents=made, seconds=np.array(took))
            drawn_now = True
            print(f"[{time.strftime('%H:%M:%S')}] {name}: {part.stop} of {n} drawn, {took:.1f} s a batch", flush=True)
        with np.load(path, allow_pickle=False) as found:
            latents.append(found["latents"])
            seconds += float(found["seconds"])
    began = time.perf_counter()
    images, labels = [], []
    for batch in latents:
        with torch.no_grad():
            decoded = tiling.decode(codec, torch.from_numpy(batch).to(bench.device), device="cpu")
        images.append(torch.nan_to_num(decoded.image.float(), nan=-1.0).clamp(-1, 1).numpy())
        assert decoded.label_logits is not None, "the cohort has labels"
        labels.append(decoded.label_logits.argmax(dim=1).numpy().astype(np.int16))
    seconds += time.perf_counter() - began
    key = f"{place.name}/{digest(list(asked))[:8]}"
    drawn = Drawn(np.concatenate(images), np.concatenate(labels), seconds / n, key)
    if drawn_now:
        shown = [(drawn.images[i], drawn.labels[i]) for i in range(min(_SHOWN, n))]
        Image.fromarray(sheet(shown)).save(place / "samples.png")
    return drawn


def our_samples(
    bench: Bench,
    generator: Generator,
    folder: Path,
    name: str,
    rows: Sequence[Row],
    codec: Codec,
    keys: Sequence[Key] | None = None,
) -> Drawn:
    """Samples of our model, one a row; sample i has the noise of ``keys[i]``, (SEED, i) without."""
    keys = keys or [Key(SEED, i) for i in range(len(rows))]
    d: Drawing = generator.drawing
    how = [d.sampler, dict(d.options), d.steps, d.guidance, list(d.steering)]
    said = [generator.model.sha256, how]
    asked = [[dict(row.values), key.seed, key.index] for row, key in zip(rows, keys, strict=True)]

    def work(part: range) -> torch.Tensor:
        return draw(generator, [rows[i] for i in part], [keys[i] for i in part])

    return kept(bench, folder, name, said, asked, work, codec)


def figures(
    bench: Bench,
    reference: Reference,
    folder: Path,
    drawn: Drawn,
    requests: Sequence[Mapping[str, Any]],
    reconstructions: Sequence[np.ndarray] = (),
    **options: Any,
) -> dict[str, Any]:
    """The pinned protocol's figures of samples; kept beside them, so that they are taken once."""
    # By all that measures them: another segmenter, or other cases beside them, give other figures.
    cases = [bench.store.cases[i].key for i in (*reference.train_cases, *reference.held_out_cases)]
    codec = [hashlib.sha256(np.ascontiguousarray(r).data).hexdigest() for r in reconstructions]
    key = digest([segmenter_identity(bench), cases, codec, list(requests), options])[:8]
    path = folder / "samples" / drawn.key / f"figures-{key}.json"
    if not path.exists():
        write_json(path, fidelity(reference, made_of(drawn, requests), reconstructions, **options))
    found: dict[str, Any] = read_json(path)
    return found


def made_of(drawn: Drawn, requests: Sequence[Mapping[str, Any]]) -> list[Made]:
    """Samples as the protocol takes them."""
    return [Made(*one) for one in zip(drawn.images, drawn.labels, requests, strict=True)]


def label_volumes_ml(reference: Reference, drawn: Drawn) -> dict[str, np.ndarray]:
    """Label name -> (n,) volume of each sample's own label."""
    names, ml = reference.store.label_names, reference.voxel_ml()
    return {
        name: np.array([(ids == i).sum() * ml for ids in drawn.labels]) for i, name in enumerate(names[1:], start=1)
    }


def mean_of_volumes(found: Mapping[str, Any], volumes: Sequence[str], measured_by: str) -> dict[str, float | None]:
    """Means over the asked volumes of how well they were met."""
    rows = [found["volumes"][name][measured_by] for name in volumes]
    out: dict[str, float | None] = {}
    for key in ("ccc", "r", "slope", "mae"):
        values = [row[key]["value"] for row in rows if key in row and row[key]["value"] is not None]
        out["mae_ml" if key == "mae" else key] = round(float(np.mean(values)), 4) if values else None
    return out
