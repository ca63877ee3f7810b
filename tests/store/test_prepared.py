import json
from pathlib import Path

import numpy as np
import pytest

from medgen.cohort.schema import Covariate, Schema
from medgen.errors import InputError
from medgen.store.prepared import Prepared


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "cases").mkdir()
    np.save(tmp_path / "cases" / "c0000_image.npy", np.zeros((1, 4, 4, 8), dtype=np.float16))
    np.save(tmp_path / "cases" / "c0000_label.npy", np.ones((4, 4, 8), dtype=np.uint8))
    np.save(tmp_path / "cases" / "c0001_image.npy", np.zeros((1, 4, 4, 8), dtype=np.float16))
    case = {"subject_id": "s", "split": None, "covariates": {"age": 3.0}, "geometry": {}, "quality": {}}
    case |= {"intensity": [{}], "channels_present": [True]}
    index = {
        "format": 1,
        "name": "n",
        "channels": ["T1w"],
        "label_values": [0, 9],
        "label_names": ["background", "nine"],
        "schema": Schema((Covariate("age"),)).to_json(),
        "spacing_mm": [1.0, 1.0, 1.0],
        "shape": [4, 4, 8],
        "stride": 4,
        "cases": [
            {**case, "key": "c0000", "case_id": "a", "has_label": True, "split": "train"},
            {**case, "key": "c0001", "case_id": "b", "has_label": False},
        ],
    }
    (tmp_path / "index.json").write_text(json.dumps(index))
    return tmp_path


def test_reads_lazily(folder: Path):
    prepared = Prepared.open(folder)
    assert len(prepared) == 2 and prepared.indices("train") == (0,) and prepared.indices(None) == (1,)
    assert isinstance(prepared.image(0), np.memmap) and not prepared.image(0).flags.writeable
    assert prepared.label(0).dtype == np.uint8 and prepared.label(0).all()
    assert not prepared.label(1).any() and prepared.label(1).shape == (4, 4, 8)
    assert prepared.schema["age"].kind == "continuous" and prepared.cases[0].channels_present == (True,)


def test_a_folder_without_index_is_not_finished(folder: Path):
    (folder / "index.json").unlink()
    with pytest.raises(InputError, match="not a finished prepared cohort"):
        Prepared.open(folder)


@pytest.mark.parametrize("change", [{"format": 99}, {"cases": [{"key": "c0"}]}, {"shape": None}])
def test_a_damaged_index_is_one_sentence(folder: Path, change: dict):
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | change))
    with pytest.raises(InputError, match="prepare the cohort again"):
        Prepared.open(folder)


def test_damaged_arrays_are_named(folder: Path):
    prepared = Prepared.open(folder)
    (folder / "cases" / "c0000_image.npy").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"c0000_image\.npy"):
        prepared.image(0)
    np.save(folder / "cases" / "c0000_label.npy", np.ones((3, 3, 3), dtype=np.uint8))
    with pytest.raises(InputError, match=r"c0000_label\.npy has shape"):
        prepared.label(0)
