"""The real validators on what the exporters write."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cohort_builders import AFFINE, INFO, SHAPE, label, sample, volume

from medgen.formats.detect import open_writer
from medgen.volume import Volume
from tests.validators import bids_errors, check_nnunet


def written(kind: str, out: Path, n: int = 3, **changes) -> Path:
    writer = open_writer(kind, out, INFO)
    for i in range(n):
        writer.write(sample(f"syn{i:06d}", i, **changes))
    writer.close()
    return out


def test_bids_has_no_error(tmp_path: Path) -> None:
    out = written("bids", tmp_path)
    writer = open_writer("bids", out, INFO)
    writer.write(sample("nolabel", 7, label=None, images={"T1w": volume()}))
    writer.close()
    assert bids_errors(out) == []
    (out / "sub-nolabel" / "anat" / "sub-nolabel_what.nii.gz").write_bytes(b"x")
    assert bids_errors(out), "the validator sees what is wrong"


def test_a_generated_dataset_has_no_error(tiny_run: Path) -> None:
    assert bids_errors(tiny_run / "synthetic") == []


def test_nnunet_finds_its_dataset_sound(tmp_path: Path, monkeypatch) -> None:
    out = written("nnunet", tmp_path)
    check_nnunet(out, monkeypatch)
    path = out / "labelsTr" / "syn000001.nii.gz"
    nib.save(nib.Nifti1Image(np.full(SHAPE, 9, np.uint8), nib.load(path).affine), path)
    with pytest.raises(RuntimeError):
        check_nnunet(out, monkeypatch)


@pytest.mark.parametrize("kind", ["bids", "nnunet", "decathlon"])
def test_types_and_values_are_kept_on_disk(kind: str, tmp_path: Path) -> None:
    counts = np.arange(np.prod(SHAPE)).reshape(1, *SHAPE)
    images = {"T1w": Volume(counts.astype(np.int16) - 7, AFFINE), "FLAIR": Volume(counts.astype(np.uint8), AFFINE)}
    out = written(kind, tmp_path, 1, images=images, label=label((0, 2, 17)))
    on_disk = [np.asarray(nib.load(p).dataobj) for p in sorted(out.rglob("*.nii.gz"))]
    assert all(a.dtype.kind in "iu" for a in on_disk), "integers stay integers"
    found = {tuple(np.unique(a)[[0, -1]]) for a in on_disk}
    whole = {(-7, 112), (0, 119)} if kind != "decathlon" else {(-7, 119)}
    assert found == whole | {(0, 2) if kind == "nnunet" else (0, 17)}
