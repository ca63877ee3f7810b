"""Stage segmented: cases without a label get one, from a segmenter trained on the training cases that have one.

Pseudo-labels (Lee 2013) within the cohort. Validation cases get them too, since a model that has only seen labelled
cases cannot be validated on others; test cases never do.
"""

from pathlib import Path

import numpy as np

from medgen.cohort.schema import volume_column
from medgen.files import atomic, read_json, remove_partials, write_json
from medgen.prepare.grid import GeometryRecord
from medgen.segment.train import train_on
from medgen.stages.run import SEGMENTED, Run
from medgen.store.prepared import INDEX, Prepared


def segmented(run: Run) -> None:
    """Train the segmenter, and write the label maps and, last, their index."""
    store, folder = run.prepared, run.folder / SEGMENTED
    segmenter = train_on(
        store,
        store.indices("train"),
        folder / "segmenter",
        steps=run.config.data.segmenter_steps,
        seed=run.config.seed,
        device=run.device,
        on_progress=run.stage_progress(SEGMENTED),
    )
    remove_partials(folder)
    seen = sorted((*store.indices("train"), *store.indices("val")))
    missing = [i for i in seen if not store.cases[i].has_label]
    volumes = {}
    for done, i in enumerate(missing, start=1):
        case = store.cases[i]
        ids = segmenter.predict(np.asarray(store.image(i), dtype=np.float32))
        with atomic(folder / f"{case.key}_label.npy") as temporary, temporary.open("wb") as stream:
            np.save(stream, ids, allow_pickle=False)
        volumes[case.key] = _volumes(store, i, ids)
        run.progress(SEGMENTED, done, len(missing), "cases labelled")
    write_json(folder / INDEX, {"volumes_ml": volumes})


def whole(folder: Path) -> bool:
    """Whether the folder still holds every label map that was made."""
    index = folder / INDEX
    return index.is_file() and all((folder / f"{key}_label.npy").is_file() for key in read_json(index)["volumes_ml"])


def _volumes(store: Prepared, i: int, ids: np.ndarray) -> dict[str, float]:
    """In the subject's own space, as those of given labels are."""
    voxel_ml = GeometryRecord.from_json(store.cases[i].geometry).voxel_ml
    counts = np.bincount(ids.ravel(), minlength=len(store.label_names)).tolist()
    found = zip(store.label_names[1:], counts[1:], strict=True)
    return {volume_column(name): round(count * voxel_ml, 6) for name, count in found}
