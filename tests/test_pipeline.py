import copy
import json

import pytest
from typer.testing import CliRunner

from medgen import config, pipeline
from medgen.cli import app
from medgen.errors import InputError
from medgen.files import alone, read_json
from tests.tiny import TINY, run


def changed(**sections):
    raw = copy.deepcopy(TINY)
    for section, values in sections.items():
        raw[section] = {**raw[section], **values}
    return config.build(raw, "test")


def test_a_run_folder_is_one_process_s(tmp_path):
    with alone(tmp_path / ".lock", "busy"), pytest.raises(InputError, match="in use by another process"):
        pipeline.run_experiment(config.build(TINY, "test"), folder=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == []


def test_the_run_folder_is_the_contract(tiny_run):
    expected = {
        "config.yaml",
        "cohort",
        "prepared",
        "autoencoder",
        "latents",
        "diffusion",
        "model",
        "synthetic",
        "report",
    }
    assert expected <= {p.name for p in tiny_run.iterdir()}
    report = read_json(tiny_run / "report" / "report.json")
    assert report["samples"]["count"] == 3 and report["codec"]["held_out"]
    assert set(report["codec"]["dice"]) == {"CSF", "GM", "WM", "Ventricles"}
    assert (tiny_run / "synthetic" / "contact_sheet.png").exists()
    assert list((tiny_run / "autoencoder" / "panels").glob("*.png"))
    assert list((tiny_run / "diffusion" / "tensorboard").iterdir())
    log = [json.loads(x) for x in (tiny_run / "diffusion" / "log.jsonl").read_text().splitlines()]
    assert {"loss", "val_loss"} <= {k for line in log for k in line}


def test_unchanged_stages_are_skipped_and_changed_ones_come_back(tmp_path):
    report, did = run(tmp_path, changed())
    assert did >= {"cohort", "prepared", "autoencoder", "latents", "diffusion", "model", "synthetic"}
    again, did = run(tmp_path, changed())
    assert not did and again == report
    weights = tmp_path / "diffusion" / "checkpoint.safetensors"
    before = weights.read_bytes()
    _, did = run(tmp_path, changed(diffusion={"drop_all": 0.2}))
    assert did == {"diffusion", "model", "synthetic"}
    assert weights.read_bytes() != before
    assert len(list((tmp_path / "stale").iterdir())) >= 3, "the old training is set aside, not lost"
    _, did = run(tmp_path, changed())
    assert weights.read_bytes() == before, "and comes back with its config"
    assert "diffusion" not in {s for s in did if s != "diffusion"}
    _, did = run(tmp_path, changed(generate={"batch": 2}))
    assert not did, "the batch size changes no result"


def test_until_stops_and_unknown_stages_are_named(tmp_path):
    report, _ = run(tmp_path, changed(), until="prepared")
    assert report == {} and not (tmp_path / "autoencoder").exists()
    with pytest.raises(InputError, match="stages: cohort, prepared"):
        run(tmp_path, changed(), until="everything")


def test_bounds_that_are_missed_end_with_exit_code_3(tiny_run, tmp_path):
    import yaml

    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    strict = ["--set", "report.volume=ventricles_ml", "--set", "report.min_volume_r=1.1"]
    result = CliRunner().invoke(app, ["run", str(path), "--out", str(tiny_run), *strict])
    assert result.exit_code == 3, result.output
    assert "FAILED: ventricles_ml" in result.output and "synthetic dataset" in result.output


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"generate": {"sampler": "hein"}}, "did you mean 'heun'"),
        ({"generate": {"sampler_options": {"eta": 1.0}}}, "has no option 'eta'"),
        ({"autoencoder": {"kind": "kll"}}, "did you mean 'kl'"),
        ({"autoencoder": {"options": {"channel": [8]}}}, "did you mean 'channels'"),
        ({"diffusion": {"process": "flaw"}}, "did you mean 'flow'"),
        ({"prepare": {"stride": 6}}, "must be a multiple of 8"),
        ({"prepare": {"shape": [30, 32, 32]}}, "must be multiples of 8"),
    ],
)
def test_a_config_is_refused_before_the_first_stage(tmp_path, sections, word):
    raw = copy.deepcopy(TINY)
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    with pytest.raises(InputError, match=word):
        run(tmp_path / "out", config.build(raw, "test"))
    assert not (tmp_path / "out").exists()


def test_more_samples_are_added_and_fewer_set_the_rest_aside(tmp_path):
    run(tmp_path, changed())
    first = tmp_path / "synthetic" / "sub-syn000000" / "anat" / "sub-syn000000_T1w.nii.gz"
    before = first.stat().st_mtime_ns
    report, did = run(tmp_path, changed(generate={"n": 5}))
    assert did == {"synthetic"} and report["samples"]["count"] == 5
    assert first.stat().st_mtime_ns == before, "what was there is not drawn again"
    report, _ = run(tmp_path, changed(generate={"n": 2}))
    assert report["samples"]["count"] == 2


def test_a_kill_while_stages_change_places_never_shows_another_configs_result(tmp_path, monkeypatch):
    run(tmp_path, changed(), until="autoencoder")
    other = changed(autoencoder={"losses": {"kl": 1e-3}})
    run(tmp_path, other, until="autoencoder")
    weights = tmp_path / "autoencoder" / "checkpoint.safetensors"
    theirs = weights.read_bytes()
    real = pipeline._bring_back

    def killed(*args):
        real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "_bring_back", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, changed(), until="autoencoder")
    monkeypatch.setattr(pipeline, "_bring_back", real)
    assert weights.read_bytes() != theirs
    run(tmp_path, other, until="autoencoder")
    assert weights.read_bytes() == theirs


def test_mended_labels_train_again(tmp_path):
    """The figures of a mirrored label map equal the original's: only the content tells them apart."""
    import nibabel as nib
    import numpy as np

    from medgen.cohort.phantom import write_phantom

    write_phantom(tmp_path / "data", n=4, spacing_mm=8, seed=1, workers=1)
    cfg = changed(data={"phantom": None, "root": str(tmp_path / "data")})
    _, did = run(tmp_path / "run", cfg, until="autoencoder")
    assert "autoencoder" in did
    for path in (tmp_path / "data" / "derivatives").rglob("*_dseg.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), path)
    _, did = run(tmp_path / "run", cfg, until="autoencoder")
    assert "autoencoder" in did


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"generate": {"where": "hight=3"}}, "known: age, sex, ventricles_ml"),
        ({"generate": {"where": "age=300..400"}}, "force"),
        ({"generate": {"requests": "none.csv"}}, "none.csv"),
        ({"report": {"volume": "lesion_ml"}}, "report.volume 'lesion_ml'"),
        ({"autoencoder": {"patch": [10, 10, 10]}}, "multiples of 4"),
        ({"autoencoder": {"options": {"latent_channels": 0}}}, "autoencoder.options"),
        ({"diffusion": {"network_options": {"heads": 5}}}, "diffusion.network_options"),
    ],
)
def test_what_later_stages_cannot_do_is_refused_before_training(tmp_path, sections, word):
    raw = copy.deepcopy(TINY)
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values}
    with pytest.raises(InputError, match=word):
        run(tmp_path, config.build(raw, "test"))
    assert not (tmp_path / "autoencoder" / "checkpoint.safetensors").exists()


def test_evaluate_prints_the_figures(tiny_run, tmp_path):
    import yaml

    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    result = CliRunner().invoke(app, ["evaluate", str(path), "--out", str(tiny_run)])
    assert result.exit_code == 0 and "asked against measured" in result.output
