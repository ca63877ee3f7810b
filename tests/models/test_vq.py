import copy

import pytest
import torch
from safetensors.torch import load_file

from medgen import config, pipeline
from medgen.errors import InputError
from medgen.files import read_json
from medgen.models import codebook, vq
from medgen.store.latents import Latents
from medgen.training import checkpoint
from medgen.training.ema import Ema
from tests.processes import run_two
from tests.tiny import TINY


def built(**options):
    torch.manual_seed(0)
    return vq.build(1, 3, **{"channels": (8, 16), "latent_channels": 2, "codes": 16, **options})


def volume(rows=2, extents=(8, 12, 8)):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(rows, 1, *extents, generator=generator) * 2 - 1
    return image, torch.randint(-1, 3, (rows, *extents), generator=generator)


def test_nearest_is_the_smallest_distance_whatever_the_autocast(monkeypatch):
    latent, codes = torch.randn(2, 3, 4, 5, 6), torch.randn(40, 3)
    truth = torch.cdist(latent.movedim(1, -1).reshape(-1, 3), codes).argmin(dim=1).reshape(2, 4, 5, 6)
    assert torch.equal(codebook.nearest(latent, codes), truth)
    monkeypatch.setattr(codebook, "ROWS", 7)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(codebook.nearest(latent, codes), truth)
    assert torch.equal(codebook.embed(truth, codes)[1, :, 2, 3, 4], codes[truth[1, 2, 3, 4]])


def test_perplexity_counts_entries_in_use():
    assert codebook.perplexity(torch.zeros(50, dtype=torch.long), 8).item() == pytest.approx(1, abs=1e-5)
    assert codebook.perplexity(torch.arange(8), 8).item() == pytest.approx(8, rel=1e-5)


def test_tokens_go_round():
    codec, (image, label) = built().eval(), volume()
    tokens = codec.encode(image, label)
    assert tokens.indices.shape == (2, 2, 3, 2) and tokens.indices.dtype == torch.int64
    assert tokens.mean.shape == tokens.embedded.shape == tokens.logvar.shape == (2, 2, 2, 3, 2)
    assert tokens.sample(torch.randn(tokens.mean.shape)) is tokens.mean and tokens.logvar.exp().max() < 1e-12
    assert codec.stride == vq.stride(channels=(8, 16)) == 4
    decoded = codec.decode_tokens(tokens.indices)
    assert decoded.image.shape == image.shape and decoded.label_logits.shape == (2, 3, 8, 12, 8)
    for latent in (tokens.mean, tokens.embedded):
        assert torch.equal(codec.decode(latent).image, decoded.image)
    again = codebook.nearest(tokens.embedded, codec.book.embedding.weight)
    assert torch.equal(again, tokens.indices)
    assert torch.equal(codec.encode(image, torch.full_like(label, -1)).mean, codec.encode(image, None).mean)


def test_the_gradient_passes_the_quantiser():
    codec = built().eval()
    latent = torch.randn(1, 2, 2, 3, 2, requires_grad=True)
    codec.decode(latent).image.square().sum().backward()
    codes = codec.book.embedding.weight
    quantised = codebook.embed(codebook.nearest(latent.detach(), codes), codes).detach().requires_grad_()
    codec.net.decoder(quantised)[:, :1].square().sum().backward()
    assert torch.equal(latent.grad, quantised.grad) and latent.grad.abs().max() > 0
    assert not codes.requires_grad


def test_the_commitment_is_weighted_and_pulls_the_encoder_only():
    codec, (image, label) = built(commitment=0.5), volume()
    tokens = codec.encode(image, label)
    (loss,) = codec.regulariser(tokens).values()
    assert loss.item() == pytest.approx(0.5 * (tokens.mean - tokens.embedded).square().mean().item())
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in codec.net.encoder.parameters())
    assert all(p.grad is None for p in codec.net.decoder.parameters())


def test_codes_settle_on_the_clusters_and_none_stays_dead():
    book = built(codes=12, decay=0.9).book
    with torch.no_grad():
        book.embedding.weight.add_(100.0)  # far from everything: without restarts one code would take it all
    generator = torch.Generator().manual_seed(2)
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    for _ in range(60):
        which = torch.randint(0, 4, (400,), generator=generator)
        rows = centres[which] + 0.1 * torch.randn(400, 2, generator=generator)
        latent = rows.t().reshape(1, 2, 20, 20, 1)
        codebook.learn(book, latent, codebook.nearest(latent, book.embedding.weight))
    found = codebook.nearest(latent, book.embedding.weight)
    error = (latent - codebook.embed(found, book.embedding.weight)).square().sum(1).mean().sqrt()
    assert error < 0.14, "what is left is the clusters' own spread"
    assert codebook.perplexity(found, 12) > 6
    assert torch.cdist(centres, book.embedding.weight).min(dim=1).values.max() < 0.2


