import copy
import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from medgen import config, pipeline
from medgen.doctor import diagnose
from medgen.errors import InputError
from medgen.generation.model import load_model, read_spec
from medgen.stages import ancestor
from medgen.stages.run import Run
from tests.tiny import TINY, run

CPU = torch.device("cpu")


def starting(model, **sections):
    """The tiny experiment from a model; kinds and options are the model's."""
    raw = copy.deepcopy(TINY)
    raw["init"] = model if isinstance(model, dict) else str(model)
    del raw["autoencoder"]["options"], raw["diffusion"]["network_options"]
    for section, values in sections.items():
        raw[section] = {**raw.get(section, {}), **values} if isinstance(values, dict) else values
    return config.build(raw, "test")


@pytest.fixture
def finished(tiny_run, tmp_path):
    """A copy of the tiny run: its cohort is prepared."""
    return shutil.copytree(tiny_run, tmp_path / "tiny")


def losses(folder, stage):
    lines = [json.loads(x) for x in (folder / stage / "log.jsonl").read_text().splitlines()]
    return [x["loss"] for x in lines if "loss" in x]


def test_fine_tuning_end_to_end_starts_lower_than_from_scratch(tiny_run, finished):
    cfg = starting(tiny_run / "model", covariates={"use": ["ventricles_ml", "age"]}, licence="CC BY 4.0")
    report, did = run(finished, cfg)
    assert {"autoencoder", "latents", "diffusion", "model"} <= did and "prepared" not in did
    assert report["samples"]["count"] == 3
    for stage in ("autoencoder", "diffusion"):
        assert losses(finished, stage)[0] < losses(tiny_run, stage)[0], stage
    spec, _ = read_spec(finished / "model")
    before, sha256 = read_spec(tiny_run / "model")
    assert spec.codec == before.codec and spec.network == before.network and spec.process == before.process
    assert spec.trained_on["ancestors"] == [{"name": "tiny", "sha256": sha256, "licence": ""}]
    assert spec.encoder["centre"] == [before.encoder["centre"][k] for k in (2, 0)], "as the embedding learnt them"
    card = (finished / "model" / "README.md").read_text()
    assert f"Fine-tuned from `tiny` (SHA-256 {sha256}" in card and "CC BY 4.0" in card
    assert run(finished, cfg)[1] == set()
    kept = config.load(finished / "config.yaml")
    assert kept.init is not None and run(finished, kept)[1] == set(), "the written config says the same"
    # The next generation remembers both.
    child = ancestor.with_ancestor(starting(finished / "model"))
    names = [a["licence"] for a in ancestor.lineage(Run(child, finished, lambda *_: None))]
    assert names == ["CC BY 4.0", ""]


def test_a_frozen_codec_is_the_models_to_the_bit(tiny_run, finished):
    init = {"model": str(tiny_run / "model"), "codec": "frozen"}
    run(finished, starting(init), until="model")
    theirs, ours = load_model(tiny_run / "model", CPU), load_model(finished / "model", CPU)
    for name, weight in theirs.codec.state_dict().items():
        assert torch.equal(weight, ours.codec.state_dict()[name]), name
    assert ours.statistics == theirs.statistics, "equal latents stay equal"
    assert not torch.equal(next(ours.network.parameters()), next(theirs.network.parameters()))
    longer = {"training": {**TINY["autoencoder"]["training"], "steps": 99}}
    assert run(finished, starting(init, autoencoder=longer), until="model")[1] == set()
    fresh = starting({**init, "network": "fresh"}, diffusion=TINY["diffusion"])
    _, did = run(finished, fresh, until="diffusion")
    assert did == {"latents", "diffusion"}
    assert losses(finished, "diffusion")[0] == pytest.approx(losses(tiny_run, "diffusion")[0], rel=0.2)


def test_the_first_step_is_the_models(tiny_run):
    cfg = ancestor.with_ancestor(starting(tiny_run / "model"))
    under_way = Run(cfg, tiny_run, lambda *_: None)
    theirs = load_model(tiny_run / "model", CPU)
    from medgen.generation.model import build_codec, build_network
    from medgen.stages.conditions import fit_encoder

    codec = ancestor.start_codec(under_way, build_codec(under_way.codec_kind(), 1, 5)).eval()
    image = torch.rand(1, 1, 16, 16, 16) * 2 - 1
    ids = torch.randint(-1, 5, (1, 16, 16, 16))
    with torch.no_grad():
        latent = codec.encode(image, ids).mean
        assert torch.equal(latent, theirs.codec.encode(image, ids).mean)
        assert torch.equal(codec.decode(latent).label_logits, theirs.codec.decode(latent).label_logits)
        encoder, rows = fit_encoder(under_way)
        fresh = build_network(under_way.network_kind(), theirs.spec.latent_shape[0], encoder.schema)
        network = ancestor.start_network(under_way, fresh, encoder).eval()
        x, time = torch.randn(2, *theirs.spec.latent_shape), torch.tensor([0.3, 0.9])
        assert torch.equal(
            network(x, time, encoder.encode(rows[:2])), theirs.network(x, time, theirs.encoder.encode(rows[:2]))
        )


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        (
            {"autoencoder": {"options": {"channels": [8, 16, 32]}}},
            r"options.channels is \[8, 16, 32\], but",
        ),
        ({"autoencoder": {"options": {"label_width": 2}}}, "autoencoder.options.label_width is 2, but .* has 4"),
        ({"diffusion": {"process_options": {"shift": 7.0}}}, "diffusion.process_options.shift is 7.0, but"),
        ({"diffusion": {"network_options": {"channels": [16, 32]}}}, "diffusion.network_options.channels"),
    ],
)
def test_what_the_config_says_otherwise_than_the_model_is_named(tiny_run, sections, word):
    with pytest.raises(InputError, match=word):
        ancestor.with_ancestor(starting(tiny_run / "model", **sections))


