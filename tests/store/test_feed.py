import json
from pathlib import Path

import numpy as np
import pytest
import torch

from medgen.cohort.schema import Covariate, Schema
from medgen.store.augment import Augmentation
from medgen.store.centres import Chances
from medgen.store.feed import patch_feed
from medgen.store.pool import Pool, Resident
from medgen.store.prepared import Prepared

CPU = torch.device("cpu")


@pytest.fixture
def store(tmp_path: Path) -> Prepared:
    """Four cases of which the last has no label; voxels are twice as long as wide."""
    (tmp_path / "cases").mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for i in range(4):
        np.save(tmp_path / "cases" / f"c{i}_image.npy", rng.uniform(-1, 1, (1, 12, 12, 12)).astype(np.float16))
        np.save(tmp_path / "cases" / f"c{i}_label.npy", rng.integers(0, 3, (12, 12, 12)).astype(np.uint8))
        row = {"key": f"c{i}", "case_id": str(i), "subject_id": str(i), "split": "train", "covariates": {}}
        rows.append({**row, "has_label": i < 3, "channels_present": [True], "geometry": {}, "intensity": [{}]})
    shared = {"format": 1, "name": "n", "channels": ["T1w"], "label_values": [0, 3, 7], "label_names": ["b", "c", "d"]}
    grid = {"spacing_mm": [1.0, 1.0, 2.0], "shape": [12, 12, 12], "stride": 4}
    cases = {"schema": Schema((Covariate("age"),)).to_json(), "cases": [{**row, "quality": {}} for row in rows]}
    (tmp_path / "index.json").write_text(json.dumps({**shared, **grid, **cases}))
    return Prepared.open(tmp_path)


@pytest.mark.parametrize("storage", ["float16", "bfloat16", "uint8"])
def test_patches_of_a_prepared_cohort(store: Prepared, storage: str):
    s = patch_feed(store, [3, 1], (6, 6, 6), 4, seed=0, device=CPU, storage=storage)
    assert isinstance(s.volumes, Resident)
    batch = s(0)
    for case, (x, y, z), image, ids in zip(batch.cases, batch.starts, *batch.arrays, strict=True):
        i, where = (3, 1)[case], (slice(x, x + 6), slice(y, y + 6), slice(z, z + 6))
        assert np.abs(image[0].numpy() - store.image(i)[0][where]).max() < 1 / 200
        assert (ids == -1).all() if i == 3 else np.array_equal(ids[0].numpy(), store.label(i)[where])


def test_a_pool_shows_the_same_cohort(store: Prepared):
    options = {"chances": Chances(labels=0.5), "augmentation": Augmentation(rotate_degrees=(10, 10, 10))}
    s = patch_feed(store, range(4), (6, 6, 6), 4, seed=0, device=CPU, resident=2, **options)
    assert isinstance(s.volumes, Pool) and len(s.arrays[0]) == 4
    shown = {case for step in range(40) for case in s(step).cases.tolist()}
    assert shown == {0, 1, 2, 3}
    assert s.augmentation is not None and s.augmentation.spacing_mm == store.spacing_mm
    s.volumes.close()
