import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from medgen import config, pipeline
from medgen.cohort.requests import plan
from medgen.errors import InputError
from medgen.files import read_json, sha256_file
from medgen.generation.dataset import Shard, generate
from medgen.generation.generator import Drawing, Generator
from medgen.generation.model import load_model
from medgen.sampling.noise import Key
from medgen.steering import chain
from medgen.steering.gradient import guide
from tests.tiny import TINY, model_like

ALL = (
    {"kind": "per_covariate", "weights": {"ventricles_ml": 2.0}},
    {"kind": "composition", "conditions": [{"where": {"age": 60}}, {"where": {"age": 30}, "weight": -0.3}]},
    {"kind": "threshold", "limit": 3.0, "quantile": 0.99},
    {"kind": "volume_gradient", "repeats": 1, "through": True},
)


@pytest.fixture(scope="module")
def generator(tiny_run):
    return Generator.load(tiny_run / "model", device="cpu")


@pytest.fixture(scope="module")
def steered(generator):
    return Generator(generator.model, replace(generator.drawing, steering=ALL), generator.context)


def request(generator, where=None):
    return plan(generator.schema, generator.model.joint, where=where)


def pixels(sample):
    return next(iter(sample.images.values())).data


def with_other_weights(tiny_run, folder):
    """A copy of the model with other weights of the network."""

    def change(raw):
        path = folder / "network.safetensors"
        save_file({n: t + 0.02 if t.is_floating_point() else t for n, t in load_file(path).items()}, path)
        raw["sha256"][path.name] = sha256_file(path)

    return model_like(tiny_run, folder, change)


def test_samples_depend_on_nothing_but_their_key(steered, tmp_path):
    """All wrappers at once: any n, any shard, the same bits."""
    for i in (2, 1):
        generate(steered, tmp_path / "shards", 3, request(steered), seed=5, shard=Shard(i, 2))
    generate(steered, tmp_path / "one", 1, request(steered), seed=5)
    for name in sorted(p.name for p in (tmp_path / "one").rglob("*.nii.gz")):
        a, b = (next((tmp_path / folder).rglob(name)).read_bytes() for folder in ("one", "shards"))
        assert a == b
    sidecar = read_json(next((tmp_path / "one").rglob("*syn000000*T1w.json")))
    assert sidecar["drawing"]["steering"] == [json.loads(json.dumps(step)) for step in ALL]
    with pytest.raises(InputError, match="another sampler setting"):
        plain = Generator(steered.model, replace(steered.drawing, steering=()))
        generate(plain, tmp_path / "one", 2, request(steered), seed=5)


def test_what_steering_decides_is_not_said_to_be_drawn(steered):
    sample = steered.draw([request(steered, "sex=F").row(0, 0)], [Key(0, 0)])[0]
    assert sample.covariates["age"] is None and sample.sidecar["drawn"]["age"] is None
    # What was drawn without regard to that age would contradict it.
    assert sample.covariates["sex"] == "F" and sample.covariates["requested_ventricles_ml"] is None
    with pytest.raises(InputError, match="'age' is asked for by the request and by the steering"):
        steered.sample(age=50)


def test_steering_of_one_sample_and_from_python(generator):
    plain = generator.sample(sex="F", seed=3)
    bound = {"kind": "threshold", "limit": 1.0}
    tight = generator.sample(sex="F", seed=3, steering=[bound])
    assert not np.array_equal(pixels(plain), pixels(tight)) and tight.sidecar["drawing"]["steering"] == [bound]

    def towards_zero(model):
        return guide(model, lambda x0, cond: x0.square().flatten(1).sum(1), scale=0.4, through=False)

    pulled = generator.sample(sex="F", seed=3, steering=[towards_zero])
    assert "towards_zero" in pulled.sidecar["drawing"]["steering"][0]["function"]
    assert not np.array_equal(pixels(plain), pixels(pulled))
    own = generator.sample(sex="F", seed=3, steering=[{"kind": "cfg", "scale": generator.drawing.guidance}])
    assert own.sidecar["drawing"]["guidance"] == 1.0 and np.array_equal(pixels(plain), pixels(own))


def test_autoguidance_by_a_second_folder(generator, tiny_run, tmp_path):
    plain = generator.sample(seed=3)

    def guided(folder):
        return generator.sample(seed=3, steering=[{"kind": "autoguidance", "weak": str(folder), "scale": 2.0}])

    same = guided(tiny_run / "model")
    assert np.abs(pixels(same).astype(float) - pixels(plain)).max() <= 1e-4 * np.ptp(pixels(plain).astype(float)) + 1
    weak = with_other_weights(tiny_run, tmp_path / "weak")
    other = guided(weak)
    assert not np.array_equal(pixels(other), pixels(plain))
    assert other.sidecar["drawing"]["steering"][0]["weak"] == sha256_file(weak / "model.json")