def test_the_same_said_twice_is_no_difference(tiny_run):
    same = {"autoencoder": {"kind": "wavelet", "options": {"label_width": 4, "channels": (8, 16)}}}
    cfg = ancestor.with_ancestor(starting(tiny_run / "model", **same))
    assert cfg.autoencoder.options == TINY["autoencoder"]["options"]
    training = {"diffusion": {"network_options": {"checkpointing": True, "dropout": 0.2}}}
    cfg = ancestor.with_ancestor(starting(tiny_run / "model", **training))
    assert cfg.diffusion.network_options == {
        **TINY["diffusion"]["network_options"],
        "checkpointing": True,
        "dropout": 0.2,
    }
    other = {"diffusion": {"process_options": {"shift": 7.0}}}
    free = starting({"model": str(tiny_run / "model"), "network": "fresh"}, **other)
    assert ancestor.with_ancestor(free).diffusion.process_options == {"shift": 7.0}


@pytest.mark.parametrize(
    ("init", "word"),
    [
        ("nowhere", "nowhere is not a model folder"),
        ({"model": "nowhere", "codec": "cold"}, "init.codec"),
        ({"modle": "nowhere"}, "did you mean 'model'"),
        ("", "init"),
    ],
)
def test_a_wrong_init_is_one_sentence(tmp_path, init, word):
    with pytest.raises(InputError, match=word) as caught:
        pipeline.run_experiment(config.build({"name": "a", "init": init}, "test"), folder=tmp_path / "out")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_channels_and_frozen_labels_must_be_the_models(tiny_run):
    def check(channels=("T1w",), names=("background", "GM"), codec="train", without_null=(), mask=None):
        store = SimpleNamespace(channels=channels, label_names=names)
        init = SimpleNamespace(codec=codec, network="train")
        model = load_model(tiny_run / "model", CPU)
        model.network.without_null = without_null
        model = replace(model, spec=replace(model.spec, mask=mask))
        asked = SimpleNamespace(init=init, diffusion=SimpleNamespace(drop_all=0.1, drop_each=0.0))
        ancestor.check_ancestor(SimpleNamespace(ancestor=model, store=store, config=asked))

    check()
    check(names=("background", "lesion"))
    check(names=("background", "gm"), codec="frozen")
    with pytest.raises(InputError, match=r"channels T1w and the cohort T1w, FLAIR; .* prepare.channels"):
        check(channels=("T1w", "FLAIR"))
    with pytest.raises(InputError, match=r"no null for age, .*drop_all"):
        check(without_null=("age",))
    with pytest.raises(InputError, match=r"knows no label lesion \(it has CSF, GM, WM, Ventricles\)"):
        check(names=("background", "lesion"), codec="frozen")
    with pytest.raises(InputError, match=r"knows no label GM \(it has CSF, .*, in a label model of its own\)"):
        check(names=("background", "GM"), codec="frozen", mask={"centre": [0, 0, 0]})


def test_the_doctor_says_what_is_carried_over(tiny_run, tmp_path):
    import yaml

    cohort = {"data": {"phantom": None, "root": str(tiny_run / "cohort")}, "prepare": {"spacing_mm": 12}}
    cfg = starting(tiny_run / "model", covariates={"use": ["age"]}, **cohort)
    raw = json.loads(cfg.model_dump_json(exclude_unset=True))
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(raw))
    found = diagnose(path, measure=False)
    said = [f.what for f in found.findings if f.where == "init"]
    assert any("4 labels and 1 columns of the cohort are known to it" in what for what in said), said
    assert any("the model knows voxels of 8 x 8 x 8 mm, the experiment has 12" in what for what in said)
    path.write_text(yaml.safe_dump({**raw, "autoencoder": {"accept": {"min_dice": {"spleen": 0.5}}}}))
    assert any("no label 'spleen'" in f.what for f in diagnose(path, measure=False).findings)
