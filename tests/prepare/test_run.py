import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medgen.cohort.case import Case, Cohort, LabelFile, Source
from medgen.cohort.schema import Schema
from medgen.errors import InputError
from medgen.measure.overlap import dice
from medgen.measure.volumes import label_volumes_ml
from medgen.prepare import run
from medgen.prepare.grid import GeometryRecord, Grid
from medgen.prepare.intensity import IntensityRecord
from medgen.prepare.options import PrepareOptions
from medgen.prepare.register import load_template
from medgen.prepare.run import prepare_cohort
from medgen.store.prepared import Prepared
from medgen.volume import Volume, read_volume, write_volume

QUICK = PrepareOptions(stride=8)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    return {p.name: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*") if p.is_file()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_everything_at_once(cohort: Cohort, tmp_path: Path):
    told = []
    done = prepare_cohort(cohort, tmp_path / "out", QUICK, on_progress=lambda *a: told.append(a))
    assert told[-1] == (10, 10, "prepared") and [t[0] for t in told] == list(range(1, 11))
    assert len(done) == 5 and done.spacing_mm == (2.0, 2.0, 2.0) and done.stride == 8
    assert done.label_values == (0, 7, 40) and done.label_names == ("background", "lesion", "label_40")
    assert done.schema.names == ("age", "sex", "lesion_ml", "label_40_ml")
    assert done.schema["lesion_ml"].unit == "ml" and done.schema["age"].maximum == 34.0
    assert done.indices("val") == (1,) and done.indices("train") == (0, 2, 3, 4)
    # A ball of 16 voxels and 2 of margin either side, in axes of 22, 26 and 20, whatever way the files turn them.
    assert done.shape == (24, 24, 24)
    for i, case in enumerate(done.cases):
        assert case.case_id not in case.key
        image = done.image(i)
        assert image.shape == (2, 24, 24, 24) and image.dtype == np.float16
        geometry = GeometryRecord.from_json(case.geometry)
        truth = read_volume(cohort.cases[i].images["T1w"].path)
        assert geometry.source.shape == truth.shape and np.array_equal(geometry.source.affine, truth.affine)
        record = IntensityRecord.from_json(case.intensity[0])
        back = record.invert(geometry.invert_image(image[0].astype(np.float32)))
        assert back.dtype == np.int16
        kept = truth.data[0] <= record.hi
        assert np.abs(back - truth.data[0])[kept].max() <= 1 + (record.hi - record.lo) / 2000
        if case.has_label:
            original = read_volume(cohort.cases[i].label[0].source.path, label=True)
            ids = geometry.invert_label(np.asarray(done.label(i)))
            assert np.array_equal(np.array(done.label_values)[ids], original.data[0])
            volumes = label_volumes_ml(original.data, [7, 40], original.affine)
            assert case.covariates["lesion_ml"] == pytest.approx(volumes[7])
            assert case.quality["label_kept"] == [1.0, 1.0]


def test_what_is_missing_is_said(cohort: Cohort, tmp_path: Path):
    done = prepare_cohort(cohort, tmp_path / "out", QUICK)
    assert done.cases[2].channels_present == (True, False)
    assert (done.image(2)[1] == -1).all()
    assert done.cases[2].intensity[1]["borrowed"]
    assert any(c.split == "val" for c in done.cases), "held-out cases lend nothing"
    others = [c.intensity[1]["hi"] for i, c in enumerate(done.cases) if i != 2 and c.split != "val"]
    assert done.cases[2].intensity[1]["hi"] == pytest.approx(np.median(others))
    assert not done.cases[3].has_label and done.cases[3].covariates["lesion_ml"] is None
    assert not done.label(3).any() and done.label(3).shape == done.shape
    assert done.cases[0].covariates["sex"] is None


def test_processes_give_the_same_bytes(cohort: Cohort, tmp_path: Path):
    options = replace(QUICK, spacing_mm=3.1)
    prepare_cohort(cohort, tmp_path / "one", options)
    prepare_cohort(cohort, tmp_path / "two", options, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_a_second_run_writes_nothing(cohort: Cohort, tmp_path: Path, monkeypatch):
    prepare_cohort(cohort, tmp_path / "out", QUICK)
    before = snapshot(tmp_path / "out")
    monkeypatch.setattr(run, "load_case", lambda *a: pytest.fail("an unchanged case was read"))
    prepare_cohort(cohort, tmp_path / "out", QUICK)
    assert snapshot(tmp_path / "out") == before


def test_a_killed_run_goes_on_where_it_stopped(cohort: Cohort, tmp_path: Path, monkeypatch):
    prepare_cohort(cohort, tmp_path / "whole", QUICK)
    real, calls = run.prepare_loaded, []

    def dies(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    out = tmp_path / "out"
    monkeypatch.setattr(run, "prepare_loaded", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare_cohort(cohort, out, QUICK)
    with pytest.raises(InputError, match="not a finished"):
        Prepared.open(out)
    (out / "cases" / ".partial-77-c0003_image.npy").write_bytes(b"half")
    (out / "cases" / "c0001_image.npy").write_bytes(b"torn")
    before = snapshot(out)
    monkeypatch.setattr(run, "prepare_loaded", real)
    prepare_cohort(cohort, out, QUICK, workers=2)
    after = snapshot(out)
    untouched = {f"c000{i}{end}" for i in (0, 2) for end in (".json", "_image.npy", "_label.npy", "_scan.json")}
    assert all(after[name] == before[name] for name in untouched)
    assert contents(out) == contents(tmp_path / "whole")


def test_only_the_changed_case_is_done_anew(cohort: Cohort, tmp_path: Path):
    out = tmp_path / "out"
    prepare_cohort(cohort, out, QUICK)
    before = snapshot(out)
    path = cohort.cases[4].images["T1w"].path
    path.write_bytes(cohort.cases[0].images["T1w"].path.read_bytes())
    prepare_cohort(cohort, out, QUICK)
    changed = {name for name, when in snapshot(out).items() if before[name] != when}
    assert changed == {"index.json"} | {f"c0004{e}" for e in (".json", "_scan.json", "_image.npy", "_label.npy")}


def test_a_case_that_joins_the_cohort_moves_no_other(cohort: Cohort, tmp_path: Path):
    out, alone = tmp_path / "out", tmp_path / "alone"
    prepare_cohort(cohort.with_cases(cohort.cases[1:]), out, QUICK)
    before = snapshot(out / "cases")
    done = prepare_cohort(cohort, out, QUICK)
    after = snapshot(out / "cases")
    assert not {name for name in before if before[name] != after[name]}
    assert [c.key for c in done.cases] == ["c0004", "c0000", "c0001", "c0002", "c0003"]
    fresh = prepare_cohort(cohort, alone, QUICK)
    for i in range(len(done)):
        np.testing.assert_array_equal(done.image(i), fresh.image(i))


def test_options_and_a_smaller_cohort_are_followed(cohort: Cohort, tmp_path: Path):
    out = tmp_path / "out"
    prepare_cohort(cohort, out, QUICK)
    smaller = cohort.with_cases(cohort.cases[:3])
    done = prepare_cohort(smaller, out, replace(QUICK, shape=(16, 16, 8), channels=("FLAIR", "T1w"), half=False))
    assert done.shape == (16, 16, 8) and done.channels == ("FLAIR", "T1w") and done.image(0).dtype == np.float32
    assert done.cases[0].quality["outside_share"] > 0.1
    assert not list(out.rglob("c0004*"))
    with pytest.raises(InputError, match="none of the channels FLAIR"):
        prepare_cohort(smaller, out, replace(QUICK, channels=("FLAIR",)))


def test_conditions_choose_the_schema(cohort: Cohort, tmp_path: Path):
    done = prepare_cohort(cohort, tmp_path / "out", QUICK, conditions=("lesion_ml", "age"))
    assert done.schema.names == ("lesion_ml", "age") and set(done.cases[0].covariates) == {"lesion_ml", "age"}
    with pytest.raises(InputError, match="unknown covariate 'height'"):
        prepare_cohort(cohort, tmp_path / "out", QUICK, conditions=("height",))


def test_a_bad_case_stops_the_run_with_its_sentence(cohort: Cohort, tmp_path: Path):
    cohort.cases[1].images["T1w"].path.write_bytes(b"no image")
    for workers in (1, 2):
        with pytest.raises(InputError, match=r"T1w_1\.nii\.gz"):
            prepare_cohort(cohort, tmp_path / "out", QUICK, workers=workers)
    assert not (tmp_path / "out" / "index.json").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"shape": (20, 16, 16)}, "multiples of the stride 16"),
        ({"spacing_mm": -1.0}, "spacing_mm must be positive"),
        ({"percentiles": (99.0, 1.0)}, "percentiles must rise"),
        ({"register": "elastic"}, "register is one of"),
        ({"template": Path("nowhere.nii")}, "nowhere.nii does not exist"),
        ({"stride": 0}, "stride must be at least 1"),
    ],
)
def test_options_are_checked(wrong, said):
    with pytest.raises(InputError, match=said):
        PrepareOptions(**wrong)