def test_the_codebook_learns_in_training_only_and_repeats_itself():
    image, label = volume()
    ends = []
    for _ in range(2):
        codec = built()
        before = codec.book.embedding.weight.clone()
        for _ in range(3):
            figures = codec.encode(image, label).figures
        assert not torch.equal(codec.book.embedding.weight, before) and 1 <= figures["perplexity"] <= 16
        ends.append(copy.deepcopy(codec.state_dict()))
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])
    codec.eval().encode(image, label)
    with torch.no_grad():
        codec.train().encode(image, label)
    assert all(torch.equal(ends[1][key], value) for key, value in codec.state_dict().items())


def test_averages_and_checkpoints_hold_the_codebook(tmp_path):
    codec, (image, label) = built(), volume()
    average = Ema(codec)
    optimiser = torch.optim.AdamW([p for p in codec.parameters() if p.requires_grad], lr=1e-3)
    for step in range(1, 4):
        tokens = codec.encode(image, label)
        loss = codec.decode(tokens.sample(tokens.mean)).image.square().mean() + sum(codec.regulariser(tokens).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        average.update(codec, step)
    path = tmp_path / "checkpoint.safetensors"
    checkpoint.save(path, {"codec": codec}, {"codec": average}, {"codec": optimiser}, {"step": 3})
    other, other_average = built(), Ema(built())
    other_optimiser = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=1e-3)
    checkpoint.load(path, {"codec": other}, {"codec": other_average}, {"codec": other_optimiser})
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in codec.state_dict().items())
    averaged = built()
    averaged.load_state_dict(other_average.state(averaged), strict=True)
    codes, mean = codec.book.embedding.weight, averaged.book.embedding.weight
    assert not torch.equal(codes, mean) and torch.isfinite(averaged.eval().encode(image, label).embedded).all()


def test_bad_numbers_are_one_sentence():
    for options in ({"codes": 0}, {"channels": ()}, {"decay": 1.0}):
        with pytest.raises(InputError, match=r"autoencoder\.options"):
            built(**options)


def test_a_whole_experiment_with_a_codebook(tmp_path):
    raw = copy.deepcopy(TINY)
    raw["autoencoder"] |= {"kind": "vq", "options": {"channels": [8, 16], "latent_channels": 2, "codes": 32}}
    raw["latents"], raw["generate"] = {"tile": 12}, {**raw["generate"], "n": 1, "tile": 12}
    pipeline.run_experiment(config.build(raw, "test"), folder=tmp_path)
    assert read_json(tmp_path / "report" / "report.json")["samples"]["count"] == 1
    log = (tmp_path / "autoencoder" / "log.jsonl").read_text()
    assert "commitment" in log and "perplexity" in log and '"kl"' not in log
    latents = Latents(tmp_path / "latents")
    assert latents.mean.std() > 0 and latents.logvar.max() == -30
    weights = load_file(tmp_path / "model" / "codec.safetensors")
    assert weights["net.quantizer.quantizer.embedding.weight"].shape == (32, 2)


BOOKS = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from medgen.models import codebook, vq
from medgen.training.distributed import leave, world

here = world(torch.device("cpu"))
torch.manual_seed(0)
book = vq.build(1, 0, channels=(8, 16), latent_channels=2, codes=16).book.train()
torch.manual_seed(1 + here.rank)
for _ in range(3):
    latent = torch.randn(2, 2, 3, 3, 3) + 5.0
    codebook.learn(book, latent, codebook.nearest(latent, book.embedding.weight))
save_file({k: v.clone() for k, v in book.state_dict().items()}, Path(sys.argv[1]) / f"book{here.rank}.safetensors")
leave()
"""


def test_two_processes_start_unused_codes_again_alike(tmp_path):
    """Each has other latents to start from; a mean of two would be nobody's."""
    run_two(BOOKS, tmp_path)
    first, second = (load_file(tmp_path / f"book{rank}.safetensors") for rank in (0, 1))
    assert all(torch.equal(value, second[key]) for key, value in first.items())


def test_no_branch_of_the_codebook_waits_for_a_value():
    """Costs are counted on tensors that have none, and a GPU would stand still meanwhile."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        codec = built()
        assert codec.train().encode(*volume()).figures["perplexity"].shape == ()
