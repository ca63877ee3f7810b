"""Every fault of a folder or table: one sentence that names the file, and no traceback of another kind."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cohort_builders import bids, decathlon, image_at, label_at, nnunet, text_at

from medgen.errors import InputError
from medgen.formats.detect import read_cohort

Make = Callable[[Path], object]


def participants(content: str) -> Make:
    return lambda p: text_at(bids(p) / "participants.tsv", content)


def table(content: str) -> Make:
    return lambda p: (image_at(p / "a.nii.gz"), image_at(p / "b.nii.gz"), text_at(p / "list.csv", content))


def linked(path: str, base: Callable[[Path], Path] = bids) -> Make:
    """A file replaced by a symbolic link to one outside the folder."""

    def make(p: Path) -> None:
        root = base(p / "d")
        outside = image_at(p / "outside.nii.gz")
        (root / path).unlink(missing_ok=True)
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).symlink_to(outside)

    return make


FAULTS: dict[str, tuple[Make, str]] = {
    "empty folder": (lambda p: None, "is an empty folder"),
    "nothing known": (lambda p: text_at(p / "x.txt", "x"), "no cohort that medgen recognises"),
    "several kinds": (
        lambda p: (table("image\na.nii.gz\n")(p), decathlon(p)),
        "looks like decathlon and table",
    ),
    "bids without images": (lambda p: text_at(p / "dataset_description.json", {}), "holds no BIDS images"),
    "bids without bids names": (
        lambda p: (text_at(p / "dataset_description.json", {}), image_at(p / "sub-1/anat/T1.nii.gz")),
        "T1.nii.gz is no BIDS name",
    ),
    "bids description no json": (lambda p: text_at(bids(p) / "dataset_description.json", "{"), "not valid JSON"),
    "bids description a list": (lambda p: text_at(bids(p) / "dataset_description.json", []), "JSON object"),
    "bids file of another subject": (
        lambda p: image_at(bids(p) / "sub-01/anat/sub-02_T2w.nii.gz"),
        "named after another subject",
    ),
    "bids no participant_id": (participants("id\tage\nsub-01\t3\n"), "no column 'participant_id'"),
    "bids commas for tabs": (participants("participant_id,age\nsub-01,3\n"), "separate columns by tabs"),
    "bids row without id": (participants("participant_id\tage\n\t3\n"), "row without participant_id"),
    "bids duplicate id": (participants("participant_id\tage\nsub-01\t3\n01\t4\n"), "'sub-01' twice"),
    "bids ids of nobody": (participants("participant_id\tage\nsub-x\t3\n"), "no participant_id is the name"),
    "bids age is text": (participants("participant_id\tage\nsub-01\told\n"), "row sub-01, column age: 'old'"),
    "bids age in days": (participants("participant_id\tage\nsub-01\t9000\n"), "state its unit"),
    "bids sex coded": (participants("participant_id\tsex\nsub-01\t0\nsub-02\t1\n"), "say under Levels"),
    "bids ragged table": (participants("participant_id\tage\nsub-01\t3\t4\n"), "line 2 has 3 cells"),
    "bids participants.json a list": (
        lambda p: (participants("participant_id\tage\nsub-01\t3\n")(p), text_at(p / "participants.json", [])),
        "one entry a column",
    ),
    "bids sessions without id": (
        lambda p: (
            image_at(bids(p) / "sub-03/ses-1/anat/sub-03_ses-1_T1w.nii.gz"),
            text_at(p / "sub-03/sub-03_sessions.tsv", "session\tage\nses-1\t3\n"),
        ),
        "no column 'session_id'",
    ),
    "bids image link leaves": (linked("sub-01/anat/sub-01_T1w.nii.gz"), "lies outside"),
    "bids label link leaves": (linked("derivatives/l/sub-01/anat/sub-01_dseg.nii.gz"), "lies outside"),
    "bids table link leaves": (linked("participants.tsv"), "lies outside"),
    "bids broken link": (
        lambda p: (bids(p) / "sub-01/anat/sub-01_T2w.nii.gz").symlink_to(p / "nowhere.nii.gz"),
        "does not exist",
    ),
    "bids dseg.tsv without name": (
        lambda p: (
            label_at(bids(p) / "derivatives/l/sub-01/anat/sub-01_dseg.nii.gz"),
            text_at(p / "dseg.tsv", "index\tlabel\n1\tx\n"),
        ),
        "no column 'name'",
    ),
    "nnunet not json": (lambda p: text_at(nnunet(p) / "dataset.json", "nope"), "not valid JSON"),
    "nnunet a list": (lambda p: text_at(nnunet(p) / "dataset.json", []), "JSON object"),
    "nnunet no labels": (lambda p: nnunet(p, labels=None), 'needs "labels"'),
    "nnunet regions": (lambda p: nnunet(p, labels={"background": 0, "whole": [1, 2]}), "'whole' is a region"),
    "nnunet ignore": (lambda p: nnunet(p, labels={"background": 0, "ignore": 1}), "ignore label"),
    "nnunet label text": (lambda p: nnunet(p, labels={"background": 0, "x": "one"}), "whole number"),
    "nnunet label twice": (lambda p: nnunet(p, labels={"x": 1, "y": 1}), "gives label 1 to 'x' and to 'y'"),
    "nnunet channel gap": (lambda p: nnunet(p, channel_names={"0": "a", "2": "b"}), "without gaps"),
    "nnunet channel twice": (lambda p: nnunet(p, channel_names={"0": "a", "1": "a"}), "same name"),
    "nnunet channel unknown": (lambda p: nnunet(p, channel_names={"0": "a"}), "is channel 1, but"),
    "nnunet nrrd": (lambda p: nnunet(p, file_ending=".nrrd"), "convert images and labels"),
    "nnunet no number": (lambda p: image_at(nnunet(p) / "imagesTr/c.nii.gz"), "no channel number"),
    "nnunet no images": (
        lambda p: [f.unlink() for f in (nnunet(p) / "imagesTr").iterdir()],
        "holds no images",
    ),
    "nnunet splits wrong": (lambda p: text_at(nnunet(p) / "splits_final.json", {"train": []}), "list of folds"),
    "nnunet splits of nobody": (
        lambda p: text_at(nnunet(p) / "splits_final.json", [{"train": ["zz"], "val": []}]),
        "names 'zz'",
    ),
    "nnunet both sides": (
        lambda p: text_at(nnunet(p) / "splits_final.json", [{"train": ["a_1"], "val": ["a_1"]}]),
        "on both sides",
    ),
    "nnunet link leaves": (linked("imagesTr/a_1_0000.nii.gz", nnunet), "lies outside"),
    "covariates of nobody": (
        lambda p: text_at(nnunet(p) / "covariates.tsv", "case_id\tage\nzz\t3\n"),
        "no case_id is the name of an image",
    ),
    "decathlon no modality": (lambda p: decathlon(p, modality=None), 'needs "modality"'),
    "decathlon no training": (lambda p: decathlon(p, training=None), 'needs "training"'),
    "decathlon empty training": (lambda p: decathlon(p, training=[]), '"training" is empty'),
    "decathlon no image": (lambda p: decathlon(p, training=[{"label": "x"}]), 'needs "image"'),
    "decathlon image a number": (lambda p: decathlon(p, training=[{"image": 3}]), 'needs "image"'),
    "decathlon image twice": (lambda p: decathlon(p, training=["imagesTr/x.nii.gz"] * 2), "_x' twice"),
    "decathlon image gone": (lambda p: decathlon(p, training=["imagesTr/q.nii.gz"]), "does not exist under"),
    "decathlon not nifti": (lambda p: decathlon(p, training=["imagesTr/x.mha"]), "convert it"),
    "decathlon path leaves": (
        lambda p: (image_at(p / "out.nii.gz"), decathlon(p / "d", training=["../out.nii.gz"])),
        "lies outside",
    ),
    "decathlon absolute path": (lambda p: decathlon(p, training=["/etc/passwd.nii.gz"]), "lies outside"),
    "decathlon link leaves": (linked("imagesTr/x.nii.gz", decathlon), "lies outside"),
    "decathlon labels turned": (lambda p: decathlon(p, labels={"core": 1}), "maps numbers to names"),
    "decathlon files a channel": (
        lambda p: decathlon(p, training=[{"image": ["imagesTr/x.nii.gz"]}]),
        "1 files for 2 modalities",
    ),
    "table no rows": (table("image,age\n"), "no rows"),
    "table no such file": (table("image\nc.nii.gz\n"), "does not exist under"),
    "table path leaves": (table("image\n../x.nii.gz\n"), "lies outside"),
    "table duplicate case": (table("case,image\nx,a.nii.gz\nx,b.nii.gz\n"), "case 'x' twice"),
    "table two image columns": (table("image,path\na.nii.gz,b.nii.gz\n"), "mean the same"),
    "table empty row": (table("case,image\nx,\n"), "row x names no image"),
    "table split unknown": (table("image,split\na.nii.gz,maybe\n"), "write train, val or test"),
    "table label zero": (table("image,label_0\na.nii.gz,b.nii.gz\n"), "label_0 is the background"),
    "table label unknown number": (table("image,label,label_x\na.nii.gz,b.nii.gz,b.nii.gz\n"), "by its number"),
    "table not nifti": (table("image\nlist.csv\n"), "convert it"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str, tmp_path: Path) -> None:
    make, said = FAULTS[name]
    make(tmp_path)
    root = tmp_path / "d" if (tmp_path / "d").is_dir() else tmp_path
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError) as caught:
        read_cohort(root)
    message = str(caught.value)
    assert said in message, message
    assert str(tmp_path) in message and "\n" not in message
    assert sorted(tmp_path.rglob("*")) == before, "nothing is left behind"


def test_paths_and_options_that_are_wrong(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_cohort(tmp_path / "nowhere")
    nifti = image_at(tmp_path / "one.nii.gz")
    with pytest.raises(InputError, match="no cohort that medgen recognises"):
        read_cohort(nifti)
    bids(tmp_path / "b")
    with pytest.raises(InputError, match="did you mean 'bids'"):
        read_cohort(tmp_path / "b", format="bidss")
    with pytest.raises(InputError, match="did you mean 'label_desc'"):
        read_cohort(tmp_path / "b", label_descr="x")
    for content in ("age\n3\n", "a\tb\n1\t2\n"):
        with pytest.raises(InputError, match="no column 'image'"):
            read_cohort(text_at(tmp_path / "t.csv", content))
    (tmp_path / "two").mkdir()
    with pytest.raises(InputError, match="not exactly one"):
        read_cohort(tmp_path / "two", format="table")
