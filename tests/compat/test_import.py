"""Published weights come in as they are, and sample as their authors sample them."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.networks.schedulers.rectified_flow import timestep_transform
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from medgen import read_cohort
from medgen.cli import app
from medgen.cohort.requests import Row, plan
from medgen.compat.brain_ldm import SHAPE, _geometry
from medgen.compat.imported import uniform_joint
from medgen.errors import InputError
from medgen.generation.dataset import generate
from medgen.generation.generator import Drawing, Generator
from medgen.generation.model import load_model
from medgen.generation.published import import_model
from medgen.models.hybrid_unet import timesteps
from medgen.sampling.noise import Key, streams
from tests.compat import published

CPU = torch.device("cpu")
EXTENT = (32, 32, 32)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Folders as they are downloaded, and the original networks, by name."""
    root = tmp_path_factory.mktemp("published")
    networks = {"brain": published.write_brain(root / "brain")}
    networks |= {name: published.write_maisi(root / name, name == "flow") for name in ("flow", "ddpm")}
    return root, networks


@pytest.fixture(scope="module")
def models(bundles):
    """Model folders made of them."""
    root, _ = bundles
    config = root / "brain" / "configs" / "inference.json"
    import_model(root / "brain", root / "m" / "brain", layout="brain_ldm", config=config, shape=EXTENT)
    for name in ("flow", "ddpm"):
        options = {"config": root / name / "config.json", "shape": EXTENT, "spacing_mm": (1.0, 2.0, 3.0)}
        options |= {"modality": ("mri_t1", "mri_t2")} if name == "flow" else {}
        import_model(root / name, root / "m" / name, layout="maisi", **options)
    return {name: load_model(root / "m" / name, CPU) for name in ("brain", "flow", "ddpm")}, root / "m"


