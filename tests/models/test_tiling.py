import pytest
import torch

from medgen.cohort.schema import Covariate, Schema
from medgen.models import kl, memory, published_kl, tiling, unet, vq, wavelet
from medgen.models.chain import Link
from medgen.models.codec import Codec, Decoded, Gaussian
from medgen.models.condition import ConditionEncoder
from medgen.store import machine

CODECS = {
    "kl": lambda: kl.build(1, 3, channels=(8, 8, 16), latent_channels=2),
    "vq": lambda: vq.build(1, 3, channels=(8, 16), latent_channels=2, codes=16),
    "wavelet": lambda: wavelet.build(1, 3, channels=(8, 16), latent_channels=2),
    "published": lambda: published_kl.build(
        1, 0, channels=(8, 16), res_blocks=(1, 1), attention=(False, True), decoder_attention=True, norm_groups=8
    ),
    "maisi": lambda: published_kl.build(
        1, 0, variant="maisi", channels=(8, 16), res_blocks=(1, 1), attention=(False, False), norm_groups=8
    ),
}


def built(kind):
    torch.manual_seed(0)
    codec = CODECS[kind]().eval().requires_grad_(False)
    for p in codec.parameters():  # blocks that start as the identity would hide their reach
        if p.ndim == 5 and not p.any():
            torch.nn.init.normal_(p, std=0.1)
    return codec


def volume(extents=(20, 28, 12), rows=2):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 1, *extents, generator=generator) * 2 - 1
    image[:, :, :7] = -1.0  # air on one side: a tile's own statistics are not the volume's
    return image, torch.randint(-1, 3, (2, *extents), generator=generator)


def difference(a, b):
    return float((a - b).abs().max() / (b.max() - b.min()))


@pytest.mark.parametrize("kind", sorted(CODECS))
@pytest.mark.parametrize("how", [{"tile": 11}, {"budget": 1 << 20}])
def test_tiled_equals_whole(kind, how):
    codec, (image, label) = built(kind), volume()
    label = label if codec.labels else None
    encoded = codec.encode(image, label)
    tiled = tiling.encode(codec, image, label, **how)
    assert type(tiled) is type(encoded)
    assert difference(tiled.mean, encoded.mean) < 1e-4 and torch.allclose(tiled.logvar, encoded.logvar, atol=1e-3)
    whole, parts = codec.decode(encoded.mean), tiling.decode(codec, encoded.mean, **how)
    assert parts.image.shape == image.shape and difference(parts.image, whole.image) < 1e-5
    if codec.labels:
        assert difference(parts.label_logits, whole.label_logits) < 1e-5
    else:
        assert parts.label_logits is None


def test_the_published_width_has_no_seam():
    torch.manual_seed(0)
    codec = published_kl.build(1, 0, res_blocks=(1, 1, 1, 1)).eval().requires_grad_(False)
    latent = torch.randn(1, 3, 3, 4, 2)
    whole = codec.decode(latent).image
    error = (tiling.decode(codec, latent, tile=16).image - whole).abs() / (whole.max() - whole.min())
    assert float(error.max()) < 1e-4


def test_what_fits_is_run_whole_to_the_bit():
    codec, (image, label) = built("kl"), volume()
    mean = codec.encode(image, label).mean
    assert torch.equal(tiling.encode(codec, image, label, budget=1 << 30).mean, mean)
    assert torch.equal(tiling.decode(codec, mean, budget=1 << 30).image, codec.decode(mean).image)


class Blur(Codec):
    """A codec that knows its halo and nothing else; with a halo of None it may look anywhere."""

    def __init__(self, halo):
        super().__init__()
        self.image_channels, self.labels, self.latent_channels, self.stride, self.halo = 1, 2, 1, 2, halo
        self.conv = torch.nn.Conv3d(1, 1, 3, padding=1)
        self.sizes = []

    def encode(self, image, label):
        mean = torch.nn.functional.avg_pool3d(self.conv(image), 2)
        return Gaussian(mean, mean - (0 if label is None else 1))

    def decode(self, latent):
        self.sizes.append(latent.shape[2])
        out = torch.nn.functional.interpolate(self.conv(latent), scale_factor=2.0)
        return Decoded(out, torch.cat([out, -out], dim=1))


