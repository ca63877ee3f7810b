"""What a codec keeps of held-out cases, and whether that is enough to train a diffusion model on its latents."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from medgen.files import atomic, write_json, write_text
from medgen.measure.components import Structure, by_size, structures
from medgen.measure.image import psnr_db, ssim
from medgen.measure.overlap import dice
from medgen.measure.sharpness import Spectrum, kept_frequency, laplacian_variance, radial_spectrum
from medgen.models.codec import Codec
from medgen.store.prepared import Prepared
from medgen.training.autoencoder import reconstruct
from medgen.training.pictures import sheet

MAX_CASES = 32
_MAX_SPECTRA = 8
JSON, PAGE, PICTURE = "quality.json", "quality.md", "worst.png"

_OF_IMAGES = ("psnr_db", "ssim", "l1", "sharpness")

PerLabel = float | Mapping[str, float] | None
"""One number for every label, or label name -> number, or no bound."""


@dataclass(frozen=True)
class Thresholds:
    """Bounds on the figures of :func:`measure`; None is no bound.

    Attributes:
        min_psnr_db: least PSNR.
        min_ssim: least SSIM.
        max_l1: largest mean absolute error of images in [-1, 1].
        min_sharpness: least Laplacian variance of reconstructions over that of the images.
        min_dice: least Dice, of every label or of those named.
        min_dice_small: least Dice of structures of the smallest class.
        min_recall_small: least share of structures of the smallest class that are found.
    """

    min_psnr_db: float | None = None
    min_ssim: float | None = None
    max_l1: float | None = None
    min_sharpness: float | None = None
    min_dice: PerLabel = None
    min_dice_small: PerLabel = None
    min_recall_small: PerLabel = None

    def labels(self) -> dict[str, str]:
        """Label names that the bounds name -> the bound that names it."""
        named = ("min_dice", "min_dice_small", "min_recall_small")
        bounds = {key: getattr(self, key) for key in named}
        return {label: key for key, value in bounds.items() if isinstance(value, Mapping) for label in value}

    def about_labels(self) -> list[str]:
        """Names of the bounds that need labels."""
        return [key for key in ("min_dice", "min_dice_small", "min_recall_small") if getattr(self, key) is not None]


def measure(store: Prepared, codec: Codec, device: torch.device, sizes_ml: Sequence[float]) -> dict[str, Any]:
    """Reconstruct held-out cases (training cases where none is held out) and compare.

    Args:
        store: the prepared cohort.
        codec: trained, in evaluation mode.
        device: where it is.
        sizes_ml: edges between classes of structures by volume, in ml on the prepared grid.

    Returns:
        Means over at most 32 cases: ``cases``, ``held_out``, ``psnr_db``, ``ssim``, ``l1``, ``sharpness`` and, with
        labels, ``dice`` by name and ``structures`` by name and size; ``each`` case's figures, the worst first. Figures
        of images are None for a codec of label maps alone. ``effective_resolution_mm`` is the voxel size divided by
        the share of the frequencies that it holds up to which reconstructions keep half of the images' power; it is
        not there for a codec of label maps.
    """
    indices, held_out = list(store.indices("val")), True
    if not indices:
        indices, held_out = list(store.indices("train")), False
    each: list[dict[str, Any]] = []
    overlap: list[list[float]] = []
    parts: list[Structure] = []
    spectra: list[tuple[Spectrum, Spectrum]] = []
    ids = range(1, len(store.label_values))
    for i in indices[:MAX_CASES]:
        image, label = _case(store, i, codec)
        out, kept = reconstruct(codec, image, label, device)
        if len(image) and len(spectra) < _MAX_SPECTRA:
            spectra.append((radial_spectrum(out), radial_spectrum(image)))
        figures = compare(out, image)
        if kept is not None and label is not None and len(ids):
            overlap.append(dice(kept, label, ids))
            parts += structures(label, kept, ids, store.spacing_mm)
            figures["dice"] = float(np.nanmean(overlap[-1])) if np.isfinite(overlap[-1]).any() else float("nan")
        each.append({"case": i, **figures})
    whole: dict[str, Any] = {"cases": len(each), "held_out": held_out}
    whole |= {name: rounded(np.mean([e[name] for e in each])) for name in _OF_IMAGES}
    if spectra:
        whole["effective_resolution_mm"] = _resolution(spectra, store.spacing_mm)
    if overlap:
        names = dict(zip(ids, store.label_names[1:], strict=True))
        table = np.array(overlap)
        whole["dice"] = {name: rounded(_mean(table[:, i - 1])) for i, name in names.items()}
        whole["sizes_ml"] = list(sizes_ml)
        whole["structures"] = {
            name: [
                {
                    "from_ml": c.from_ml,
                    "below_ml": c.below_ml,
                    "count": c.count,
                    "dice": rounded(c.dice),
                    "recall": rounded(c.recall),
                }
                for c in by_size([s for s in parts if s.id == i], sizes_ml)
            ]
            for i, name in names.items()
        }
    worst_first = sorted(each, key=lambda e: float(e["psnr_db"] if codec.image_channels else e.get("dice", 0.0)))
    whole["each"] = [{k: v if k == "case" else rounded(v) for k, v in e.items()} for e in worst_first]
    return whole


def _resolution(spectra: Sequence[tuple[Spectrum, Spectrum]], spacing_mm: Sequence[float]) -> list[float]:
    """Voxel size over the share of its frequencies (half a cycle a voxel) that reconstructions keep."""
    made, real = (
        Spectrum(pair[0].frequency, np.mean([s.power for s in pair], axis=0)) for pair in zip(*spectra, strict=True)
    )
    kept = 2 * kept_frequency(made, real)
    return [round(float(s) / kept, 3) for s in spacing_mm]


def compare(reconstruction: np.ndarray, image: np.ndarray) -> dict[str, float]:
    """PSNR, SSIM, L1 and sharpness of a reconstruction of an image (C, X, Y, Z) in [-1, 1]; NaN without channels."""
    if not len(image):
        return dict.fromkeys(_OF_IMAGES, float("nan"))
    sharp = laplacian_variance(image)
    return {
        "psnr_db": min(psnr_db(reconstruction, image), 100.0),  # a codec without loss has none to speak of
        "ssim": ssim(reconstruction, image),
        "l1": float(np.abs(reconstruction.astype(np.float64) - image).mean()),
        "sharpness": laplacian_variance(reconstruction) / sharp if sharp > 0 else 1.0,
    }


def write(folder: Path, figures: Mapping[str, Any], store: Prepared, codec: Codec, device: torch.device) -> None:
    """Write the page, the picture of the worst case and, last, ``quality.json``."""
    worst = int(figures["each"][0]["case"])
    image, label = _case(store, worst, codec)
    out, kept = reconstruct(codec, image, label, device)
    picture = sheet([(image, label), (out, kept if label is not None else None)], columns=1)
    with atomic(folder / PICTURE) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
    keys = {e["case"]: store.cases[e["case"]].key for e in figures["each"]}
    figures = {**figures, "each": [{**e, "case": keys[e["case"]]} for e in figures["each"]]}
    write_text(folder / PAGE, as_markdown(figures))
    write_json(folder / JSON, figures)


def missed(figures: Mapping[str, Any], bounds: Thresholds) -> list[str]:
    """What falls short of its bound, one phrase each; a bound on what could not be measured is missed too."""
    found = []
    for key, what, unit in (("psnr_db", "PSNR", " dB"), ("ssim", "SSIM", ""), ("sharpness", "sharpness", "")):
        bound = getattr(bounds, f"min_{key}")
        if bound is not None and figures[key] < bound:
            found.append(f"{what} {figures[key]:g}{unit}, below {bound:g}")
    if bounds.max_l1 is not None and figures["l1"] > bounds.max_l1:
        found.append(f"L1 {figures['l1']:g}, above {bounds.max_l1:g}")
    labels: Mapping[str, Any] = figures.get("dice", {})
    small = {name: classes[0] for name, classes in figures.get("structures", {}).items()}
    size = f" of structures below {figures['sizes_ml'][0]:g} ml" if small else " of small structures"
    found += _labels_missed(bounds.min_dice, labels, "Dice")
    found += _labels_missed(bounds.min_dice_small, {n: c["dice"] for n, c in small.items()}, f"Dice{size}")
    found += _labels_missed(bounds.min_recall_small, {n: c["recall"] for n, c in small.items()}, f"recall{size}")
    return found


def _labels_missed(bound: PerLabel, figures: Mapping[str, float | None], what: str) -> list[str]:
    if bound is None:
        return []
    if isinstance(bound, Mapping):
        pairs = [(name, figures.get(name), least) for name, least in bound.items()]
    else:  # for every label: those that no held-out case has are no one's fault, unless none is there
        pairs = [(name, value, bound) for name, value in figures.items() if value is not None]
        if not pairs:
            return [f"{what}: no measured case has any"]
    said = []
    for name, value, least in pairs:
        if value is None:
            said.append(f"{what}, {name}: no measured case has any")
        elif value < least:
            said.append(f"{what}, {name} {value:g}, below {least:g}")
    return said


def as_markdown(figures: Mapping[str, Any]) -> str:
    """The figures as a page."""
    whose = "held-out cases" if figures["held_out"] else "training cases (nothing is held out)"
    lines = [
        "# What the codec keeps",
        "",
        f"Means over {figures['cases']} {whose}, images in [-1, 1], on the prepared grid.",
        "",
        "| PSNR | SSIM | L1 | sharpness (Laplacian variance, reconstruction over image) |",
        "| --- | --- | --- | --- |",
        "| " + " | ".join(_or_dash(figures[name]) + (" dB" if name == "psnr_db" else "") for name in _OF_IMAGES) + " |",
    ]
    if "effective_resolution_mm" in figures:
        mm = " x ".join(f"{s:g}" for s in figures["effective_resolution_mm"])
        lines += ["", f"Effective resolution {mm} mm: finer detail has less than half of the images' power."]
    if "dice" in figures:
        lines += ["", "Connected structures are each scored in their own territory, by volume:", ""]
        lines += ["| label | Dice | structures | count | mean Dice | found |", "| --- | --- | --- | --- | --- | --- |"]
        for name, value in figures["dice"].items():
            for row, c in enumerate(figures["structures"][name]):
                first = f"| {name} | {value}" if row == 0 else "| |"
                cells = (_size(c["from_ml"], c["below_ml"]), c["count"], _or_dash(c["dice"]), _or_dash(c["recall"]))
                lines.append(f"{first} | " + " | ".join(str(cell) for cell in cells) + " |")
    lines += ["", "The case with the lowest PSNR, above its reconstruction:", "", f"![worst case]({PICTURE})", ""]
    lines += ["| case | PSNR | SSIM | L1 | sharpness | mean Dice |", "| --- | --- | --- | --- | --- | --- |"]
    for e in figures["each"]:
        told = (str(e["case"]), *(_or_dash(e[name]) for name in _OF_IMAGES), _or_dash(e.get("dice")))
        lines.append("| " + " | ".join(told) + " |")
    return "\n".join(lines) + "\n"


def _size(from_ml: float, below_ml: float | None) -> str:
    if below_ml is None:
        return f"{from_ml:g} ml and more"
    return f"{from_ml:g} to {below_ml:g} ml" if from_ml else f"below {below_ml:g} ml"


def _case(store: Prepared, index: int, codec: Codec) -> tuple[np.ndarray, np.ndarray | None]:
    image = np.asarray(store.image(index), dtype=np.float32)
    return image, np.asarray(store.label(index)) if codec.labels and store.cases[index].has_label else None


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _or_dash(value: float | None) -> str:
    return "-" if value is None else str(value)


def rounded(value: Any) -> Any:
    """Four digits; None for what is undefined, since NaN is not JSON."""
    if isinstance(value, int):
        return value
    return None if not math.isfinite(float(value)) else round(float(value), 4)
