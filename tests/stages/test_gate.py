import copy
import shutil
import sys

import pytest
import yaml

from medgen import cli, config, pipeline
from medgen.errors import BoundError, InputError
from medgen.files import read_json
from medgen.generation.model import read_spec
from tests.tiny import TINY


def accepting(**accept):
    raw = copy.deepcopy(TINY)
    raw["autoencoder"]["accept"] = accept
    return config.build(raw, "test")


def run(folder, cfg, **options):
    said = []
    report = pipeline.run_experiment(cfg, folder=folder, on_progress=lambda *a: said.append(a), **options)
    return report, {stage for stage, _, _, remark in said if remark != "unchanged"}


@pytest.fixture
def finished(tiny_run, tmp_path):
    return shutil.copytree(tiny_run, tmp_path / "tiny")


IMPOSSIBLE = {"min_psnr_db": 90, "min_dice": {"Ventricles": 1.0}}


def test_the_figures_lie_beside_the_codec(tiny_run):
    figures = read_json(tiny_run / "autoencoder" / "quality.json")
    report = read_json(tiny_run / "report" / "report.json")["codec"]
    assert {k: report[k] for k in figures if k != "each"} == {k: v for k, v in figures.items() if k != "each"}
    assert report["below"] == []
    assert set(figures["structures"]["GM"][0]) == {"from_ml", "below_ml", "count", "dice", "recall"}
    assert figures["each"][0]["psnr_db"] == min(e["psnr_db"] for e in figures["each"])
    assert figures["each"][0]["case"].startswith("c0"), "a running name, not the patient's"
    assert (tiny_run / "autoencoder" / "worst.png").exists()
    assert "worst.png" in (tiny_run / "autoencoder" / "quality.md").read_text()
    assert "sharpness" in (tiny_run / "report" / "report.md").read_text()
    assert "The codec keeps PSNR" in (tiny_run / "model" / "README.md").read_text()


def test_thresholds_that_are_met_change_nothing(finished):
    _, did = run(finished, accepting(min_psnr_db=0.1, min_ssim=-1, max_l1=2, min_dice=0.0))
    assert did == set()


def test_a_codec_below_its_thresholds_stops_the_run_and_force_goes_on(finished):
    weights = (finished / "diffusion" / "checkpoint.safetensors").read_bytes()
    with pytest.raises(BoundError) as caught:
        run(finished, accepting(**IMPOSSIBLE))
    said = str(caught.value)
    assert "PSNR" in said and "below 90" in said and "Dice, Ventricles" in said and "2 held-out cases" in said
    assert "quality.md" in said and "--force" in said and "\n" not in said
    report, did = run(finished, accepting(**IMPOSSIBLE), force=True)
    assert not did & {"cohort", "prepared", "autoencoder", "latents", "diffusion"}, "nothing is trained again"
    assert (finished / "diffusion" / "checkpoint.safetensors").read_bytes() == weights
    assert len(report["codec"]["below"]) == 2 and not report["failures"]
    assert "below its thresholds" in (finished / "report" / "report.md").read_text()
    assert "below its thresholds:** PSNR" in (finished / "model" / "README.md").read_text()
    assert read_spec(finished / "model")[0].trained_on["codec_below"] == report["codec"]["below"]
    with pytest.raises(BoundError):
        run(finished, accepting(**IMPOSSIBLE))


def test_nothing_is_trained_on_the_latents_of_a_refused_codec(finished):
    for name in ("latents", "diffusion", "model", "synthetic", "report"):
        shutil.rmtree(finished / name)
    with pytest.raises(BoundError):
        run(finished, accepting(**IMPOSSIBLE))
    assert not (finished / "latents").exists()
    _, did = run(finished, accepting(**IMPOSSIBLE), until="autoencoder")
    assert did == set(), "until autoencoder asks nothing of it"


def test_other_classes_of_size_are_measured_without_training(finished):
    _, did = run(finished, accepting(sizes_ml=[0.6]))
    assert did == {"quality", "report"} or did == {"quality"}
    assert read_json(finished / "report" / "report.json")["codec"]["sizes_ml"] == [0.6]


@pytest.mark.parametrize("words", [{"Ventricle": 0.5}, {"spleen": 0.5}])
def test_a_bound_on_an_unknown_label_is_refused_before_training(tmp_path, finished, words):
    shutil.rmtree(finished / "autoencoder")
    with pytest.raises(InputError, match=r"min_dice: the cohort has no label .*Ventricles"):
        run(finished, accepting(min_dice=words))
    assert not (finished / "autoencoder" / "checkpoint.safetensors").exists()


def test_the_command_line_says_it_with_exit_code_3(finished, tmp_path, monkeypatch, capsys):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    sets = ["--set", "autoencoder.accept.min_psnr_db=90", "--out", str(finished)]

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["medgen", *words, str(path), *sets])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code, capsys.readouterr()

    code, said = call("run")
    assert code == 3 and said.err.splitlines()[-1].startswith("medgen: the codec is below its thresholds")
    assert call("train", "autoencoder")[0] == 3
    code, said = call("run", "--force")
    assert code == 0 and "CODEC BELOW ITS THRESHOLDS" in said.out


def test_a_run_of_which_no_sample_is_left_says_so(finished):
    raw = copy.deepcopy(TINY)
    raw["generate"]["gates"] = {"kinds": {"volumes": {"level": 0.4}}, "attempts": 1, "most": 1.0}
    with pytest.raises(BoundError, match=r"rejected 3 of 3 draws, most of them by '\w+'.*, or set the gate otherwise"):
        run(finished, config.build(raw, "test"))