def test_a_second_model_is_asked_in_its_own_units(generator, tiny_run, tmp_path):
    def change(raw):
        raw["encoder"]["centre"] = [c + 3.0 for c in raw["encoder"]["centre"]]
        raw["encoder"]["scale"] = [s * 2.0 for s in raw["encoder"]["scale"]]

    folder = model_like(tiny_run, tmp_path / "other", change)
    other = load_model(folder, generator.model.device)
    row = {"age": 61.0, "sex": "M", "ventricles_ml": 20.0}
    model = generator.context.other(folder)
    x, sigma = torch.randn(1, *generator.model.spec.latent_shape), torch.ones(1)
    own = other.process.as_model(other.network)
    numeric = [k for k, c in enumerate(other.encoder.schema.covariates) if c.is_numeric]
    assert numeric == [0, 2], "the levels' centre and scale were changed too: they are masked here"
    a = model(x, sigma, generator.model.encoder.encode([row]).drop("sex")).x0
    b = own(x, sigma, other.encoder.encode([row]).drop("sex")).x0
    assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda raw: raw["statistics"].update(mean=[v + 1 for v in raw["statistics"]["mean"]]), "standardises"),
        (lambda raw: raw.update(latent_shape=[2, 4, 4, 4]), "draws latents of"),
        (lambda raw: raw["encoder"]["schema"][0].update(name="height"), "is conditioned on height"),
    ],
)
def test_a_second_model_that_does_not_fit_is_refused(generator, tiny_run, tmp_path, change, word):
    folder = model_like(tiny_run, tmp_path / "other", change)
    with pytest.raises(InputError, match=word):
        generator.sample(steering=[{"kind": "autoguidance", "weak": folder, "scale": 2.0}])


def test_a_model_keeps_its_steering_and_finds_the_second_model_beside_it(generator, tiny_run, tmp_path):
    with_other_weights(tiny_run, tmp_path / "weak")
    steps = [{"kind": "autoguidance", "weak": "../weak", "scale": 2.0}, {"kind": "threshold", "limit": 3.0}]
    model = model_like(tiny_run, tmp_path / "model", lambda raw: raw["sampling"].update(steering=steps))
    loaded = Generator.load(model, device="cpu")
    assert loaded.drawing.steering[0]["weak"] == str(model / "../weak") and loaded.drawing.steering[1] == steps[1]
    asked = [{**steps[0], "weak": str(tmp_path / "weak")}, steps[1]]
    assert np.array_equal(pixels(loaded.sample(seed=3)), pixels(generator.sample(seed=3, steering=asked)))


def test_the_command_line_takes_steering(tiny_run, tmp_path):
    from medgen.cli import app

    def run(*words, out="out"):
        command = ["generate", str(tiny_run / "model"), str(tmp_path / out), "--n", "1", "--device", "cpu", *words]
        return CliRunner().invoke(app, command)

    done = run("--steering", "{kind: cfg, scale: 2.0, interval: [0.1, 9]}", "--steering", "threshold")
    assert done.exit_code == 0, done.output
    drawing = read_json(next((tmp_path / "out").rglob("*syn000000*T1w.json")))["drawing"]
    assert drawing["steering"] == [{"kind": "cfg", "scale": 2.0, "interval": [0.1, 9]}, {"kind": "threshold"}]
    assert drawing["guidance"] == 1.0
    for words, said in (
        (["--steering", "[1"], "--steering is a kind or a mapping"),
        (["--steering", "treshold"], "did you mean 'threshold'"),
        (["--steering", "cfg", "--guidance", "2"], "would multiply"),
    ):
        assert said in str(run(*words, out="x").exception)


def test_the_config_is_checked_before_anything_runs(tmp_path):
    def run(steering, guidance=1.0):
        raw = {**TINY, "generate": {**TINY["generate"], "guidance": guidance, "steering": steering}}
        pipeline.run_experiment(config.build(raw, "tiny"), folder=tmp_path / "run", until="prepared")

    with pytest.raises(InputError, match="did you mean 'limit'"):
        run([{"kind": "threshold", "limitt": 2}])
    with pytest.raises(InputError, match="would multiply"):
        run([{"kind": "cfg", "scale": 2.0}], guidance=2.0)
    without_null = {**TINY, "diffusion": {**TINY["diffusion"], "drop_all": 0.0, "drop_each": 0.0}}
    with pytest.raises(InputError, match=r"guidance .* needs a model that was also trained without covariates"):
        pipeline.run_experiment(config.build(without_null, "tiny"), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_model_without_a_null_is_not_guided(tiny_run, tmp_path):
    def change(raw):
        assert raw["trained_on"]["dropped"] == {"all": 0.1, "each": 0.1}
        raw["trained_on"]["dropped"] = {"all": 0.0, "each": 0.0}

    model_like(tiny_run, tmp_path / "model", change)
    drawing = Drawing("euler", {}, 2, 1.0)
    Generator.load(tmp_path / "model", device="cpu", drawing=drawing)
    steering = ({"kind": "per_covariate", "weights": {"age": 2.0}},)
    for guided in (replace(drawing, guidance=2.0), replace(drawing, steering=steering)):
        with pytest.raises(InputError, match=r"needs a model that was also trained without (single )?covariates"):
            Generator.load(tmp_path / "model", device="cpu", drawing=guided)


def test_a_run_keeps_its_steering_in_the_model_by_a_relative_path(tiny_run, tmp_path):
    weak = with_other_weights(tiny_run, tmp_path / "weak")
    shutil.copytree(tiny_run, tmp_path / "run")
    steering = [{"kind": "autoguidance", "weak": str(weak), "scale": 1.5}, {"kind": "threshold", "limit": 3.0}]
    raw = {**TINY, "generate": {**TINY["generate"], "n": 1, "steering": steering}}
    pipeline.run_experiment(config.build(raw, "tiny"), folder=tmp_path / "run", until="synthetic")
    kept = read_json(tmp_path / "run" / "model" / "model.json")["sampling"]["steering"]
    assert kept == [{**steering[0], "weak": "../../weak"}, steering[1]]
    drawn = read_json(next((tmp_path / "run" / "synthetic").rglob("*syn000000*T1w.json")))["drawing"]["steering"]
    loaded = Generator.load(tmp_path / "run" / "model", device="cpu")
    assert drawn == chain.recorded(loaded.drawing.steering) and str(tmp_path) not in json.dumps(drawn)
