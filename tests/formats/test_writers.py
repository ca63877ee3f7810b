import json
from pathlib import Path

import numpy as np
import pytest
from cohort_builders import AFFINE, INFO, SCHEMA, SHAPE, bids, decathlon, label, nnunet, sample, volume

from medgen.cohort.load import load_case
from medgen.cohort.schema import Schema
from medgen.errors import InputError
from medgen.formats.detect import open_writer, read_cohort
from medgen.formats.writer import DatasetInfo
from medgen.registry import kinds
from medgen.volume import Volume

FORMATS = ("bids", "decathlon", "nnunet")


def snapshot(out: Path) -> dict[str, tuple[bytes, int]]:
    files = (p for p in out.rglob("*") if p.is_file())
    return {p.relative_to(out).as_posix(): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def test_every_writer_is_tested() -> None:
    assert tuple(kinds("formats", "open")) == FORMATS
    assert set(kinds("formats", "read")) == {*FORMATS, "dicom", "table"}
    with pytest.raises(InputError, match="did you mean 'nnunet'"):
        open_writer("nnunett", "x", INFO)


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_written_reads_back(kind: str, tmp_path: Path) -> None:
    samples = [sample(f"syn{i:06d}", i) for i in range(3)]
    samples[2].covariates["sex"] = None  # type: ignore[index]
    writer = open_writer(kind, tmp_path / "out", INFO)
    for s in samples:
        writer.write(s)
    writer.close()
    cohort = read_cohort(tmp_path / "out")
    assert (cohort.format, cohort.name, cohort.channels) == (kind, "synthetic", INFO.channels)
    assert [(c.name, c.kind, c.unit, c.period) for c in cohort.schema.covariates] == [
        (c.name, c.kind, c.unit, c.period) for c in SCHEMA.covariates
    ]
    assert cohort.schema["grade"].levels == ("low", "mid", "high")
    original = {1: 2, 2: 17} if kind == "nnunet" else {2: 2, 17: 17}
    assert {original[v]: name for v, name in cohort.label_names.items()} == INFO.label_names
    for case, s in zip(cohort.cases, samples, strict=True):
        assert case.case_id == (f"sub-{s.sample_id}" if kind == "bids" else s.sample_id)
        assert dict(case.covariates) == dict(s.covariates)
        loaded = load_case(case, cohort.channels)
        for channel in INFO.channels:
            assert np.array_equal(loaded.images[channel].data, s.images[channel].data)
        assert loaded.label is not None and s.label is not None
        back = np.vectorize({0: 0, **original}.get)(loaded.label.data)
        assert np.array_equal(back, s.label.data)
        assert np.allclose(loaded.label.affine, AFFINE, atol=1e-6)
    assert not cohort.notes


@pytest.mark.parametrize("kind", FORMATS)
def test_channels_come_back_by_name_and_in_order(kind: str, tmp_path: Path) -> None:
    names = ("FLAIR", "T1w", "acq-highres_T2w", "T1gd")
    info = DatasetInfo("s", names, {}, Schema(), {"Name": "medgen"})
    images = {name: volume(i) for i, name in enumerate(names)}
    writer = open_writer(kind, tmp_path, info)
    for i in range(2):
        writer.write(sample(f"syn{i:06d}", images=images, label=None, covariates={}))
    writer.close()
    cohort = read_cohort(tmp_path)
    assert cohort.channels == names and not cohort.notes
    loaded = load_case(cohort.cases[1], names)
    assert all(np.array_equal(loaded.images[name].data, images[name].data) for name in names)


@pytest.mark.parametrize("kind", FORMATS)
def test_the_sidecar_is_the_commit(kind: str, tmp_path: Path) -> None:
    writer = open_writer(kind, tmp_path, INFO)
    assert writer.committed() == writer.uncommitted() == set()
    writer.write(sample("a1"))
    writer.write(sample("b2", 1))
    writer.close()
    assert writer.committed() == {"a1", "b2"} and writer.uncommitted() == set()
    sidecar = writer.sidecar("b2")
    assert (sidecar["seed"], sidecar["covariates"]["age"], sidecar["sample_id"]) == (1, 41.5, "b2")
    with pytest.raises(InputError, match="complete"):
        writer.discard("a1")

    before = snapshot(tmp_path)
    again = open_writer(kind, tmp_path, INFO)
    again.write(sample("a1", 5))
    again.close()
    assert snapshot(tmp_path) == before, "a second run rewrites nothing"

    next(p for p in tmp_path.rglob("*b2*.json")).unlink()
    image = next(p for p in tmp_path.rglob("*b2*.nii.gz"))
    image.with_name(f".partial-1-{image.name}").write_bytes(b"half")
    assert again.uncommitted() == {"b2"} and again.committed() == {"a1"}
    again.discard("b2")
    assert again.uncommitted() == set() and not list(tmp_path.rglob("*b2*")), "no empty folder either"
    again.write(sample("b2", 1))
    again.close()
    assert {k: v[0] for k, v in snapshot(tmp_path).items()} == {k: v[0] for k, v in before.items()}

    image.unlink()
    assert again.uncommitted() == {"b2"}, "a sample whose image is gone is not complete"


@pytest.mark.parametrize("kind", FORMATS)
def test_shards_share_one_folder(kind: str, tmp_path: Path) -> None:
    one, two = open_writer(kind, tmp_path / "shards", INFO), open_writer(kind, tmp_path / "shards", INFO)
    one.write(sample("s1", 1))
    two.write(sample("s2", 2))
    two.close()
    one.write(sample("s3", 3))
    one.close()
    whole = open_writer(kind, tmp_path / "whole", INFO)
    for i in (1, 2, 3):
        whole.write(sample(f"s{i}", i))
    whole.close()
    shards, alone = snapshot(tmp_path / "shards"), snapshot(tmp_path / "whole")
    assert {k: v[0] for k, v in shards.items()} == {k: v[0] for k, v in alone.items()}


@pytest.mark.parametrize("kind", FORMATS)
def test_samples_that_do_not_fit(kind: str, tmp_path: Path) -> None:
    writer = open_writer(kind, tmp_path, INFO)
    shifted = Volume(label().data, AFFINE + np.eye(4) * [1e-9, 0, 0, 0])
    images = {"T1w": volume(), "FLAIR": volume()}
    for bad in (
        sample("a-b"),
        sample("a/../b"),
        sample("a", images={"T1w": volume(), "T2w": volume()}),
        sample("a", images={}),
        sample("a", images=images, label=shifted),
        sample("a", images={"T1w": volume(), "FLAIR": Volume(np.zeros((1, 2, 2, 2), np.float32), AFFINE)}),
    ):
        with pytest.raises(InputError, match="sample 'a"):
            writer.write(bad)
    assert writer.committed() == writer.uncommitted() == set()


@pytest.mark.parametrize(("kind", "make"), [("bids", bids), ("nnunet", nnunet), ("decathlon", decathlon)])
def test_a_foreign_dataset_is_not_written_into(kind: str, make, tmp_path: Path) -> None:
    make(tmp_path)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="another dataset"):
        open_writer(kind, tmp_path, INFO)
    assert snapshot(tmp_path) == before


