"""The gate between the codec and what is trained on its latents."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from medgen.config import AutoencoderConfig
from medgen.edit.mirror import sided_names
from medgen.errors import BoundError, InputError
from medgen.evaluation import codec_quality
from medgen.evaluation.codec_quality import Thresholds
from medgen.files import read_json
from medgen.models.discriminator import smallest_patch
from medgen.stages.run import Run


def thresholds(run: Run) -> Thresholds:
    """The config's bounds on the codec.

    Raises:
        InputError: a bound names a label that the cohort has not.
    """
    bounds = Thresholds(**run.config.autoencoder.accept.model_dump(exclude={"sizes_ml"}))
    known = run.store.label_names[1:]
    for label, key in bounds.labels().items():
        if label not in known:
            near = difflib.get_close_matches(label, known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f" (it has: {', '.join(known) or 'none'})"
            raise InputError(f"autoencoder.accept.{key}: the cohort has no label '{label}'{hint}")
    if bounds.about_labels() and not known:
        raise InputError(f"autoencoder.accept.{bounds.about_labels()[0]}: the cohort has no labels; remove the key")
    return bounds


def check_adversary(config: AutoencoderConfig, patch: Sequence[int]) -> None:
    """Refuse patches that the codec's adversary cannot take.

    Args:
        config: of the codec.
        patch: extents; a patch larger than the grid, or none, is the grid's.

    Raises:
        InputError: naming the least extent.
    """
    adversary = config.adversary
    if adversary.weight <= 0:
        return
    least, size = smallest_patch(adversary.layers), " x ".join(map(str, patch))
    if min(patch) < least:
        raise InputError(
            f"autoencoder.patch: {size} voxels are too few for the adversary: {adversary.layers} layers need {least} "
            "along each axis, of the patch and of the grid; enlarge them or set autoencoder.adversary.weight to 0"
        )
    if any(n % 2 for n in patch):
        raise InputError(f"autoencoder.patch: {size} must be even along each axis for the adversary's bands")


def check_sides(run: Run) -> None:
    """Refuse to mirror a cohort whose labels have sides: what is called left would be learnt on both.

    Raises:
        InputError: naming the key and a label.
    """
    c = run.config
    sections = {"autoencoder": c.autoencoder.augment, "latents": c.latents.augment}
    keys = [f"{key}.augment.flip" for key, section in sections.items() if 0 in (section.values() or {}).get("flip", ())]
    keys += ["latents.mirror"] if c.latents.mirror else []
    with_side = sided_names(run.store.label_names[1:])
    if keys and with_side:
        raise InputError(
            f"{keys[0]} turns left into right, and the label '{with_side[0]}' has a side; leave the key out, or give "
            "both sides one label"
        )


def figures(run: Run) -> Mapping[str, Any]:
    """What stage quality measured, without the single cases."""
    found = read_json(run.folder / "autoencoder" / codec_quality.JSON)
    return {key: value for key, value in found.items() if key != "each"}


def shortfall(run: Run) -> list[str]:
    """The bounds that the codec misses."""
    return codec_quality.missed(figures(run), thresholds(run))


def gate(run: Run) -> None:
    """Stop a run whose codec is below its thresholds, unless it is forced.

    Raises:
        BoundError: naming each figure, where they are, and the ways on.
    """
    said = shortfall(run)
    if said and not run.force:
        measured = figures(run)
        whose = f"{measured['cases']} {'held-out' if measured['held_out'] else 'training'} cases"
        page = run.folder / "autoencoder" / codec_quality.PAGE
        raise BoundError(
            f"the codec is below its thresholds on {whose}: {'; '.join(said)} (figures and the worst case in {page}); "
            "train it longer (autoencoder.training), change its options, lower autoencoder.accept, or go on with "
            "--force"
        )
    if said:
        run.progress("quality", 1, 1, f"below its thresholds, goes on by --force: {'; '.join(said)}")
