from pathlib import Path

import numpy as np
import pytest

from medgen.cohort.case import Case, LabelFile, Source
from medgen.cohort.load import load_case, load_image, load_label
from medgen.errors import InputError
from medgen.volume import Volume, write_volume

AFFINE = np.array([[-2.0, 0, 0, 5], [0, 0, 3.0, -6], [0, 1.5, 0, -7], [0, 0, 0, 1]])
SHAPE = (4, 5, 6)


def put(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> Source:
    write_volume(path, Volume(data[None] if data.ndim == 3 else data, affine))
    return Source(path)


@pytest.fixture()
def image(tmp_path: Path) -> Source:
    return put(tmp_path / "t1.nii.gz", np.random.default_rng(0).normal(size=SHAPE).astype(np.float32))


def shifted(mm: float) -> np.ndarray:
    moved = AFFINE.copy()
    moved[0, 3] += mm
    return moved


def test_missing_label_mask_and_channel_are_fine(image: Source) -> None:
    loaded = load_case(Case("k", "k", {"T1w": image}), ("T2w", "T1w"))
    assert list(loaded.images) == ["T1w"] and loaded.label is None and loaded.mask is None
    with pytest.raises(InputError, match="none of the channels T2w"):
        load_case(Case("k", "k", {"T1w": image}), ("T2w",))


def test_labels_are_merged_in_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    base = rng.integers(0, 4, SHAPE, dtype=np.int16)
    over = rng.integers(0, 2, SHAPE, dtype=np.uint8) * 255
    case = Case(
        "k",
        "k",
        {},
        (LabelFile(put(tmp_path / "a.nii.gz", base)), LabelFile(put(tmp_path / "b.nii.gz", over), 9)),
    )
    label = load_label(case)
    assert label is not None and label.data.dtype == np.int32
    assert np.array_equal(label.data[0], np.where(over, 9, base))


@pytest.mark.parametrize("what", ["label", "mask", "image", "second label"])
@pytest.mark.parametrize(("mm", "fits"), [(0.001, True), (0.1, False)])
def test_corners_must_agree(what: str, mm: float, fits: bool, image: Source, tmp_path: Path) -> None:
    kind = np.float32 if what == "image" else np.uint8
    other = put(tmp_path / "other.nii.gz", np.ones(SHAPE, kind), shifted(mm))
    good = put(tmp_path / "good.nii.gz", np.ones(SHAPE, np.uint8))
    images = {"T1w": image} | ({"T2w": other} if what == "image" else {})
    labels = {"label": (LabelFile(other),), "second label": (LabelFile(good), LabelFile(other, 2))}.get(what, ())
    case = Case("k", "k", images, labels, other if what == "mask" else None)
    if not fits:
        with pytest.raises(InputError, match=r"other\.nii\.gz does not lie on .*(t1|good)\.nii\.gz"):
            load_case(case, ("T1w", "T2w"))
        return
    loaded = load_case(case, ("T1w", "T2w"))
    volumes = [*loaded.images.values(), loaded.label, loaded.mask]
    assert all(np.array_equal(v.affine, loaded.images["T1w"].affine) for v in volumes if v is not None)


def test_other_shape_names_both_files(image: Source, tmp_path: Path) -> None:
    label = put(tmp_path / "seg.nii.gz", np.ones((4, 5, 7), np.uint8))
    with pytest.raises(InputError, match=r"seg\.nii\.gz does not lie on .*t1\.nii\.gz \(shapes"):
        load_case(Case("k", "k", {"T1w": image}, (LabelFile(label),)), ("T1w",))


def test_a_label_whose_axes_run_another_way_is_turned(image: Source, tmp_path: Path) -> None:
    data = np.random.default_rng(2).integers(0, 3, SHAPE, dtype=np.int16)
    turned = Volume(data[None], AFFINE).reoriented("RAS")
    label = put(tmp_path / "seg.nii.gz", turned.data, turned.affine)
    loaded = load_case(Case("k", "k", {"T1w": image}, (LabelFile(label),)), ("T1w",))
    assert loaded.label is not None and np.array_equal(loaded.label.data[0], data)


def test_components(tmp_path: Path) -> None:
    data = np.random.default_rng(3).normal(size=(2, *SHAPE)).astype(np.float32)
    path = put(tmp_path / "both.nii.gz", data).path
    assert np.array_equal(load_image(Source(path, 1)).data[0], data[1])
    with pytest.raises(InputError, match="has 2 channels where one is expected"):
        load_image(Source(path))
    with pytest.raises(InputError, match="at least 3"):
        load_case(Case("k", "k", {"c": Source(path, 2)}), ("c",))


def test_label_must_be_integer(image: Source, tmp_path: Path) -> None:
    half = put(tmp_path / "half.nii.gz", np.full(SHAPE, 0.5, np.float32))
    with pytest.raises(InputError, match="not integers"):
        load_case(Case("k", "k", {"T1w": image}, (LabelFile(half),)), ("T1w",))