def latents(*shape, seed=3):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_the_codec_of_a_model_folder_is_the_original(bundles, models):
    for name in ("brain", "flow"):
        original, codec = bundles[1][name][0], models[0][name].codec
        image = torch.rand((1, 1, 16, 24, 16), generator=torch.Generator().manual_seed(0))
        mean, deviation = original.encode(image)
        posterior = codec.encode(2 * image - 1, None)
        torch.testing.assert_close(posterior.mean, mean, atol=1e-5, rtol=0)
        torch.testing.assert_close((posterior.logvar / 2).exp(), deviation, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close((codec.decode(mean).image + 1) / 2, original.decode(mean), atol=1e-5, rtol=0)


@torch.no_grad()
def test_ddim_is_the_bundles_own_sampler_at_its_own_timesteps(bundles, models):
    """The bundle's script: MONAI Generative's DDIM, the covariates as channels and as context."""
    original, model = bundles[1]["brain"][1], models[0]["brain"]
    values = torch.tensor([[1.0, 0.7, 0.6, 0.5]])
    keys = [Key(4, 0)]
    x = streams(keys, model.spec.latent_shape)(0)
    scheduler = published.generative_schedulers().DDIMScheduler(
        num_train_timesteps=1000, schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0205, clip_sample=False
    )
    scheduler.set_timesteps(num_inference_steps=5)
    assert scheduler.timesteps.tolist() == [800, 600, 400, 200, 0]
    channels = values[:, :, None, None, None].expand(-1, -1, *x.shape[2:])
    for t in scheduler.timesteps:
        out = original(torch.cat([x, channels], 1), timesteps=torch.Tensor((t,)).long(), context=values[:, None])
        x, _ = scheduler.step(out, t, x)

    generator = Generator(model, Drawing("euler", {}, 5, 1.0))
    row = {"gender_01": "1", "age_01": 0.7, "ventricular_vol_01": 0.6, "brain_vol_01": 0.5}
    ours = generator._latents(generator.condition([Row(row, frozenset())], keys), keys)
    torch.testing.assert_close(ours, x, atol=2e-4, rtol=2e-4)


def test_fifty_steps_are_those_that_published_models_expect(models):
    scheduler = published.generative_schedulers().DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(50)
    process = models[0]["brain"].process
    assert process.visited(50).tolist() == scheduler.timesteps.tolist() == list(range(980, -1, -20))
    time = process.time(process.sigmas(50)[:-1])
    assert timesteps(time).tolist() == list(range(980, -1, -20))  # whole numbers to the last bit


def test_defaults_sample_and_lie_in_ras(models):
    found, folder = models
    for name, channel, low, high in (("brain", "T1w", 0, 255), ("flow", "MR", 0, 1000), ("ddpm", "CT", -1000, 1000)):
        defaults = found[name].spec.sampling
        drawing = Drawing(defaults["sampler"], defaults["options"], 3, defaults["guidance"])
        sample = Generator.load(folder / name, device="cpu", drawing=drawing).sample(seed=1)
        volume = sample.images[channel]
        assert volume.data.shape == (1, *EXTENT) and sample.label is None
        assert np.issubdtype(volume.data.dtype, np.integer) and np.ptp(volume.data) > 0
        assert volume.data.min() >= low and volume.data.max() <= high
        assert nib.aff2axcodes(volume.affine) == ("R", "A", "S")
    np.testing.assert_allclose(np.diag(volume.affine)[:3], (1.0, 2.0, 3.0))
    assert {n: m.spec.sampling["steps"] for n, m in found.items()} == {"brain": 50, "flow": 30, "ddpm": 1000}


def test_the_published_grid_is_the_bundles_own_cut_turned_to_ras():
    record = _geometry(SHAPE)
    array = np.random.default_rng(0).random(SHAPE, dtype=np.float32)
    cut = array[5:-5, 5:-5, :-15]
    np.testing.assert_array_equal(record.invert_image(array), cut[::-1])
    # The bundle writes the cut with this corner; its first voxel along x is our last.
    corner = record.source.affine @ [cut.shape[0] - 1, 0, 0, 1]
    np.testing.assert_allclose(corner[:3], [96.48149872, -141.47715759, -156.55375671])


@torch.no_grad()
def test_maisi_hears_region_modality_and_voxel_size_as_its_own_script_says_them(bundles, models):
    x, time = latents(1, 4, 8, 8, 8), torch.tensor([0.5])
    spacing = torch.tensor([[100.0, 200.0, 300.0]])
    model = models[0]["flow"]
    cond = model.encoder.encode([{"modality": "mri_t2"}])
    expected = bundles[1]["flow"][1](x, torch.tensor([500.0]), class_labels=torch.tensor([10]), spacing_tensor=spacing)
    # MONAI's flow is data - noise, medgen's noise - data.
    torch.testing.assert_close(model.network(x, time, cond), -expected, atol=1e-5, rtol=0)
    unknown = bundles[1]["flow"][1](x, torch.tensor([500.0]), class_labels=torch.tensor([0]), spacing_tensor=spacing)
    torch.testing.assert_close(model.network(x, time, cond.null()), -unknown, atol=1e-5, rtol=0)

    model = models[0]["ddpm"]
    cond = model.encoder.encode([{"top_region": "chest", "bottom_region": "pelvis"}])
    expected = bundles[1]["ddpm"][1](
        x,
        torch.tensor([500.0]),
        top_region_index_tensor=torch.tensor([[0, 100.0, 0, 0]]),
        bottom_region_index_tensor=torch.tensor([[0, 0, 0, 100.0]]),
        spacing_tensor=spacing,
    )
    torch.testing.assert_close(model.network(x, time, cond), expected, atol=1e-5, rtol=0)


def test_maisi_rflow_times_are_monais(models):
    spec, process = models[0]["flow"].spec, models[0]["flow"].process
    sigmas = process.sigmas(30).double()
    t = (sigmas / (1 + sigmas))[1:-1]
    size = torch.prod(torch.tensor(spec.latent_shape[1:]))
    uniform = 1000 * torch.linspace(1, 0, 31, dtype=torch.float64)[1:-1]
    torch.testing.assert_close(1000 * t, timestep_transform(uniform, size), atol=1e-3, rtol=1e-5)


def test_scale_factor_is_that_of_the_file(models):
    assert models[0]["flow"].spec.statistics["std"] == pytest.approx([1 / 0.8] * 4)
    assert models[0]["brain"].spec.statistics["std"] == [1.0] * 3


def test_models_without_a_null_refuse_guidance(models):
    for name in ("brain", "ddpm"):
        generator = Generator(models[0][name], Drawing("euler", {}, 2, 2.0))
        with pytest.raises(InputError, match="use guidance 1"):
            generator.sample()


def test_what_is_not_asked_for_is_drawn_evenly(models):
    schema = models[0]["brain"].schema
    rows = uniform_joint(schema).many(np.random.default_rng(0), 4000)
    columns = np.array([[float(r[c] or 0) for c in schema.names] for r in rows])
    assert abs(columns[:, 0].mean() - 0.5) < 0.03
    for k in (1, 2, 3):
        gap = np.abs(np.sort(columns[:, k]) - (np.arange(4000) + 0.5) / 4000).max()  # Kolmogorov-Smirnov
        assert gap < 0.04 and columns[:, k].min() >= 0 and columns[:, k].max() <= 1
    assert np.abs(np.corrcoef(columns.T) - np.eye(4)).max() < 0.06

    order = ("head", "chest", "abdomen", "pelvis")
    rows = models[0]["ddpm"].joint.many(np.random.default_rng(0), 1000)
    upside_down = [order.index(r["top_region"]) > order.index(r["bottom_region"]) for r in rows]
    assert np.mean(upside_down) < 0.02 and len({(r["top_region"], r["bottom_region"]) for r in rows}) >= 10


def test_one_file_with_both_networks_wrapped_and_parallel(bundles, models, tmp_path):
    autoencoder, unet = bundles[1]["flow"]
    wrapped = {
        "autoencoder_state_dict": {f"module.{k}": v for k, v in autoencoder.state_dict().items()},
        "unet_state_dict": unet.state_dict(),
        "scale_factor": 0.8,
        "epoch": 3,
    }
    torch.save(wrapped, tmp_path / "both.pt")
    config = bundles[0] / "flow" / "config.json"
    options = {"config": config, "shape": EXTENT, "spacing_mm": (1.0, 2.0, 3.0), "modality": ("mri_t1", "mri_t2")}
    import_model(tmp_path / "both.pt", tmp_path / "out", layout="maisi", **options)
    for name in ("codec.safetensors", "network.safetensors"):
        one, other = load_file(tmp_path / "out" / name), load_file(models[1] / "flow" / name)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def test_the_command_converts_safetensors_and_the_card_says_whose_licence(bundles, tmp_path):
    autoencoder, unet = bundles[1]["brain"]
    save_file(autoencoder.state_dict(), tmp_path / "a.safetensors")
    save_file(unet.state_dict(), tmp_path / "u.safetensors")
    config = bundles[0] / "brain" / "configs" / "inference.json"
    out = tmp_path / "model"
    words = ["model", "import", str(tmp_path / "u.safetensors"), str(out), "--layout", "brain_ldm"]
    words += ["--autoencoder", str(tmp_path / "a.safetensors"), "--config", str(config), "--shape", "32", "32", "32"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "largest difference to the original networks: autoencoder" in result.output
    card = CliRunner().invoke(app, ["model", "show", str(out)]).output
    assert "layout `brain_ldm`" in card and "**Licence:** the source's" in card
    with pytest.raises(InputError, match="already holds something"):
        import_model(bundles[0] / "brain", out, layout="brain_ldm", config=config, shape=EXTENT)


def test_a_dataset_of_published_weights_is_read_back_as_it_is(models, tmp_path):
    """Numbers in [0, 1] must not come back as years, nor 0 and 1 as sexes."""
    generator = Generator(models[0]["brain"], Drawing("euler", {}, 2, 1.0))
    generate(generator, tmp_path, 2, plan(generator.schema, generator.model.joint, where="gender_01=1,age_01=0.2..0.3"))
    cohort = read_cohort(tmp_path)
    assert cohort.schema.names == generator.schema.names
    assert all(c.covariates["gender_01"] == "1" and 0.2 <= c.covariates["age_01"] <= 0.3 for c in cohort.cases)


def test_without_a_configuration_published_settings_are_taken_or_asked_for(bundles, tmp_path):
    with pytest.raises(InputError, match=r"32 groups of the norms do not divide.*--config"):
        import_model(bundles[0] / "brain", tmp_path / "out", layout="brain_ldm", shape=EXTENT)


def test_a_configuration_of_other_weights_is_refused(bundles, tmp_path):
    raw = json.loads((bundles[0] / "brain" / "configs" / "inference.json").read_text())
    for part, name, value in (
        ("autoencoder_def", "num_channels", [4, 8, 16]),
        ("diffusion_def", "num_head_channels", [0, 5]),
        ("diffusion_def", "norm_num_groups", "four"),
        ("scheduler", "beta_schedule", "cubic"),
        ("autoencoder_def", "use_convtranspose", True),
    ):
        changed = {**raw, part: {**raw[part], name: value}}
        (tmp_path / "c.json").write_text(json.dumps(changed))
        with pytest.raises(InputError) as error:
            import_model(
                bundles[0] / "brain", tmp_path / "o", layout="brain_ldm", config=tmp_path / "c.json", shape=EXTENT
            )
        assert "\n" not in str(error.value) and not (tmp_path / "o").exists()
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(InputError, match="defines no networks"):
        import_model(bundles[0] / "brain", tmp_path / "o", layout="brain_ldm", config=tmp_path / "c.json")


def broken(folder, what):
    """Spoil a bundle; returns what the sentence must say."""
    path = folder / "models" / "diffusion_model.pth"
    state = torch.load(path, weights_only=True)
    if what == "missing":
        del state["up_blocks.0.resnets.0.norm1.weight"]
        torch.save(state, path)
        return "lacks up_blocks.0.resnets.0.norm1.weight"
    if what == "missing start":
        del state["conv_in.conv.weight"]
        torch.save(state, path)
        return "it lacks conv_in.conv.weight"
    if what == "extra":
        torch.save({**state, "surplus.weight": torch.zeros(2)}, path)
        return "has also surplus.weight"
    if what == "shape":
        torch.save({**state, "time_embed.0.bias": torch.zeros(3)}, path)
        return r"time_embed.0.bias of shape \[3\]"
    if what == "infinite":
        torch.save({**state, "out.2.conv.bias": torch.full_like(state["out.2.conv.bias"], torch.inf)}, path)
        return "not finite"
    if what == "module":  # a whole module needs code to be read
        torch.save(published.brain_networks()[1], path)
        return "could run code"
    if what == "garbage":
        path.write_bytes(b"not weights at all")
        return "not opened|be read"
    if what == "cut":
        path.write_bytes(path.read_bytes()[:-5000])
        return "cannot be read as weights"
    if what == "list":
        torch.save([torch.zeros(2)], path)
        return "holds a list"
    if what == "swapped":
        shutil.copy(folder / "models" / "autoencoder.pth", path)
        return "does not hold the weights of a diffusion UNet"
    if what == "absent":
        path.unlink()
        return "must hold one autoencoder file and one diffusion file"
    assert what == "twice"
    torch.save({"model": state, "ema": state}, path)
    return r"more than once \(model, ema\)"


@pytest.mark.parametrize(
    "what",
    [
        *("missing", "missing start", "extra", "shape", "infinite", "module"),
        *("garbage", "cut", "list", "swapped", "absent", "twice"),
    ],
)
def test_a_spoilt_file_is_one_sentence_and_nothing_is_written(bundles, tmp_path, what):
    folder = tmp_path / "bundle"
    shutil.copytree(bundles[0] / "brain", folder)
    says = broken(folder, what)
    config = folder / "configs" / "inference.json"
    with pytest.raises(InputError, match=says) as error:
        import_model(folder, tmp_path / "out", layout="brain_ldm", config=config, shape=EXTENT)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_wrong_requests_are_one_sentence(bundles, tmp_path):
    root, out = bundles[0], tmp_path / "out"
    brain = {"config": root / "brain" / "configs" / "inference.json", "shape": EXTENT}
    flow = {"config": root / "flow" / "config.json", "shape": EXTENT}
    ddpm = {"config": root / "ddpm" / "config.json", "shape": EXTENT}
    (tmp_path / "no_scale").mkdir()
    for network, file in zip(bundles[1]["flow"], ("autoencoder.pt", "diff_unet.pt"), strict=True):
        torch.save(network.state_dict(), tmp_path / "no_scale" / file)
    for source, layout, options, says in (
        ("brain", "brain", brain, "unknown compat kind 'brain'.*did you mean 'brain_ldm'"),
        ("brain", "brain_ldm", {**brain, "modality": ("ct",)}, "has no option 'modality'"),
        ("brain", "brain_ldm", {**brain, "shape": (32, 32, 36)}, "must be multiples of 8"),
        ("brain", "maisi", {}, "not a MAISI model"),
        ("flow", "brain_ldm", {}, "not a brain LDM"),
        ("flow", "maisi", {**flow, "modality": ("ct", "mri_t1")}, "CT and MRI"),
        ("flow", "maisi", {**flow, "modality": ("xray",)}, "not 'xray'"),
        ("flow", "maisi", {**flow, "spacing_mm": (1.0, 0.0, 1.0)}, "must be positive"),
        ("flow", "maisi", {**flow, "modality": ("mri_mra",)}, "knows 16 modality classes"),
        ("ddpm", "maisi", {**ddpm, "modality": ("mri_t1",)}, "is told no modality"),
        (tmp_path / "no_scale", "maisi", flow, "holds no scale_factor"),
        ("nowhere.pt", "maisi", {}, "does not exist"),
    ):
        with pytest.raises(InputError, match=says) as error:
            import_model(root / source, out, layout=layout, **options)
        assert "\n" not in str(error.value) and not out.exists()
