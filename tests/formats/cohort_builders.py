"""Tiny cohorts on disk for the tests of the formats."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from medgen.cohort.sample import Sample
from medgen.cohort.schema import Covariate, Schema
from medgen.formats.writer import DatasetInfo
from medgen.volume import Volume, write_volume

AFFINE = np.array([[2.0, 0, 0, -5], [0, 2.0, 0, -6], [0, 0, 3.0, -7], [0, 0, 0, 1]])
SHAPE = (5, 6, 4)
SCHEMA = Schema(
    (
        Covariate("age", unit="year", minimum=20.0, maximum=80.5),
        Covariate("sex", "categorical", levels=("F", "M")),
        Covariate("ventricles_ml", unit="ml", minimum=10.25, maximum=30.125),
        Covariate("grade", "ordinal", levels=("low", "mid", "high")),
        Covariate("hour", "periodic", "hour", 1.0, 23.0, period=24.0),
    )
)
INFO = DatasetInfo(
    "synthetic", ("T1w", "FLAIR"), {2: "grey", 17: "lesion"}, SCHEMA, {"Name": "medgen", "Version": "0.1"}
)


def volume(seed: int = 0, channels: int = 1, affine: np.ndarray = AFFINE) -> Volume:
    rng = np.random.default_rng(seed)
    return Volume(rng.normal(size=(channels, *SHAPE)).astype(np.float32), affine)


def label(values: tuple[int, ...] = (0, 1), seed: int = 0, affine: np.ndarray = AFFINE) -> Volume:
    picked = np.random.default_rng(seed).choice(values, size=(1, *SHAPE))
    picked.flat[: len(values)] = values
    return Volume(picked.astype(np.int16), affine)


def image_at(path: Path, seed: int = 0, channels: int = 1) -> Path:
    write_volume(path, volume(seed, channels))
    return path


def label_at(path: Path, values: tuple[int, ...] = (0, 1), seed: int = 0) -> Path:
    write_volume(path, label(values, seed))
    return path


def text_at(path: Path, content: str | bytes | Mapping[str, Any] | list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def bids(root: Path, subjects: tuple[str, ...] = ("01", "02"), suffix: str = "T1w") -> Path:
    text_at(root / "dataset_description.json", {"Name": "tiny", "BIDSVersion": "1.9.0"})
    for seed, sub in enumerate(subjects):
        image_at(root / f"sub-{sub}/anat/sub-{sub}_{suffix}.nii.gz", seed)
    return root


def nnunet(root: Path, **changes: Any) -> Path:
    content = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "core": 1, "edema": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    } | changes
    text_at(root / "dataset.json", {k: v for k, v in content.items() if v is not None})
    for seed, case in enumerate(("a_1", "b_2")):
        image_at(root / f"imagesTr/{case}_0000.nii.gz", seed)
        label_at(root / f"labelsTr/{case}.nii.gz", (0, 1, 2), seed)
    image_at(root / "imagesTr/a_1_0001.nii.gz", 7)
    return root


def decathlon(root: Path, **changes: Any) -> Path:
    content = {
        "name": "tiny",
        "modality": {"0": "FLAIR", "1": "T1w"},
        "labels": {"0": "background", "1": "edema", "4": "core"},
        "training": [{"image": f"./imagesTr/{i}.nii.gz", "label": f"./labelsTr/{i}.nii.gz"} for i in ("x", "y")],
        "test": ["./imagesTs/z.nii.gz"],
    } | changes
    text_at(root / "dataset.json", {k: v for k, v in content.items() if v is not None})
    for seed, case in enumerate(("x", "y")):
        image_at(root / f"imagesTr/{case}.nii.gz", seed, 2)
        label_at(root / f"labelsTr/{case}.nii.gz", (0, 1, 4), seed)
    image_at(root / "imagesTs/z.nii.gz", 9, 2)
    return root


def sample(sample_id: str, seed: int = 0, **changes: Any) -> Sample:
    parts: dict[str, Any] = {
        "images": {c: volume(seed + i) for i, c in enumerate(INFO.channels)},
        "label": label((0, 2, 17), seed),
        "covariates": {"age": 40.5 + seed, "sex": "F", "ventricles_ml": 12.3, "grade": "mid", "hour": 3.0},
        "sidecar": {"seed": seed, "model_sha256": "0" * 64},
    } | changes
    return Sample(sample_id, **parts)


def dicom_series(
    folder: Path,
    *,
    z_mm: tuple[float, ...] = (0, 2, 4, 6, 8, 10),
    study: str = "1.2.3.1",
    series: str = "1.2.3.1.1",
    prefix: str = "",
    **tags: Any,
) -> np.ndarray:
    """Write one CT-like series; returns its values as (X, Y, Z). Slices are written in shuffled file order."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(series))
    data = rng.integers(0, 1000, size=(7, 5, len(z_mm)), dtype=np.uint16)
    for k, z in enumerate(z_mm):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.TransferSyntaxUID = CTImageStorage, ExplicitVRLittleEndian
        meta.MediaStorageSOPInstanceUID = f"{series}.{k + 1}"
        d = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        d.SOPClassUID, d.SOPInstanceUID = CTImageStorage, f"{series}.{k + 1}"
        d.StudyInstanceUID, d.SeriesInstanceUID = study, series
        d.Modality, d.SeriesNumber, d.InstanceNumber = "CT", 1, k + 1
        d.ImagePositionPatient, d.ImageOrientationPatient = [10.0, -20.0, z], [1, 0, 0, 0, 1, 0]
        d.PixelSpacing, d.SliceThickness = [1.5, 0.5], 2
        d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation = 5, 7, 1, "MONOCHROME2"
        d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 0
        d.RescaleSlope, d.RescaleIntercept = 1, -100
        for name, value in tags.items():
            setattr(d, name, value)
        d.PixelData = np.ascontiguousarray(data[:, :, k].T).tobytes()
        pydicom.dcmwrite(folder / f"{prefix}{(k * 5) % 7:03d}_{k}.dcm", d)
    return data.astype(np.float32) - 100