def test_a_cohort_with_nothing_to_do_is_refused(cohort: Cohort, tmp_path: Path):
    with pytest.raises(InputError, match="no channel 'T2w'"):
        prepare_cohort(cohort, tmp_path / "out", replace(QUICK, channels=("T2w",)))
    with pytest.raises(InputError, match="holds no case"):
        prepare_cohort(cohort.with_cases(()), tmp_path / "out", QUICK)


def oasis(root: Path, n: int) -> Cohort:
    with (root / "participants.tsv").open() as stream:
        names = [row["participant_id"] for row in csv.DictReader(stream, delimiter="\t")][:n]
    cases = tuple(
        Case(
            s,
            s,
            {"T1w": Source(root / f"{s}/anat/{s}_T1w.nii.gz")},
            (LabelFile(Source(root / f"derivatives/labels/{s}/anat/{s}_dseg.nii.gz")),),
        )
        for s in names
    )
    return Cohort("oasis", root, cases, Schema(), ("T1w",), {4: "ventricles", 5: "hippocampus"})


def test_real_brains(data_dir, tmp_path: Path):
    cohort = oasis(data_dir("oasis"), 2)
    done = prepare_cohort(cohort, tmp_path / "out", PrepareOptions(spacing_mm=3.0, stride=8))
    assert all(n % 8 == 0 for n in done.shape) and done.shape[1] == max(done.shape) <= 80
    assert done.label_names[4:] == ("ventricles", "hippocampus")
    for i, case in enumerate(done.cases):
        assert case.quality["foreground"] == "stripped" and case.quality["orientation"] == "LAS"
        assert case.quality["outside_share"] == 0
        assert all(0.8 < kept < 1.2 for kept in case.quality["label_kept"])
        assert (np.asarray(done.image(i)) == -1).mean() > 0.5
        assert 5 < case.covariates["ventricles_ml"] < 150
        original = read_volume(cohort.cases[i].label[0].source.path, label=True).data[0]
        back = GeometryRecord.from_json(case.geometry).invert_label(np.asarray(done.label(i)))
        assert min(dice(back, original, (2, 3, 4))) > 0.75


