from pathlib import Path

import pytest

from medgen import config, registry
from medgen.errors import InputError
from medgen.stages.check import check
from medgen.stages.run import Run

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_config_is_valid_to_the_last_option(path):
    loaded = config.load(path, ("data.root=.",) if "phantom:" not in path.read_text() else ())
    check(Run(loaded, Path("nowhere"), lambda *_: None))
    assert path.stem == loaded.name


def test_overrides_reach_every_depth(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: a\n")
    loaded = config.load(path, ("generate.n=7", "autoencoder.training.steps=3", "prepare.spacing_mm=[1,2,3]"))
    assert (loaded.generate.n, loaded.autoencoder.training.steps, loaded.prepare.spacing_mm) == (7, 3, (1, 2, 3))


@pytest.mark.parametrize(
    ("text", "sets", "word"),
    [
        ("nam: a", (), "unknown key 'nam'; did you mean 'name'"),
        ("name: a\ndiffusion: {trainin: {}}", (), "did you mean 'training'"),
        ("name: a\nautoencoder: {training: {stepz: 3}}", (), "did you mean 'steps'"),
        ("name: a\ngenerate: {n: many}", (), "key 'generate.n'"),
        ("name: a\ngenerate: {n: 0}", (), "greater than 0"),
        ("name: ../a", (), "key 'name'"),
        ("name: a\ndata: {root: x, phantom: {}}", (), "not both"),
        ("- 1", (), "not an experiment file"),
        ("a: [", (), "not valid YAML"),
        ("name: a", ("generate.n",), "--set needs KEY=VALUE"),
        ("name: a", ("name.x=1",), "is a value, not a section"),
        ("name: a", ("device=gpu",), "device is auto, cpu"),
        ("name: a\nseed: 1\nseed: 2", (), "'seed' twice"),
        ("name: a\nseed: -1", (), "greater than or equal to 0"),
    ],
)
def test_faults_are_one_sentence(tmp_path, text, sets, word):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=word) as caught:
        config.load(path, sets)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        config.load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="is a folder"):
        config.load(tmp_path)


def test_registry_knows_the_rooms():
    assert {"euler", "heun", "dpmpp", "ancestral", "plms"} <= set(registry.kinds("sampling", "sample"))
    assert {"cfg", "composition", "threshold"} <= set(registry.kinds("steering", "wrap"))
    assert {"flow", "vp", "edm"} <= set(registry.kinds("diffusion", "build"))
