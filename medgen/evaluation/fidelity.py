"""The pinned protocol for samples: likeness, diversity, obedience, memorisation and sharpness, with intervals.

Distributions are compared with the held-out cases, at equal numbers, and so are the training cases: what is left
between real and real is the floor. A model's figure is its excess over it. Both are drawn in one bootstrap, so that
the excess has an interval of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from medgen.cohort.schema import volume_column
from medgen.errors import InputError
from medgen.evaluation.codec_quality import rounded
from medgen.evaluation.likeness import likeness
from medgen.evaluation.reference import Measured, Reference, measure_images
from medgen.measure.agreement import agreement
from medgen.measure.bootstrap import bootstrap
from medgen.measure.msssim import pairwise_ms_ssim
from medgen.measure.neighbours import nearness
from medgen.measure.sharpness import content, laplacian_variance, radial_spectrum

_MAX_SHARPNESS = 64


@dataclass(frozen=True, eq=False)
class Made:
    """A sample on the prepared grid.

    Attributes:
        image: (C, X, Y, Z) in [-1, 1].
        label: (X, Y, Z) ids, None for a model of images alone.
        request: what was asked for; volumes as ``<label name>_ml``. What is missing is not compared.
        voxel_ml: of a voxel in the subject's own space; None takes the training cases' median.
    """

    image: np.ndarray
    label: np.ndarray | None
    request: Mapping[str, Any]
    voxel_ml: float | None = None


def measured(reference: Reference, samples: Sequence[Made]) -> Measured:
    """Samples as the protocol's segmenter sees them.

    Raises:
        InputError: a sample that is not finite, or not on the cohort's grid.
    """
    for i, sample in enumerate(samples):
        if sample.image.shape[1:] != reference.inside.shape or not np.isfinite(sample.image).all():
            raise InputError(f"sample {i} is not finite on the cohort's grid; bring every sample onto it, or drop it")
    usual_ml = reference.voxel_ml()
    return measure_images(
        [s.image for s in samples],
        [s.label for s in samples],
        [s.voxel_ml or usual_ml for s in samples],
        reference.segmenter,
        reference.inside,
        block=reference.block,
    )


def fidelity(
    reference: Reference,
    samples: Sequence[Made],
    reconstructions: Sequence[np.ndarray] = (),
    *,
    neighbours: int = 5,
    resamples: int = 500,
    pairs: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Measure samples against a cohort.

    Args:
        reference: the cohort, measured by :func:`medgen.evaluation.reference.measure_reference`.
        samples: on the cohort's grid, at least 8.
        reconstructions: images (C, X, Y, Z) of held-out cases, through the codec: what is as sharp as it allows.
        neighbours: of precision, recall, density and coverage.
        resamples: bootstrap draws.
        pairs: of images for MS-SSIM.
        seed: of all draws.

    Returns:
        JSON-able. A figure with an interval is ``{"value", "low", "high"}``, null where undefined. ``floor`` holds
        the training cases' figures, ``samples`` the samples' with their ``excess`` over it, ``volumes`` requested
        against measured by label, ``memorisation`` and ``sharpness`` what their names say. MMD and Fréchet distance
        are in units of the mean variance of the features' main components over the training cases.
    """
    if len(samples) <= max(neighbours, 7):
        raise InputError(f"{len(samples)} samples are too few to be compared; make at least {max(neighbours + 1, 8)}")
    made = measured(reference, samples)
    images = [s.image for s in samples]
    real = [np.asarray(reference.store.image(i), np.float32) for i in reference.train_cases[: len(samples)]]
    project = reference.projection
    spaces = {
        "features": (project(made.features), project(reference.held_out.features), project(reference.train.features)),
        "voxels": (made.voxels, reference.held_out.voxels, reference.train.voxels),
    }
    return {
        **likeness(reference, made, neighbours=neighbours, resamples=resamples, seed=seed),
        "ms_ssim": {
            "samples": rounded(pairwise_ms_ssim(images, pairs=pairs, seed=seed).mean()),
            "train": rounded(pairwise_ms_ssim(real, pairs=pairs, seed=seed).mean()),
        },
        "volumes": _volumes(reference, made, [s.request for s in samples], resamples, seed),
        "label_dice": {
            "samples": _mean_or_none(made.dice),
            "held_out": _mean_or_none(reference.held_out.dice),
        },
        "memorisation": {
            name: {key: rounded(value) for key, value in asdict(nearness(*sets)).items()}
            for name, sets in spaces.items()
        },
        "sharpness": _sharpness(reference, images, reconstructions),
        "floor_of": "all training cases" if reference.unseen is None else "training cases unseen by the segmenter",
        "components": {"kept": len(project.axes.T), "explained": rounded(project.explained)},
    }


