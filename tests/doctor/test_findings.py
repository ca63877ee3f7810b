"""Each check on a cohort that has the fault, and on one that has not."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medgen.cohort.case import Case, Cohort
from medgen.cohort.schema import Covariate, Schema, Value, with_ranges
from medgen.doctor import Diagnosis, Finding, covariates, diagnose, print_table
from medgen.doctor.facts import face_share, voxel_digest
from medgen.prepare.foreground import find_foreground
from medgen.volume import Volume, write_volume

AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])


def image(seed: int) -> np.ndarray:
    tissue = gaussian_filter(np.random.default_rng(seed).normal(size=(16, 18, 14)), 2)
    return (1000 + 3000 * tissue).astype(np.float32)


def put(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE) -> str:
    write_volume(path, Volume(data[None], affine))
    return path.name


def table(folder: Path, lines: list[str]) -> Path:
    path = folder / "list.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def said(diagnosis: Diagnosis, level: str) -> str:
    return "\n".join(f"{f.where}: {f.what}" for f in diagnosis.findings if f.level == level)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    label = np.zeros((16, 18, 14), np.uint8)
    label[4:9, 4:9, 4:9] = 1
    for i in range(6):
        put(tmp_path / f"i{i}.nii.gz", image(i))
        put(tmp_path / f"l{i}.nii.gz", label)
    (tmp_path / "dseg.tsv").write_text("index\tname\n1\tcore\n")
    return tmp_path


def test_a_sound_cohort_may_start(folder: Path) -> None:
    rows = [f"i{i}.nii.gz,l{i}.nii.gz,{30 + 5 * i},{'FM'[i % 2]}" for i in range(6)]
    told: list[tuple] = []
    path = table(folder, ["image,label,age,sex", *rows])
    found = diagnose(path, measure=False, on_progress=lambda *a: told.append(a))
    assert found.exit_code == 0 and found.kind == "cohort" and not found.of("wrong")
    # What is odd about the machine depends on the machine.
    assert [line for line in said(found, "odd").splitlines() if not line.startswith("machine: ")] == [
        "cases: 5 subjects train: a model of so few can repeat them",
        "cases: 5 training cases for 3 conditions (age, sex, core_ml)",
    ]
    assert "prepare makes 16 x 24 x 16 voxels at 2 x 2 x 2 mm" in said(found, "cost")
    assert found.figures["shape"] == [16, 24, 16] and told[-1][:3] == ("reading", 6, 6)


def test_an_experiment_of_few_latents_is_told_how_to_have_more(folder: Path) -> None:
    rows = [f"i{i}.nii.gz,l{i}.nii.gz,{30 + 5 * i},{'FM'[i % 2]}" for i in range(6)]
    root = table(folder, ["image,label,age,sex", *rows])
    path = folder / "experiment.yaml"
    path.write_text(f"name: few\ndata: {{root: {root}}}\nlatents: {{mirror: true}}\n")
    found = said(diagnose(path, measure=False), "odd")
    assert "latents.copies: the diffusion model would learn from 10 latents and come to repeat them" in found
    enough = diagnose(path, overrides=("latents.copies=49",), measure=False)
    assert "latents.copies" not in said(enough, "odd")


def test_crops_of_many_sizes_are_told_of(folder: Path) -> None:
    path = folder / "experiment.yaml"
    rows = [f"i{i}.nii.gz,{30 + i}" for i in range(6)]
    path.write_text(f"name: crops\ndata: {{root: {table(folder, ['image,age', *rows])}}}\n")

    def odd(*overrides: str) -> str:
        return said(diagnose(path, overrides=overrides, measure=False), "odd")

    masked = "diffusion.mask_padding=true"
    assert "diffusion.mask_padding" not in odd(masked), "all of one size"
    for i in (0, 1):
        whole = nib.load(folder / f"i{i}.nii.gz")
        part = nib.Nifti1Image(np.asarray(whole.dataobj)[2:-2, 2:-2, 2:-2], whole.affine)
        nib.save(part, folder / f"i{i}.nii.gz")
    assert "diffusion.mask_padding: fields of view differ in size" in odd(masked)
    assert "diffusion.mask_padding" not in odd()


def test_what_is_wrong_with_a_cohort(folder: Path) -> None:
    (folder / "i1.nii.gz").write_bytes((folder / "i0.nii.gz").read_bytes())  # the same person twice
    turned = Volume(image(2)[None], AFFINE).reoriented("LPI")
    write_volume(folder / "i3.nii.gz", turned)  # and once more, stored along other axes
    put(folder / "i4.nii.gz", np.full((16, 18, 14), 7, np.float32))
    (folder / "l5.nii.gz").write_bytes(b"")
    rows = [
        "i0.nii.gz,l0.nii.gz,30,s0,train",
        "i1.nii.gz,l1.nii.gz,125,s1,train",
        "i2.nii.gz,l2.nii.gz,50,s2,train",
        "i3.nii.gz,,60,s3,val",
        "i4.nii.gz,l4.nii.gz,70,s4,val",
        "i5.nii.gz,l5.nii.gz,80,s0,val",
    ]
    path = table(folder, ["image,label,age,subject,split", *rows])
    found = diagnose(path, measure=False)
    wrong = said(found, "wrong")
    assert found.exit_code == 2 and len(found.of("wrong")) == 6, wrong
    assert "the same image belongs to several subjects: i0 (image), i1 (image)" in wrong
    assert "the same image belongs to several subjects: i2 (image), i3 (image)" in wrong
    assert "i4: channel image has one value everywhere" in wrong
    assert "i5: " in wrong and "l5.nii.gz cannot be read" in wrong
    assert "covariate age: cannot be right: i1: 125" in wrong
    assert "s0: it is in the splits train and val" in wrong


def test_what_is_odd_about_a_cohort(folder: Path) -> None:
    put(folder / "i1.nii.gz", image(1)[::2], AFFINE @ np.diag([2, 1, 1, 1]))
    put(folder / "l1.nii.gz", np.zeros((8, 18, 14), np.uint8), AFFINE @ np.diag([2, 1, 1, 1]))
    put(folder / "i2.nii.gz", 40 * image(2))
    label = np.zeros((16, 18, 14), np.uint8)
    label[4:6, 4, 4] = 9
    put(folder / "l3.nii.gz", label)
    (folder / "dseg.tsv").write_text("index\tname\n1\tcore\n7\tcyst\n")
    rows = [
        f"i{i}.nii.gz,{f'l{i}.nii.gz' if i != 5 else ''},{'AAAAAB'[i]},x,{30 + i if i else 999},{''}" for i in range(6)
    ]
    path = table(folder, ["image,label,site,scanner,score,empty", *rows])
    odd = said(diagnose(path, measure=False), "odd")
    for expected in (
        "voxel sizes differ: 2 x 2 x 2 mm (5), 4 x 2 x 2 mm (1)",
        "1 of 6 cases have no label (i5)",
        "only background in 1 label file (i1)",
        "the values 9 have no name",
        "named but in no case: cyst",
        "label_9 is in 1 of 5 labelled cases",
        "levels with a single case: B",
        "covariate scanner: the same in every case (x)",
        "covariate score: far from all others: i0: 999",
        "column 'empty' is no covariate",
        "intensities of image differ",
    ):
        assert expected in odd, odd


def test_far_values_are_slips_and_not_the_old() -> None:
    assert covariates.far_values([18, 19, 20, 22, 25, 90]) == {90.0}
    assert covariates.far_values([18, 19, 20, 40, 60, 90]) == set()
    assert covariates.far_values([20, 30, 40, 50, 999]) == {999.0}
    assert covariates.far_values([0.02, 31, 35, 39, 40]) == {0.02}
    assert covariates.far_values([1, 2]) == set()


def test_ages_that_nobody_has() -> None:
    values: list[Value] = [-1.0, 30.0, 40.0, None]
    cases = tuple(Case(f"c{i}", f"c{i}", {}, covariates={"age": v}) for i, v in enumerate(values))
    schema = with_ranges(Schema((Covariate("age", unit="year"),)), [c.covariates for c in cases])
    found = list(covariates.columns(Cohort("x", Path(), cases, schema, ("T1w",))))
    assert [f.level for f in found] == ["odd", "wrong"]
    assert "missing in 1 of 4" in found[0].what and "c0: -1" in found[1].what


def head(*, face: bool, air: float = 0.0) -> Volume:
    """A head of ellipsoids, 3 mm: a skull, a neck and, where wanted, a face in front and below. Axes run LPS."""
    x, y, z = np.meshgrid(*(np.linspace(-120, 120, 80),) * 3, indexing="ij")
    inside = (x / 75) ** 2 + (y / 92) ** 2 + ((z - 30) / 80) ** 2 < 1
    inside |= (np.hypot(x, y + 40) < 55) & (z < 0)
    if face:
        inside |= ((x / 62) ** 2 + ((y - 38) / 62) ** 2 + ((z + 45) / 60) ** 2) < 1
    noise = np.abs(np.random.default_rng(0).normal(0, air, inside.shape)) if air else 0.0
    data = np.where(inside, 500 + 2 * z, noise)[None].astype(np.float32)
    affine = np.diag([240 / 79, 240 / 79, 240 / 79, 1.0])
    affine[:3, 3] = -120
    return Volume(data, affine).reoriented("LPS")


def test_a_face_is_seen_and_its_absence_too() -> None:
    def share(volume: Volume) -> float | None:
        return face_share(volume, find_foreground(volume.data[0]))

    for air in (0.0, 8.0):
        seen, gone = share(head(face=True, air=air)), share(head(face=False, air=air))
        assert seen is not None and gone is not None and seen > 0.4 and gone < 0.1, (air, seen, gone)
    small = Volume(head(face=True).data, head(face=True).affine @ np.diag([0.3, 0.3, 0.3, 1]))
    assert share(small) is None


def test_an_image_is_the_same_whatever_way_its_axes_run() -> None:
    v = Volume(image(0)[None], AFFINE)
    assert voxel_digest(v) == voxel_digest(v.reoriented("PIL")) != voxel_digest(Volume(image(1)[None], AFFINE))


def test_the_table_reads_well_in_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    findings = (Finding("ok", "a", "fine"), Finding("wrong", "b [red]", "bad [/x] " + "long " * 60, "mend it"))
    print_table(Diagnosis("p", "cohort", findings))
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert "\x1b" not in out and max(map(len, lines)) <= 150 and not any(line.endswith(" ") for line in lines)
    assert out.index("b [red]") < out.index("fine"), "worst first"
    assert "bad [/x]" in out and lines[-1] == "1 wrong, 0 odd: mend what is wrong before a run"


def test_real_cohorts_may_start(data: Path) -> None:
    found = diagnose(data / "ms", measure=False)
    assert found.exit_code == 0 and found.figures["shape"] == [136, 168, 136]
    assert "sex: the same in every case" in said(found, "odd") and "probably none in 3 heads" in said(found, "ok")
