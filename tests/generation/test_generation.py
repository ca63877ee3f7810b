import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

import medgen
from medgen.cohort.requests import plan
from medgen.errors import InputError
from medgen.files import alone, sha256_file
from medgen.generation.dataset import Shard, generate
from medgen.generation.generator import Generator
from medgen.generation.model import read_spec


@pytest.fixture(scope="module")
def generator(tiny_run):
    return Generator.load(tiny_run / "model", device="cpu")


def everything(generator, where=None):
    return plan(generator.schema, generator.model.joint, where=where)


def arrays(folder):
    return {p.name: np.asarray(nib.load(p).dataobj) for p in sorted(folder.rglob("*.nii.gz"))}


def same(a, b):
    assert a.keys() == b.keys() and a
    return all(np.array_equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.fixture(scope="module")
def whole(generator, tmp_path_factory):
    """Six samples in one go."""
    out = tmp_path_factory.mktemp("whole")
    generate(generator, out, 6, everything(generator), seed=5)
    return out


@pytest.mark.parametrize(("held", "refused"), [("1-of-1", True), ("1-of-3", False), ("2-of-3", True), ("1-of-2", True)])
def test_the_same_samples_are_written_by_one_process_at_a_time(generator, tmp_path, held, refused):
    shard = Shard(2, 3) if held != "1-of-1" else None
    with alone(tmp_path / f".out.shard-{held}.lock", "busy"):
        if refused:
            with pytest.raises(InputError, match="being written by another process"):
                generate(generator, tmp_path / "out", 3, everything(generator), seed=5, shard=shard)
            assert not (tmp_path / "out").exists()
        else:
            assert generate(generator, tmp_path / "out", 3, everything(generator), seed=5, shard=shard).made == 1
    generate(generator, tmp_path / "out", 3, everything(generator), seed=5)
    assert not list(tmp_path.glob(".out*"))


def test_a_sample_does_not_depend_on_how_many_are_made(generator, whole, tmp_path):
    generate(generator, tmp_path, 2, everything(generator), seed=5)
    few, many = arrays(tmp_path), arrays(whole)
    assert len(few) == 4 and same(few, {k: many[k] for k in few})


def test_shards_equal_the_whole(generator, whole, tmp_path):
    for i in (2, 1, 3):
        generate(generator, tmp_path, 6, everything(generator), seed=5, shard=Shard(i, 3))
    assert same(arrays(tmp_path), arrays(whole))
    for name in ("participants.tsv", "participants.json", "dataset_description.json"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


def test_another_process_makes_the_same_bits(tiny_run, whole, tmp_path):
    code = (
        "import sys, torch; torch.set_num_threads(int(sys.argv[3]))\n"
        "from pathlib import Path\nfrom medgen import Generator\n"
        "from medgen.cohort.requests import plan\nfrom medgen.generation.dataset import generate\n"
        "g = Generator.load(sys.argv[1], device='cpu')\n"
        "generate(g, Path(sys.argv[2]), 3, plan(g.schema, g.model.joint), seed=5)\n"
    )
    import torch

    command = [sys.executable, "-c", code, str(tiny_run / "model"), str(tmp_path), str(torch.get_num_threads())]
    subprocess.run(command, check=True, timeout=120)
    other, many = arrays(tmp_path), arrays(whole)
    assert same(other, {k: many[k] for k in other})


def test_a_kill_in_the_middle_leaves_nothing_half_made_and_the_rerun_completes(generator, whole, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    seen = 0

    def die(self, rows, keys):
        nonlocal seen
        seen += 1
        if seen == 4:
            raise Killed
        return draw(self, rows, keys)

    draw = Generator.draw
    monkeypatch.setattr(Generator, "draw", die)
    with pytest.raises(Killed):
        generate(generator, tmp_path, 6, everything(generator), seed=5)
    monkeypatch.setattr(Generator, "draw", draw)
    # What a kill in the middle of a sample leaves: an image without its sidecar, and a temporary file.
    orphan = tmp_path / "sub-syn000003" / "anat" / "sub-syn000003_T1w.nii.gz"
    orphan.parent.mkdir(parents=True)
    orphan.write_bytes(b"half")
    (orphan.parent / ".partial-99-x.nii.gz").write_bytes(b"half")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("sub-syn00000[012]*.nii.gz")}
    assert len(before) == 6
    outcome = generate(generator, tmp_path, 6, everything(generator), seed=5)
    assert (outcome.found, outcome.made, outcome.removed) == (3, 3, 1)
    assert before == {p: p.stat().st_mtime_ns for p in before}, "complete samples are not rewritten"
    assert same(arrays(tmp_path), arrays(whole))
    assert not list(tmp_path.rglob(".partial-*"))
    again = generate(generator, tmp_path, 6, everything(generator), seed=5)
    assert (again.found, again.made) == (6, 0)


def test_other_batch_sizes_agree_within_1e_minus_5(generator):
    rows = [everything(generator).row(i, 5) for i in range(3)]
    from medgen.sampling.noise import Key

    keys = [Key(5, i) for i in range(3)]
    one = generator._decode(generator._latents(generator.condition(rows[:1], keys[:1]), keys[:1]))
    three = generator._decode(generator._latents(generator.condition(rows, keys), keys))
    assert np.abs(one[0][0] - three[0][0]).max() <= 1e-5 * 2
    assert np.abs(one[1][0] - three[1][0]).max() <= 1e-5
    batched = Generator(generator.model, replace(generator.drawing, batch=3))
    assert [s.sample_id for s in batched.draw(rows, keys)] == ["syn000000", "syn000001", "syn000002"]


def test_seeds_and_indices_give_different_samples(generator):
    a, b, c = (generator.sample(seed=s, index=i).images["T1w"].data for s, i in [(0, 0), (0, 1), (1, 0)])
    assert a.shape != b.shape or not np.array_equal(a, b)
    assert a.shape != c.shape or not np.array_equal(a, c)


def test_what_was_asked_is_in_the_sample_and_the_sidecar(generator, tmp_path):
    low, high = generator.schema["ventricles_ml"].minimum, generator.schema["ventricles_ml"].maximum
    target = round((low + high) / 2, 3)
    sample = generator.sample(age=(60, 70), sex="F", volumes_ml={"ventricles": target}, seed=2)
    assert 60 <= sample.covariates["age"] <= 70 and sample.covariates["sex"] == "F"
    assert sample.covariates["requested_ventricles_ml"] == target
    assert set(sample.sidecar["request"]) == {"age", "sex", "ventricles_ml"} and sample.sidecar["drawn"] == {}
    assert sample.sidecar["model_sha256"] == sha256_file_of(generator)
    assert np.array_equal(sample.images["T1w"].affine, sample.label.affine)
    assert set(np.unique(sample.label.data)) <= {0, 1, 2, 3, 4}
    assert np.issubdtype(sample.images["T1w"].data.dtype, np.integer), "the cohort's integers come back"
    assert medgen.export([sample], tmp_path / "out", generator) == 1
    assert medgen.export([sample], tmp_path / "out", generator) == 0
    rows = medgen.datalist(tmp_path / "out")
    assert rows[0]["sex"] == "F" and Path(rows[0]["label"]).exists() and Path(rows[0]["image"]).exists()


def sha256_file_of(generator):
    return generator.model.sha256


@pytest.mark.parametrize("format", ["bids", "nnunet", "decathlon"])
def test_every_format_holds_the_same_samples(generator, whole, tmp_path, format):
    generate(generator, tmp_path / format, 2, everything(generator), seed=5, format=format)
    cohort = medgen.read_cohort(tmp_path / format)
    assert len(cohort.cases) == 2
    image = nib.load(next(iter(cohort.cases[0].images.values())).path)
    truth = nib.load(whole / "sub-syn000000" / "anat" / "sub-syn000000_T1w.nii.gz")
    assert np.array_equal(np.asarray(image.dataobj).squeeze(), np.asarray(truth.dataobj))
    assert np.array_equal(image.affine, truth.affine)


def test_faults_are_one_sentence(generator, tiny_run, tmp_path, whole):
    with pytest.raises(InputError, match="another seed"):
        generate(generator, whole, 7, everything(generator), seed=6)
    with pytest.raises(InputError, match="another request"):
        generate(generator, whole, 7, everything(generator, "sex=F"), seed=5)
    with pytest.raises(InputError, match=r"known: age, sex, ventricles_ml"):
        generator.sample(hight=3)
    with pytest.raises(InputError, match="force"):
        generator.sample(age=(150, 160))
    assert 150 <= generator.sample(age=(150, 160), force=True).covariates["age"] <= 160
    for text in ("0/2", "3/2", "x", "1/0"):
        with pytest.raises(InputError, match="--shard"):
            Shard.parse(text)
    broken = tmp_path / "model"
    broken.mkdir()
    for file in (tiny_run / "model").iterdir():
        (broken / file.name).write_bytes(file.read_bytes())
    (broken / "network.safetensors").write_bytes(b"x")
    with pytest.raises(InputError, match=r"network\.safetensors is missing or not the file"):
        Generator.load(broken, device="cpu")
    with pytest.raises(InputError, match="not a model folder"):
        read_spec(tmp_path)


@pytest.mark.parametrize("format", ["bids", "nnunet", "decathlon"])
def test_a_cohort_is_never_taken_for_leftovers(generator, tmp_path, format):
    """A raw folder without its description, given as OUT by mistake, loses nothing."""
    scans = [tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz", tmp_path / "imagesTr" / "patient7_0000.nii.gz"]
    for scan in scans:
        scan.parent.mkdir(parents=True)
        scan.write_bytes(b"a patient")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="medgen did not write"):
        generate(generator, tmp_path, 2, everything(generator), seed=5, format=format)
    assert sorted(tmp_path.rglob("*")) == before and all(s.read_bytes() == b"a patient" for s in scans)


def test_export_refuses_two_samples_of_one_index(generator, tmp_path):
    samples = [generator.sample(age=age) for age in (50, 60)]
    with pytest.raises(InputError, match="own index"):
        medgen.export(samples, tmp_path / "out", generator)


def test_a_shard_without_work_is_no_error(tiny_run, tmp_path):
    from medgen.cli import app

    command = ["generate", str(tiny_run / "model"), str(tmp_path / "out"), "--n", "2", "--shard", "3/3"]
    result = CliRunner().invoke(app, [*command, "--device", "cpu"])
    assert result.exit_code == 0, result.output


def test_the_model_folder_names_no_case(tiny_run):
    text = (tiny_run / "model" / "model.json").read_text() + (tiny_run / "model" / "README.md").read_text()
    assert "sub-" not in text and str(tiny_run) not in text
    assert sorted(p.name for p in (tiny_run / "model").iterdir()) == [
        "README.md",
        "codec.safetensors",
        "model.json",
        "network.safetensors",
    ]
    assert (
        sha256_file(tiny_run / "model" / "codec.safetensors")
        == json.loads((tiny_run / "model" / "model.json").read_text())["sha256"]["codec.safetensors"]
    )


def test_generate_command(tiny_run, tmp_path):
    from medgen.cli import app

    command = ["generate", str(tiny_run / "model"), str(tmp_path / "out"), "--n", "2", "--where", "age=30..80,sex=F"]
    result = CliRunner().invoke(app, [*command, "--device", "cpu", "--steps", "2"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "contact_sheet.png").stat().st_size > 1000
    table = (tmp_path / "out" / "participants.tsv").read_text().splitlines()
    assert len(table) == 3 and all("F" in row for row in table[1:])
