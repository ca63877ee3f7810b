import copy
import json
import shutil

import pytest
from typer.testing import CliRunner

from medgen import config, pipeline
from medgen.cli import app
from medgen.errors import InputError
from medgen.files import alone, read_json
from medgen.stages import stage
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
    real = stage._bring_back

    def killed(*args):
        real(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "_bring_back", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, changed(), until="autoencoder")
    monkeypatch.setattr(stage, "_bring_back", real)
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


def test_mended_files_of_a_table_train_again(tmp_path):
    import nibabel as nib
    import numpy as np

    from medgen.cohort.phantom import write_phantom

    write_phantom(tmp_path / "data", n=4, spacing_mm=8, seed=1, workers=1)
    images = sorted((tmp_path / "data").glob("sub-*/anat/*.nii.gz"))
    labels = sorted((tmp_path / "data" / "derivatives").rglob("*_dseg.nii.gz"))
    table = tmp_path / "lists" / "cohort.csv"
    table.parent.mkdir()
    rows = [f"c{k},{i},{j}" for k, (i, j) in enumerate(zip(images, labels, strict=True))]
    table.write_text("\n".join(["case,image,label", *rows]) + "\n")
    cfg = changed(
        data={"phantom": None, "root": str(table), "options": {"root": str(tmp_path)}}, covariates={"use": []}
    )
    assert "prepared" in run(tmp_path / "run", cfg, until="prepared")[1]
    assert not run(tmp_path / "run", cfg, until="prepared")[1]
    image = nib.load(labels[0])
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine), labels[0])
    assert "prepared" in run(tmp_path / "run", cfg, until="prepared")[1], "the table itself has not changed"


def test_a_codec_that_is_lost_takes_with_it_what_was_made_by_it(tmp_path):
    """Its training may end by the clock: another codec of the same config has other latents."""
    run(tmp_path, changed(), until="latents")
    shutil.rmtree(tmp_path / "autoencoder")
    _, did = run(tmp_path, changed(), until="latents")
    assert {"autoencoder", "latents"} <= did
    assert not run(tmp_path, changed(), until="latents")[1]


def test_what_was_made_again_stays_another_where_its_config_goes_and_comes_back(tmp_path):
    """Else a network would be taken for one of the latents of a codec that is gone."""
    run(tmp_path, changed(), until="diffusion")
    (tmp_path / "autoencoder" / "checkpoint.safetensors").unlink()
    run(tmp_path, changed(), until="diffusion")
    remade = read_json(tmp_path / "stages.json")
    run(tmp_path, changed(autoencoder={"losses": {"kl": 1e-3}}), until="autoencoder")
    run(tmp_path, changed(), until="diffusion")
    back = read_json(tmp_path / "stages.json")
    for name in ("autoencoder", "latents", "diffusion"):
        assert back[name]["result"] == remade[name]["result"], name


@pytest.mark.parametrize(
    ("lost", "again"),
    [
        ("autoencoder/checkpoint.safetensors", {"autoencoder", "quality", "latents", "diffusion", "model"}),
        ("latents/logvar.npy", {"latents", "diffusion", "model"}),
        ("latents/reached.npy", {"latents", "diffusion", "model"}),
        ("diffusion/weights.safetensors", {"diffusion", "model"}),
        ("model/network.safetensors", {"model"}),
        ("prepared/cases/c0000_image.npy", {"prepared"}),
    ],
)
def test_a_file_that_is_lost_is_noticed_and_made_again(tmp_path, tiny_run, lost, again):
    """A finished stage is taken at its word only where it still holds what later stages read."""
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / lost).unlink()
    _, did = run(tmp_path / "run", changed(), until="model")
    assert did == again
    assert (tmp_path / "run" / lost).is_file()
    assert not run(tmp_path / "run", changed(), until="model")[1]


def test_what_is_made_from_something_else_by_now_is_not_used(tmp_path):
    """A split that has moved would let a segmenter validate on cases that the model has seen."""
    from medgen.stages.folds import combine_run

    def combine(out):
        return combine_run(tmp_path / "run", tmp_path / out, format="bids", on_progress=lambda *_: None)

    run(tmp_path / "run", changed())
    assert combine("first").synthetic == 3
    run(tmp_path / "run", changed(data={"validation": 0.4}), until="prepared")
    with pytest.raises(InputError, match="model is not finished, or was made from what has changed since"):
        combine("second")
    run(tmp_path / "run", changed(), until="prepared")
    with pytest.raises(InputError, match="run the experiment again"):
        combine("second")
    _, did = run(tmp_path / "run", changed())
    assert not did and combine("second").synthetic == 3, "nothing had changed after all"


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        (
            {
                "generate": {
                    "where": "age=50",
                    "steering": [{"kind": "composition", "conditions": [{"where": {"age": 60}}]}],
                }
            },
            "'age' is asked for by the request and by generate.steering",
        ),
        (
            {"generate": {"steering": [{"kind": "per_covariate", "weights": {"ventricles_ml": 2}}]}, "pairs": "mask"},
            "'ventricles_ml' is asked of the mask alone",
        ),
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
        raw[section] = {**raw.get(section, {}), **values} if isinstance(values, dict) else values
    with pytest.raises(InputError, match=word):
        run(tmp_path, config.build(raw, "test"))
    assert not (tmp_path / "autoencoder" / "checkpoint.safetensors").exists()


def test_evaluate_prints_the_figures(tiny_run, tmp_path):
    import yaml

    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    result = CliRunner().invoke(app, ["evaluate", str(path), "--out", str(tiny_run)])
    assert result.exit_code == 0 and "asked against measured" in result.output
