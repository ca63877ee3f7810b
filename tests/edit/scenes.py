"""Label maps to edit."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from medgen.edit.scene import Scene

NAMES = ("background", "Tissue", "Chamber")
OASIS = ("background", "CSF", "GM", "WM", "Ventricles", "Hippocampus")


def ball(shape=(40, 36, 32), spacing=(1.0, 1.0, 1.0), radius=5.0, shell=14.0) -> Scene:
    """A chamber in the middle of tissue in the middle of background; radii in mm."""
    lines = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)]
    x, y, z = np.meshgrid(*lines, indexing="ij")
    r = np.sqrt(x**2 + y**2 + z**2)
    ids = np.where(r <= radius, 2, np.where(r <= shell, 1, 0)).astype(np.int16)
    return Scene(ids, NAMES, spacing)


def oasis(data_dir: Callable[[str], Path], step: int = 3) -> Scene:
    """A brain, every ``step``-th voxel."""
    path = data_dir("oasis") / "derivatives/labels/sub-OAS10092/anat/sub-OAS10092_dseg.nii.gz"
    ids = np.asanyarray(nib.load(path).dataobj)[::step, ::step, ::step].astype(np.int16)
    return Scene(np.ascontiguousarray(ids), OASIS, (float(step),) * 3)