def test_real_brains_registered_keep_their_own_volumes(data_dir, tmp_path: Path):
    cohort = oasis(data_dir("oasis"), 2)
    fine = load_template()
    coarse = GeometryRecord(
        Grid(fine.shape, fine.affine), Grid((50, 59, 48), fine.affine @ np.diag([4.0, 4, 4, 1])), np.eye(4)
    )
    write_volume(tmp_path / "template.nii.gz", Volume(coarse.apply_image(fine.data, fill=0.0), coarse.target.affine))
    options = PrepareOptions(spacing_mm=4.0, register="affine", template=tmp_path / "template.nii.gz")
    done = prepare_cohort(cohort, tmp_path / "out", options)
    a, b = (GeometryRecord.from_json(c.geometry) for c in done.cases)
    assert np.array_equal(a.target.affine, b.target.affine) and not np.allclose(a.world, b.world)
    overlap = dice(np.asarray(done.label(0)), np.asarray(done.label(1)), (3, 4))
    assert overlap[0] > 0.6
    for i, case in enumerate(done.cases):
        original = read_volume(cohort.cases[i].label[0].source.path, label=True)
        assert case.covariates["label_3_ml"] == pytest.approx(label_volumes_ml(original.data, [3], original.affine)[3])
        wm = (np.asarray(done.label(i)) == 3).sum() * GeometryRecord.from_json(case.geometry).voxel_ml
        assert wm == pytest.approx(case.covariates["label_3_ml"], rel=0.1)