def test_nnunet_labels_are_consecutive_and_mapped(tmp_path: Path) -> None:
    writer = open_writer("nnunet", tmp_path, INFO)
    writer.write(sample("a"))
    writer.close()
    content = json.loads((tmp_path / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "grey": 1, "lesion": 2}
    assert (content["numTraining"], content["file_ending"]) == (1, ".nii.gz")
    mapping = json.loads((tmp_path / "medgen_sidecars/label_map.json").read_text())["labels"]
    assert [(m["original"], m["nnunet"]) for m in mapping] == [(2, 1), (17, 2)]
    with pytest.raises(InputError, match="label 5"):
        writer.write(sample("b", label=label((0, 5))))
    assert not list(tmp_path.rglob("b*.nii.gz"))


def test_bids_layout(tmp_path: Path) -> None:
    info = DatasetInfo("s", ("MRI (3T)", "T2w"), {}, Schema(), {"Name": "medgen", "SkullStripped": True})
    writer = open_writer("bids", tmp_path, info)
    writer.write(sample("a", images={"MRI (3T)": volume(), "T2w": volume(1)}, label=None, covariates={"z": 1.5}))
    writer.close()
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {
        ".bidsignore",
        "README.md",
        "T2w.json",
        "dataset_description.json",
        "participants.json",
        "participants.tsv",
        "sub-a/anat/sub-a_MRI3T.json",
        "sub-a/anat/sub-a_MRI3T.nii.gz",
        "sub-a/anat/sub-a_T2w.nii.gz",
    }
    description = json.loads((tmp_path / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"] == [
        {"Name": "medgen", "Channels": {"MRI (3T)": "MRI3T", "T2w": "T2w"}}
    ]
    assert json.loads((tmp_path / "T2w.json").read_text()) == {"SkullStripped": True}
    assert (tmp_path / "participants.tsv").read_text() == "participant_id\tz\nsub-a\t1.5\n"
    assert read_cohort(tmp_path).channels == ("MRI (3T)", "T2w")
    assert load_case(read_cohort(tmp_path).cases[0], ("T2w",)).images["T2w"].shape == SHAPE
    for channels in (("a b", "ab"), ("dseg",), ("!",)):
        with pytest.raises(InputError, match="distinct BIDS file names"):
            open_writer("bids", tmp_path / "x", DatasetInfo("s", channels, {}, Schema(), {}))


@pytest.mark.parametrize("first", FORMATS)
@pytest.mark.parametrize("second", FORMATS)
def test_a_dataset_is_not_gone_on_with_in_another_format(first: str, second: str, tmp_path: Path) -> None:
    """Its labels are numbered otherwise there: the same file would say another structure."""
    writer = open_writer(first, tmp_path, INFO)
    writer.write(sample("a"))
    writer.close()
    before = snapshot(tmp_path)
    if first == second:
        assert open_writer(second, tmp_path, INFO).committed() == {"a"}
    else:
        with pytest.raises(InputError, match="choose an empty"):
            open_writer(second, tmp_path, INFO)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", ["README.md", "participants.tsv", "sub-01/anat/x.nii.gz", "imagesTr/a.nii.gz"])
def test_files_of_others_are_not_written_over(kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match="choose an empty"):
        open_writer(kind, tmp_path, INFO)
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_dataset_without_a_sample_is_gone_on_with(kind: str, tmp_path: Path) -> None:
    open_writer(kind, tmp_path / "out", INFO).close()
    again = open_writer(kind, tmp_path / "out", INFO)
    again.write(sample("a"))
    again.close()
    assert len(read_cohort(tmp_path / "out").cases) == 1
