"""A cohort on disk with everything at once: orientations, a missing channel, no label, sparse label values."""

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medgen.cohort.case import Case, Cohort, LabelFile, Source
from medgen.cohort.schema import Covariate, Schema
from medgen.volume import Volume, write_volume

SHAPE = (22, 26, 20)


def write_case(folder: Path, i: int) -> Case:
    rng = np.random.default_rng(i)
    centre = (np.array(SHAPE) - 1) / 2
    radius = np.linalg.norm(np.indices(SHAPE) - centre[:, None, None, None], axis=0)
    tissue = gaussian_filter(rng.normal(size=SHAPE), 3)
    label = np.where(radius < 8, np.where(tissue > 0, 40, 7), 0).astype(np.uint8)
    image = np.where(radius < 8, 300 + 2000 * tissue + rng.normal(0, 20, SHAPE), 0).clip(0)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    affine[:3, 3] = (-20, -25, -18)
    axes = ("RAS", "LPS", "SAR", "PIL")[i % 4]
    images = {}
    for name, data in (("T1w", np.rint(image).astype(np.int16)), ("FLAIR", (900 - image) * (radius < 8))):
        if name == "FLAIR" and i == 2:
            continue
        kind = data.dtype if data.dtype.kind == "i" else np.float32
        path = folder / f"{name}_{i}.nii.gz"
        write_volume(path, Volume(data[None].astype(kind), affine).reoriented(axes))
        images[name] = Source(path)
    labels: tuple[LabelFile, ...] = ()
    if i != 3:
        path = folder / f"label_{i}.nii.gz"
        write_volume(path, Volume(label[None], affine).reoriented(axes))
        labels = (LabelFile(Source(path)),)
    split = "val" if i == 1 else "train"
    return Case(f"sub-{i}", f"sub-{i}", images, labels, covariates={"age": 30.0 + i, "sex": None}, split=split)


@pytest.fixture
def cohort(tmp_path: Path) -> Cohort:
    folder = tmp_path / "in"
    cases = tuple(write_case(folder, i) for i in range(5))
    schema = Schema((Covariate("age", unit="year"), Covariate("sex", "categorical", levels=("F", "M"))))
    return Cohort("tiny", folder, cases, schema, ("T1w", "FLAIR"), {7: "lesion"})
