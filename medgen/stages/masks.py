"""Images that follow masks (``pairs: mask``): the label model's run inside a run, and what the image model differs in.

The label model is an experiment of its own on the cohort's label maps alone, in the folder ``labels`` of the run; the
image model's codec carries no label, and its denoiser is given each case's label map instead. Cases without a label
train the image model with a mask that is unknown.
"""

import shutil
from pathlib import Path

import numpy as np

from medgen.errors import InputError
from medgen.files import atomic
from medgen.generation.model import LABELS
from medgen.models.mask import MaskInput
from medgen.stages.run import Run, named
from medgen.store.prepared import Prepared


def follows_masks(run: Run) -> bool:
    """Whether the run's images follow masks."""
    return run.config.pairs == "mask"


def label_count(store: Prepared) -> int:
    """Label ids with background, 0 for a cohort without labels."""
    return len(store.label_values) if len(store.label_values) > 1 else 0


def codec_labels(run: Run) -> int:
    """Label ids that the run's codec carries beside the image."""
    return 0 if follows_masks(run) else label_count(run.store)


def mask_input(run: Run) -> MaskInput | None:
    """What the run's denoiser follows; None where image and label share the latent."""
    if not follows_masks(run):
        return None
    if not label_count(run.store):
        raise InputError("pairs: mask needs label maps to follow, and the cohort has none; set pairs: joint")
    return MaskInput(label_count(run.store), run.codec_stride())


def label_run(run: Run) -> Run:
    """The run of the label model.

    Raises:
        InputError: no case of the training side has a label.
    """
    mask_input(run)
    store = run.store.labels_only()
    if not store.indices("train"):
        raise InputError("pairs: mask needs labelled training cases, and none has a label; set pairs: joint")
    return Run(
        run.config.of_labels(),
        run.folder / LABELS,
        named(run.progress, LABELS),
        known_store=store,
        force=run.force,
    )


def mean_centre(store: Prepared) -> list[float]:
    """Where the middle of what is labelled lies on the grid, in voxels, as a mean over the training cases.

    Masks that come without an image are laid there.
    """
    centres = []
    for i in store.indices("train"):
        if store.cases[i].has_label and (inside := np.argwhere(np.asarray(store.label(i)) > 0)).size:
            centres.append((inside.min(axis=0) + inside.max(axis=0)) / 2)
    return [round(float(c), 3) for c in np.mean(centres, axis=0)] if centres else []


def copy_label_model(run: Run, folder: Path) -> None:
    """Put the label model's folder into the model's."""
    source, target = run.folder / LABELS / "model", folder / LABELS
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file():
            with atomic(target / path.name) as temporary:
                shutil.copyfile(path, temporary)