def _volumes(
    reference: Reference, made: Measured, requests: Sequence[Mapping[str, Any]], resamples: int, seed: int
) -> dict[str, Any]:
    """Requested against measured, by label; and what the segmenter reaches on real cases."""
    found = {}
    for i, label in enumerate(reference.store.label_names[1:]):
        name = volume_column(label)
        asked = np.array([float("nan") if r.get(name) is None else float(r[name]) for r in requests])
        real = reference.held_out
        found[name] = {
            "generated_label": _agreement(asked, made.label_ml[:, i], resamples, seed),
            "segmenter": _agreement(asked, made.found_ml[:, i], resamples, seed),
            "segmenter_soft": _agreement(asked, made.soft_ml[:, i], resamples, seed),
            "segmenter_on_real": _agreement(real.label_ml[:, i], real.found_ml[:, i], resamples, seed),
            "segmenter_soft_on_real": _agreement(real.label_ml[:, i], real.soft_ml[:, i], resamples, seed),
        }
    return found


def _agreement(asked: np.ndarray, measured: np.ndarray, resamples: int, seed: int) -> dict[str, Any]:
    known = np.isfinite(asked) & np.isfinite(measured)
    x, y = asked[known], measured[known]
    figures: dict[str, Any] = {"n": len(x)}
    if len(x) == 0:
        return figures
    for name in ("ccc", "r", "slope", "mae", "bias"):

        def statistic(rows: np.ndarray, name: str = name) -> float:
            return float(getattr(agreement(x[rows], y[rows]), name))

        figures[name] = bootstrap(statistic, len(x), resamples=resamples, seed=seed).to_json()
    return figures


def _sharpness(reference: Reference, images: Sequence[np.ndarray], codec: Sequence[np.ndarray]) -> dict[str, Any]:
    """Laplacian variance and power by frequency, of the samples over those of reconstructions and of real cases."""
    inside, frame = reference.inside, reference.frame
    # The box that holds the inside: spectra need one, and the padding's edge is no detail of the image.
    box = (slice(None), *(slice(int(w.min()), int(w.max()) + 1) for w in np.nonzero(inside)))
    sets = {
        "samples": list(images),
        "real": [np.asarray(reference.store.image(i), np.float32) for i in reference.held_out_cases[:_MAX_SHARPNESS]],
        "reconstructions": list(codec),
    }
    sets = {name: some[:_MAX_SHARPNESS] for name, some in sets.items() if len(some)}
    held = {name: [content(v) for v in some] for name, some in sets.items()}
    laplacian = {
        name: float(np.mean([_laplacian(v, inside & own) for v, own in zip(some, held[name], strict=True)]))
        for name, some in sets.items()
    }
    spectra = {name: np.mean([radial_spectrum(v[box]).power for v in some], axis=0) for name, some in sets.items()}
    figures: dict[str, Any] = {
        "laplacian_variance": {name: rounded(value) for name, value in laplacian.items()},
        # Of the grid: crops come out too large where padding taught nothing.
        "content_share": {n: rounded(np.mean([own.mean() for own in some])) for n, some in held.items()},
        "frequency_per_voxel": [rounded(f) for f in radial_spectrum(images[0][box]).frequency],
    }
    for other in sets.keys() - {"samples"}:
        ratio = spectra["samples"] / np.maximum(spectra[other], 1e-12)
        figures[f"laplacian_ratio_to_{other}"] = rounded(laplacian["samples"] / max(laplacian[other], 1e-12))
        figures[f"spectrum_ratio_to_{other}"] = [rounded(v) for v in ratio]
    if frame.any():
        # -1 is dark: what is above it is a bright frame.
        figures["frame_mean"] = {n: rounded(np.mean([v[:, frame].mean() for v in some])) for n, some in sets.items()}
    return figures


def _laplacian(image: np.ndarray, own: np.ndarray) -> float:
    """Of what the image itself holds: crops differ in size, and where they end they are no sharper than elsewhere."""
    return laplacian_variance(image, own) if ndimage.binary_erosion(own).any() else 0.0  # black holds nothing


def _mean_or_none(dice: np.ndarray) -> float | None:
    return rounded(np.nanmean(dice)) if np.isfinite(dice).any() else None
