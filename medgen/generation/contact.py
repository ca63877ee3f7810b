"""A contact sheet of a dataset on disk: real or synthetic, any format."""

from pathlib import Path

import numpy as np
from PIL import Image

from medgen.cohort.load import load_case
from medgen.files import atomic
from medgen.formats.detect import read_cohort
from medgen.training.pictures import sheet

NAME = "contact_sheet.png"


def write_contact_sheet(
    dataset: Path, out: Path, *, cases: int = 16, columns: int = 2, format: str | None = None
) -> None:
    """Draw the first cases of a dataset: three planes each, plain and with the label laid over.

    Args:
        dataset: folder of the dataset.
        out: the PNG to write.
        cases: how many at most.
        columns: cases a line.
        format: of the dataset, recognised where None.
    """
    cohort = read_cohort(dataset, format=format)
    ids = {value: i + 1 for i, value in enumerate(sorted(cohort.label_names))}
    drawn = []
    for case in cohort.cases[:cases]:
        loaded = load_case(case, cohort.channels)
        image = next(iter(loaded.images.values())).reoriented().data
        low, high = np.percentile(image, [0.5, 99.8])
        grey = np.clip((image - low) / max(high - low, 1e-6), 0, 1) * 2 - 1
        label = None
        if loaded.label is not None:
            values = loaded.label.reoriented().data[0]
            label = sum((np.where(values == v, i, 0) for v, i in ids.items()), np.zeros_like(values))
        drawn.append((grey, label))
    # Pictures of coarse grids are enlarged to be looked at, fine ones are not.
    enlarge = max(1, round(140 / max(drawn[0][0].shape)))
    with atomic(out) as temporary:
        Image.fromarray(sheet(drawn, columns, enlarge)).save(temporary, format="PNG")
