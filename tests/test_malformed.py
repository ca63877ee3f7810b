"""Everything a user can get wrong, through the command line: one sentence, exit code 2, nothing left behind."""

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from medgen import cli
from medgen.files import PARTIAL
from medgen.volume import Volume, write_volume
from tests.tiny import TINY

sys.path.append(str(Path(__file__).parent / "formats"))  # its modules import their builders by bare name
from cohort_builders import AFFINE, SHAPE, bids, dicom_series, image_at, label, label_at, text_at, volume
from test_malformed_cohorts import FAULTS

from tests.test_volume import BROKEN, BROKEN_LABELS

Make = Callable[[Path], Any]
PROGRESS = re.compile(r"[a-z]+: +\d+%.*")


@pytest.fixture
def medgen(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """The command line in this process: exit code, stdout, stderr."""

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medgen", *map(str, words)])
        capfd.readouterr()
        code: Any = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code
        out, err = capfd.readouterr()
        return int(code or 0), out, err

    return call


def refused(result: tuple[int, str, str], said: str) -> None:
    """One sentence on stderr beside progress, and exit code 2."""
    code, _, err = result
    lines = [line for line in err.splitlines() if line.strip() and not PROGRESS.fullmatch(line)]
    assert code == 2, err
    assert len(lines) == 1 and lines[0].startswith("medgen: ") and len(lines[0]) < 700, err
    assert "Traceback" not in err and re.search(said, lines[0]), lines[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def nothing_half_done(folder: Path, out: Path) -> None:
    """No temporary files, and the output is not there, or holds whole files of the scan that a next run reuses."""
    assert not list(folder.rglob(f"{PARTIAL}*"))
    if out.exists():
        names = [p.name for p in out.rglob("*") if p.is_file()]
        assert names and all(re.fullmatch(r"c\d{4}(_scan|_image|_label)?\.(json|npy)", n) for n in names), names


# --- prepare: files, geometry, tables, formats ------------------------------------------------------------------------


def one_image(make: Callable[[Path], Path], column: str) -> Make:
    """A table whose one row names the file that ``make`` makes."""

    def build(root: Path) -> Path:
        path = make(root)
        good = "" if column == "image" else f"{image_at(root / 'good.nii.gz').name},"
        head = "image" if column == "image" else f"image,{column}"
        return text_at(root / "list.csv", f"{head}\n{good}{path.name}\n")

    return build


def with_label(affine: np.ndarray = AFFINE, shape: tuple[int, ...] = SHAPE) -> Make:
    def build(root: Path) -> Path:
        image_at(root / "a.nii.gz")
        write_volume(root / "l.nii.gz", Volume(np.ones((1, *shape), np.uint8), affine))
        return text_at(root / "list.csv", "image,label\na.nii.gz,l.nii.gz\n")

    return build


def two_channels(affine: np.ndarray) -> Make:
    def build(root: Path) -> Path:
        image_at(root / "a.nii.gz")
        write_volume(root / "b.nii.gz", volume(1, affine=affine))
        return text_at(root / "list.csv", "T1_path,T2_path\na.nii.gz,b.nii.gz\n")

    return build


def of_values(data: np.ndarray) -> Make:
    def build(root: Path) -> Path:
        write_volume(root / "a.nii.gz", Volume(data, AFFINE))
        return text_at(root / "list.csv", "image\na.nii.gz\n")

    return build


def dicom(**changes: Any) -> Make:
    def build(root: Path) -> Path:
        dicom_series(root / "dicom/a", **changes)
        return root / "dicom"

    return build


def cut_dicom(root: Path) -> Path:
    dicom_series(root / "dicom/a")
    path = next((root / "dicom/a").iterdir())
    path.write_bytes(path.read_bytes()[:-40])
    return root / "dicom"


def shifted(mm: float) -> np.ndarray:
    moved = AFFINE.copy()
    moved[0, 3] += mm
    return moved


FINER = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
HALF_EMPTY = np.zeros((1, *SHAPE), np.float32)

PREPARE: dict[str, tuple[Make, str]] = {
    **{
        f"image: {n}": (one_image(m, "image"), f"({s})|convert it|exist|no DICOM series")
        for n, (m, s) in BROKEN.items()
    },
    **{f"label: {n}": (one_image(m, "label"), s) for n, (m, s) in BROKEN_LABELS.items()},
    **{f"cohort: {n}": (m, re.escape(s)) for n, (m, s) in FAULTS.items()},
    "no such cohort": (lambda root: root / "nowhere", "does not exist"),
    "a file that is no table": (lambda root: image_at(root / "a.nii.gz"), "no cohort that medgen recognises"),
    "4D where 3D is needed": (of_values(np.ones((3, *SHAPE), np.float32)), "3 channels where one is expected"),
    "constant image": (of_values(HALF_EMPTY), "is constant"),
    "label of another shape": (with_label(shape=(5, 6, 3)), r"does not lie on .* \(shapes"),
    "label with other corners": (with_label(shifted(0.5)), r"corners 0\.25 voxels apart"),
    "label of another spacing": (with_label(FINER), "does not lie on"),
    "channel of another spacing": (two_channels(FINER), "does not lie on"),
    "channel shifted": (two_channels(shifted(3.0)), "resample one onto the other"),
    "DICOM: slices missing": (dicom(z_mm=(0, 2, 4, 8, 10, 12)), "slices are missing"),
    "DICOM: slices doubled": (dicom(z_mm=(0, 2, 4, 4, 6, 8)), "at one position"),
    "DICOM: no position": (dicom(ImagePositionPatient=None), "lacks position"),
    "DICOM: cut short": (cut_dicom, "cannot be read"),
    "DICOM: age": (dicom(PatientAge="old"), "not an age"),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", PREPARE)
def test_prepare_refuses(name: str, tmp_path: Path, medgen: Callable[..., tuple[int, str, str]]) -> None:
    make, said = PREPARE[name]
    (tmp_path / "in").mkdir()
    made = make(tmp_path / "in")
    root = made if isinstance(made, Path) and not name.startswith("cohort") else tmp_path / "in"
    if name.startswith("cohort") and (tmp_path / "in" / "d").is_dir():
        root = tmp_path / "in" / "d"
    result = medgen("prepare", root, "--out", tmp_path / "out", "--workers", 1)
    refused(result, said)
    nothing_half_done(tmp_path, tmp_path / "out")


def test_prepare_does_not_write_into_another_dataset(
    tmp_path: Path, medgen: Callable[..., tuple[int, str, str]]
) -> None:
    bids(tmp_path / "in"), bids(tmp_path / "out", ("09",))
    before = contents(tmp_path)
    refused(medgen("prepare", tmp_path / "in", "--out", tmp_path / "out"), "holds something else already")
    (tmp_path / "file").write_text("x")
    refused(medgen("prepare", tmp_path / "in", "--out", tmp_path / "file"), "is a file")
    (tmp_path / "file").unlink()
    assert contents(tmp_path) == before


# --- run: experiment files --------------------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[str | Mapping[str, Any], list[str], str]] = {
    "not YAML": ("name: [", [], "not valid YAML"),
    "a list": ("- a\n", [], "not an experiment file"),
    "no name": ("seed: 1\n", [], "'name' is missing"),
    "name that is a path": ({"name": "../x"}, [], "key 'name'"),
    "unknown key": ({"prepar": {}}, [], "did you mean 'prepare'"),
    "unknown key below": ({"generate": {"step": 3}}, [], "did you mean 'steps'"),
    "unknown key deep below": ({"diffusion": {"training": {"minute": 3}}}, [], "did you mean 'minutes'"),
    "text for a number": ({"generate": {"n": "many"}}, [], "'generate.n'.*not 'many'"),
    "negative": ({"autoencoder": {"training": {"steps": -1}}}, [], "greater than 0"),
    "share above 1": ({"data": {"validation": 1.5}}, [], "less than 1"),
    "two sources": ({"data": {"root": "x", "phantom": {}}}, [], "not both"),
    "no such root": ({"data": {"root": "nowhere"}}, [], "nowhere does not exist"),
    "no such device": ({"device": "gpu"}, [], "device is auto"),
    "unknown sampler": ({"generate": {"sampler": "hein"}}, [], "did you mean 'heun'"),
    "unknown codec": ({"autoencoder": {"kind": "kll"}}, [], "did you mean 'kl'"),
    "unknown process": ({"diffusion": {"process": "flo"}}, [], "did you mean 'flow'"),
    "unknown network": ({"diffusion": {"network": "unett"}}, [], "did you mean 'unet'"),
    "unknown format": ({"generate": {"format": "bid"}}, [], "did you mean 'bids'"),
    "unknown option": ({"autoencoder": {"options": {"chanels": [8]}}}, [], "did you mean 'channels'"),
    "option of another type": ({"diffusion": {"process_options": {"shift": "a"}}}, [], "must be a number"),
    "stride": ({"prepare": {"stride": 6}}, [], "must be a multiple of"),
    "shape": ({"prepare": {"shape": [20, 20, 20]}}, [], "must be multiples of"),
    "template that is not there": ({"prepare": {"template": "no.nii"}}, [], r"no\.nii does not exist"),
    "derived with a call": ({"covariates": {"derived": {"x": "open('/etc/passwd')"}}}, [], "the call of 'open'"),
    "derived of nothing": ({"covariates": {"derived": {"x": "volume(4"}}}, [], "is not an expression"),
    "derived of an unknown column": (
        {"data": {"root": "COHORT"}, "covariates": {"derived": {"x": "agee / 2"}}},
        [],
        "did you mean 'age'",
    ),
    "label that the cohort has not": (
        {"data": {"root": "COHORT"}, "covariates": {"derived": {"x": "volume(9)"}}},
        [],
        r"asks for label 9 \(the cohort has: 0, 1\)",
    ),
    "unknown condition": (
        {"data": {"root": "COHORT"}, "covariates": {"use": ["weight"]}},
        [],
        "unknown covariate 'weight'",
    ),
    "validation of nobody": ({"data": {"root": "COHORT", "validation": 0.0}}, [], "between 0 and 1"),
    "option of a format": (
        {"data": {"root": "COHORT", "options": {"chanels": ["T1w"]}}},
        [],
        "did you mean 'channels'",
    ),
    "--set without value": ({}, ["--set", "generate.n"], "needs KEY=VALUE"),
    "--set below a value": ({}, ["--set", "seed.x=1"], "'seed' is a value"),
    "--set unknown": ({}, ["--set", "generate.m=1"], "unknown key 'generate.m'"),
    "--set no YAML": ({}, ["--set", "generate.n=["], "not valid YAML"),
    "--until nothing": ({}, ["--until", "difusion"], "names no stage 'difusion'"),
}


def labelled_bids(root: Path) -> Path:
    bids(root, ("01", "02", "03"))
    for sub in ("01", "02", "03"):
        label_at(root / f"derivatives/l/sub-{sub}/anat/sub-{sub}_dseg.nii.gz")
    text_at(root / "participants.tsv", "participant_id\tage\nsub-01\t30\nsub-02\t40\nsub-03\t50\n")
    return root


@pytest.mark.parametrize("name", CONFIGS)
def test_run_refuses(name: str, tmp_path: Path, medgen: Callable[..., tuple[int, str, str]]) -> None:
    content, words, said = CONFIGS[name]
    if isinstance(content, Mapping):
        whole: dict[str, Any] = {"name": "x", "seed": 0, "workers": 1, "device": "cpu", **content}
        if whole.get("data", {}).get("root") == "COHORT":
            whole["data"] = {**whole["data"], "root": str(labelled_bids(tmp_path / "in"))}
            whole["threads"] = 1
        content = yaml.safe_dump(whole)
    text_at(tmp_path / "x.yaml", content)
    refused(medgen("run", tmp_path / "x.yaml", "--out", tmp_path / "out", *words), said)
    assert not list(tmp_path.rglob(f"{PARTIAL}*"))
    left = {p.name for p in (tmp_path / "out").iterdir()} if (tmp_path / "out").exists() else set()
    assert left <= {"config.yaml", "stages.json", "prepared"}, left


def test_run_refuses_a_file_that_is_not_there(tmp_path: Path, medgen: Callable[..., tuple[int, str, str]]) -> None:
    refused(medgen("run", tmp_path / "x.yaml"), "give an experiment file")
    refused(medgen("run", tmp_path), "is a folder")


# --- generate: models and requests ------------------------------------------------------------------------------------

REQUESTS: dict[str, tuple[list[str], str]] = {
    "unknown covariate": (["--where", "agee=3"], r"known: age, sex, ventricles_ml\); did you mean 'age'"),
    "not a request": (["--where", "age"], "not of the form name=value"),
    "a word for a number": (["--where", "age=old"], "'old' is not one"),
    "an upside-down range": (["--where", "age=80..60"], "swap the two"),
    "a level that is not there": (["--where", "sex=X"], r"no level 'X' \(it has: F, M\)"),
    "a range the cohort never covers": (["--where", "age=100..110"], r"runs from .* add --force"),
    "asked twice": (["--where", "age=30,age=40"], "twice"),
    "shard 0": (["--shard", "0/2"], "i from 1 to N"),
    "shard of words": (["--shard", "one"], "needs i/N"),
    "unknown format": (["--format", "bidss"], "did you mean 'bids'"),
    "unknown sampler": (["--sampler", "eulr"], "did you mean 'euler'"),
    "unknown space": (["--space", "mni"], "native or grid"),
    "unknown match": (["--match", "fake"], "match has 'real'"),
    "balance and match": (["--match", "real", "--balance", "sex"], "exclude each other"),
    "balance of what is not there": (["--balance", "site"], "unknown covariate 'site'"),
    "balance without width": (["--balance", "age"], "needs the width"),
    "no GPU of that number": (["--device", "cuda:99"], "not available here"),
    "no table": (["--requests", "none.csv"], "does not exist"),
}


@pytest.mark.parametrize("name", REQUESTS)
def test_generate_refuses(
    name: str, tiny_run: Path, tmp_path: Path, medgen: Callable[..., tuple[int, str, str]]
) -> None:
    words, said = REQUESTS[name]
    refused(medgen("generate", tiny_run / "model", tmp_path / "out", "--n", 1, *words), said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty"),
        ("age,agee\n1,2\n", "unknown covariate 'agee'"),
        ("age\n", "no line of requests"),
        ("age\n40,F\n", "line 2 has 2 cells"),
        ("age\nold\n", "line 2.*'old'"),
        ("age\n500\n", "line 2.*--force"),
    ],
)
def test_generate_refuses_a_table(
    content: str, said: str, tiny_run: Path, tmp_path: Path, medgen: Callable[..., tuple[int, str, str]]
) -> None:
    table = text_at(tmp_path / "wanted.csv", content)
    refused(medgen("generate", tiny_run / "model", tmp_path / "out", "--requests", table), said)
    assert list(tmp_path.iterdir()) == [table]


def test_a_table_says_how_many(tiny_run: Path, tmp_path: Path, medgen: Callable[..., tuple[int, str, str]]) -> None:
    table = text_at(tmp_path / "wanted.csv", "sex,age\nF,\nM,\n")
    words = ("--requests", table, "--steps", 1, "--device", "cpu")
    assert medgen("generate", tiny_run / "model", tmp_path / "out", *words)[0] == 0
    rows = (tmp_path / "out" / "participants.tsv").read_text().splitlines()
    assert len(rows) == 3
    assert [row.split("\t")[rows[0].split("\t").index("sex")] for row in rows[1:]] == ["F", "M"]


def test_generate_does_not_touch_another_dataset(
    tiny_run: Path, tmp_path: Path, medgen: Callable[..., tuple[int, str, str]]
) -> None:
    bids(tmp_path / "real")
    shutil.copytree(tiny_run / "synthetic", tmp_path / "synthetic")
    before = contents(tmp_path)
    refused(medgen("generate", tiny_run / "model", tmp_path / "real", "--n", 1), "")
    for words, said in ((["--seed", 9], "another seed"), (["--steps", 2], "another sampler setting")):
        refused(medgen("generate", tiny_run / "model", tmp_path / "synthetic", "--n", 3, *words), said)
    assert contents(tmp_path) == before


def changed(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda model: (model / name).write_bytes(change((model / name).read_bytes())) and None


MODELS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "not a model": (lambda model: (model / "model.json").unlink(), "is not a model folder"),
    "no JSON": (changed("model.json", lambda raw: raw[:-9]), "not valid JSON"),
    "JSON of something else": (changed("model.json", lambda raw: b"[]"), "another format"),
    "keys missing": (
        changed("model.json", lambda raw: json.dumps({"format": json.loads(raw)["format"]}).encode()),
        "damaged",
    ),
    "joint missing": (changed("model.json", lambda raw: raw.replace(b'"joint"', b'"joints"')), "damaged"),
    "codec of another kind": (
        changed("model.json", lambda raw: raw.replace(b'"kind": "wavelet"', b'"kind": "wavlet"')),
        "did you mean 'wavelet'",
    ),
    "another codec's options": (
        changed("model.json", lambda raw: raw.replace(b'"latent_channels": 2', b'"latent_chanels": 2')),
        "damaged",
    ),
    "of the future": (
        changed("model.json", lambda raw: raw.replace(b'"format": 1', b'"format": 99')),
        "another format",
    ),
    "weights cut short": (changed("network.safetensors", lambda raw: raw[:-9]), "copy the model again"),
    "weights gone": (lambda model: (model / "codec.safetensors").unlink(), "copy the model again"),
    "card edited": (changed("README.md", lambda raw: raw + b"!"), "copy the model again"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_damaged_model_is_refused(
    name: str, tiny_run: Path, tmp_path: Path, medgen: Callable[..., tuple[int, str, str]]
) -> None:
    harm, said = MODELS[name]
    model = tmp_path / "model"
    shutil.copytree(tiny_run / "model", model)
    harm(model)
    refused(medgen("generate", model, tmp_path / "out", "--n", 1), said)
    if harm is not MODELS["not a model"][0]:
        refused(medgen("doctor", model, "--no-measure"), said)
    assert not (tmp_path / "out").exists()


# --- doctor -----------------------------------------------------------------------------------------------------------


def test_doctor_lists_every_bad_case(tmp_path: Path, medgen: Callable[..., tuple[int, str, str]]) -> None:
    root = bids(tmp_path, ("01", "02", "03", "04"))
    (root / "sub-01/anat/sub-01_T1w.nii.gz").write_bytes(b"no image")
    broken = np.full((1, *SHAPE), np.nan, np.float32)
    write_volume(root / "sub-02/anat/sub-02_T1w.nii.gz", Volume(broken, AFFINE))
    write_volume(root / "derivatives/l/sub-03/anat/sub-03_dseg.nii.gz", label((0, 1), affine=shifted(9.0)))
    result = medgen("doctor", root, "--no-measure", "--json")
    refused(result, r"sub-01_T1w.*and 2 more things are wrong")
    found = json.loads(result[1])
    assert {f["where"] for f in found["findings"] if f["level"] == "wrong"} == {"sub-01", "sub-02", "sub-03"}
    assert found["exit_code"] == 2 and found["figures"]["readable"] == 1
    table = medgen("doctor", root, "--no-measure")[1]
    assert all(f"sub-0{i}" in table for i in (1, 2, 3)) and "3 wrong" in table


@pytest.mark.parametrize("name", ["unknown key", "unknown sampler", "unknown codec", "stride", "no such root"])
def test_doctor_refuses_a_config(name: str, tmp_path: Path, medgen: Callable[..., tuple[int, str, str]]) -> None:
    content, _, said = CONFIGS[name]
    assert isinstance(content, Mapping)
    data = {"data": {"root": str(labelled_bids(tmp_path / "in"))}}
    path = text_at(tmp_path / "x.yaml", yaml.safe_dump({"name": "x", "device": "cpu", **data, **content}))
    before = contents(tmp_path)
    refused(medgen("doctor", path, "--no-measure"), said)
    assert contents(tmp_path) == before


def test_doctor_of_nothing(tmp_path: Path, medgen: Callable[..., tuple[int, str, str]]) -> None:
    refused(medgen("doctor", tmp_path / "nowhere"), "does not exist")
    refused(medgen("doctor", tmp_path, "--no-measure"), "is an empty folder")


def test_the_tiny_experiment_itself_is_not_refused() -> None:
    from medgen import config

    config.build(TINY, "the tiny experiment")
    assert len(PREPARE) + len(CONFIGS) + len(REQUESTS) + len(MODELS) >= 45