def test_a_codec_that_knows_only_its_halo():
    image, label = volume((16, 12, 14))
    for halo, largest in ((1, 4), (None, 8)):
        torch.manual_seed(0)
        codec = Blur(halo).requires_grad_(False)
        mean = codec.encode(image, label).mean
        tiled = tiling.encode(codec, image, label, tile=6)
        assert torch.allclose(tiled.mean, mean, atol=1e-6) and torch.allclose(tiled.logvar, mean - 1, atol=1e-6)
        decoded = codec.decode(mean)
        codec.sizes.clear()
        parts = tiling.decode(codec, mean, tile=4)
        assert torch.allclose(parts.image, decoded.image, atol=1e-6)
        assert torch.allclose(parts.label_logits, decoded.label_logits, atol=1e-6)
        assert max(codec.sizes) == largest


def test_a_halo_is_as_far_as_the_gradient_reaches():
    for kind in ("vq", "wavelet"):
        codec, n = built(kind), 21
        latent = torch.randn(1, codec.latent_channels, n, 1, 1, requires_grad=True)
        decoder = codec.net.decoder if kind == "vq" else None
        out = decoder(latent) if decoder else codec.decode(latent).image
        middle = codec.stride * (n // 2)
        out[:, :, middle : middle + codec.stride].sum().backward()
        seen = torch.nonzero(latent.grad.abs().sum((0, 1, 3, 4)))
        reach = max(n // 2 - int(seen.min()), int(seen.max()) - n // 2)
        assert reach <= codec.halo, kind
    assert built("kl").halo is None


def test_tiles_follow_from_the_room():
    link = Link(torch.nn.Conv3d(16, 16, 3), reach=1)
    grid = (64, 80, 48)
    assert tiling.tile_of(link, grid, 1 << 40) == grid
    sizes = [tiling.tile_of(link, grid, 1 << shift) for shift in (26, 24, 22, 20)]
    volumes = [a * b * c for a, b, c in sizes]
    assert volumes == sorted(volumes, reverse=True) and volumes[-1] < volumes[0]
    for size, shift in zip(sizes, (26, 24, 22, 20), strict=True):
        assert tiling.whole_bytes((link,), [n + 2 for n in size]) <= 1 << shift
    assert tiling.tile_of(Link(link.run, up=2, reach=1), (9, 9, 9), 0) == (2, 2, 2)
    assert tiling.tile_of(Link(link.run, reach=None), grid, 0) == grid


def test_memory_on_a_cpu_is_the_machines_and_the_containers(monkeypatch, tmp_path):
    cpu = torch.device("cpu")
    monkeypatch.setattr(machine, "LIMITS", ())
    whole = memory.budget_bytes(cpu)
    assert 1 << 27 < whole < 1 << 44
    limit = tmp_path / "memory.max"
    limit.write_text("1073741824\n")
    monkeypatch.setattr(machine, "LIMITS", (limit,))
    assert memory.budget_bytes(cpu) == min(whole, 1 << 28)
    limit.write_text("max\n")
    assert memory.budget_bytes(cpu) == whole


def gradients(module, loss):
    module.zero_grad()
    loss().backward()
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


@pytest.mark.parametrize("module", [kl, vq, wavelet])
def test_checkpointing_changes_memory_only(module):
    image, label = volume((16, 16, 16))
    results, kept = [], []
    for again in (False, True):
        torch.manual_seed(0)
        codec = module.build(1, 3, channels=(8, 16), latent_channels=2, checkpointing=again)
        sizes = []

        def pack(t, sizes=sizes):
            sizes.append(t.numel())
            return t

        def loss(codec=codec, pack=pack):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                encoded = codec.encode(image, label)
                return codec.decode(encoded.mean).image.square().mean() + sum(codec.regulariser(encoded).values())

        results.append((gradients(codec, loss), sorted(codec.state_dict())))
        kept.append(sum(sizes))
    assert results[0][1] == results[1][1]
    assert all(torch.equal(a, b) for a, b in zip(results[0][0], results[1][0], strict=True))
    assert kept[1] < 0.8 * kept[0]


def test_the_unet_checkpoints_too():
    schema = Schema((Covariate("age", "continuous", "year", 20, 90),))
    cond = ConditionEncoder.fit(schema, [{"age": 30.0}, {"age": 60.0}]).encode([{"age": 30.0}])
    x, results = torch.randn(1, 2, 4, 4, 4), []
    for again in (False, True):
        torch.manual_seed(0)
        net = unet.build(2, schema, channels=(16, 16), attention=(False, True), head_channels=8, checkpointing=again)
        for p in net.parameters():
            if p.ndim > 1 and not p.any():
                torch.nn.init.normal_(p, std=0.1)
        results.append(gradients(net, lambda net=net: net(x, torch.full((1,), 0.5), cond).square().mean()))
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*results, strict=True))
