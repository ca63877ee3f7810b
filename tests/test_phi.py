"""What may identify a patient goes in with a cohort, and comes out nowhere: the bytes of every file are searched."""

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest

from medgen import config, pipeline
from medgen.cohort.phantom import write_phantom
from medgen.files import read_json, write_json
from tests.tiny import TINY

sys.path.append(str(Path(__file__).parent / "formats"))
from cohort_builders import dicom_series

NAME, DATES = "Zyxwv", ("19500102", "1950-01-02")
TEXT_FIELDS = ("descrip", "aux_file", "db_name", "intent_name")


def planted_bids(root: Path) -> None:
    """Eight phantoms as a careless hospital would store them: names and dates wherever a file has room for them."""
    plain = root.with_name("plain")
    write_phantom(plain, n=8, spacing_mm=8, seed=3, workers=1)
    ids = sorted({p.name for p in plain.glob("sub-*")})
    for path in sorted(p for p in plain.rglob("*") if p.is_file()):
        relative = str(path.relative_to(plain))
        for number, old in enumerate(ids):
            relative = relative.replace(old, f"sub-{NAME}{number:02d}")
        target = root / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.name.endswith(".nii.gz"):
            _with_planted_header(path, target)
            sidecar = {"PatientName": f"{NAME}^Anna", "AcquisitionDate": DATES[0], "Comment": f"{NAME} {DATES[1]}"}
            write_json(target.with_name(target.name.replace(".nii.gz", ".json")), sidecar)
        else:
            text = path.read_text()
            for number, old in enumerate(ids):
                text = text.replace(old, f"sub-{NAME}{number:02d}")
            target.write_text(text)
    description = read_json(root / "dataset_description.json")
    write_json(root / "dataset_description.json", {**description, "Name": f"{NAME} hospital", "Authors": [NAME]})
    lines = (root / "participants.tsv").read_text().splitlines()
    head = f"{lines[0]}\tpatient_name\tbirth_date\tcomments"
    rows = [f"{line}\t{NAME}^Anna {i}\t{DATES[1]}\t{NAME} came late" for i, line in enumerate(lines[1:])]
    (root / "participants.tsv").write_text("\n".join([head, *rows]) + "\n")


def _with_planted_header(source: Path, target: Path) -> None:
    image = nib.load(source)
    for field in TEXT_FIELDS:
        image.header[field] = f"{NAME} {DATES[0]}"[:10].encode()
    image.header["descrip"] = f"{NAME} born {DATES[1]}".encode()
    note = f"{NAME}^Anna {DATES[0]}".encode()
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", note))
    with gzip.GzipFile(f"{NAME}.nii", "wb", fileobj=target.open("wb")) as stream:  # gzip too keeps a name
        stream.write(image.to_bytes())


def planted_dicom(root: Path) -> None:
    """Eight small series with what an export keeps in its tags, in folders named after the patients."""
    for i in range(8):
        dicom_series(
            root / f"{NAME}_{i}",
            study=f"1.2.{DATES[0]}.{i}",
            series=f"1.2.{DATES[0]}.{i}.1",
            PatientName=f"{NAME}^Anna",
            PatientID=f"{NAME}{i}",
            PatientBirthDate=DATES[0],
            PatientAge=f"0{30 + i}Y",
            PatientSex="FM"[i % 2],
            StudyDate=DATES[0],
            StudyDescription=NAME,
            SeriesDescription=f"{NAME} {DATES[0]}",
            InstitutionName=NAME,
            OperatorsName=NAME,
            PatientComments=f"{NAME} {DATES[1]}",
        )


def every_byte(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Each file's name and content, gzip opened."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        raw = path.read_bytes()
        plain = gzip.decompress(raw) if path.name.endswith(".gz") else b""
        yield path, str(path.relative_to(folder)).encode() + b"\n" + raw + plain


def tiny_run_on(root: Path, folder: Path, use: list[str]) -> None:
    raw: dict[str, Any] = json.loads(json.dumps(TINY))
    raw["data"] = {"root": str(root), "validation": 0.25}
    raw["covariates"]["use"] = use
    for part in ("autoencoder", "diffusion"):
        raw[part]["training"]["steps"] = 2
    pipeline.run_experiment(config.build(raw, "the tiny experiment"), folder=folder, until="synthetic")


@pytest.mark.parametrize(
    ("plant", "use"), [(planted_bids, ["age", "sex", "ventricles_ml"]), (planted_dicom, ["age", "sex"])]
)
def test_what_identifies_a_patient_reaches_no_output(plant: Any, use: list[str], tmp_path: Path) -> None:
    root, run = tmp_path / "clinic", tmp_path / "run"
    plant(root)
    assert sum(NAME.encode() in content for _, content in every_byte(root)) >= 8, "nothing was planted"
    tiny_run_on(root, run, use)
    forbidden = [NAME, NAME.lower(), NAME.upper(), *DATES, str(root), "clinic", "hospital", "came late"]
    searched = 0
    for part in ("model", "synthetic", "prepared"):
        for path, content in every_byte(run / part):
            if path == run / "prepared" / "index.json":
                continue  # the user's own record of whose case is which; nothing is made from its ids
            found = [word for word in forbidden if word.encode() in content or word.encode("utf-16-le") in content]
            assert not found, f"{path.relative_to(run)} holds {found}"
            searched += 1
    assert searched > 20
    images = list((run / "synthetic").rglob("*.nii.gz"))
    assert len(images) >= 3
    for path in images:
        header = nib.load(path).header
        assert len(header.extensions) == 0
        assert all(header[field].tobytes().strip(b"\0") == b"" for field in TEXT_FIELDS)


def test_the_prepared_index_is_the_only_place_that_knows_the_cases(tmp_path: Path) -> None:
    planted_dicom(tmp_path / "clinic")
    tiny_run_on(tmp_path / "clinic", tmp_path / "run", ["age"])
    index = (tmp_path / "run" / "prepared" / "index.json").read_text()
    assert NAME not in index and DATES[0] not in index, "DICOM cases are numbered, not named"
