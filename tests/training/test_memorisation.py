import numpy as np
import pytest
import torch

from medgen.errors import InputError
from medgen.store.latent_rows import LatentRows
from medgen.store.latents import LatentStatistics
from medgen.training.ema import GAMMAS, Ema, key
from medgen.training.keep import NAME, BestKeeper, load_kept, read_kept
from medgen.training.memorisation import Memorisation, nearness

PLAIN = LatentStatistics((0.0, 0.0), (1.0, 1.0))


def latents(n, seed, rank=6):
    """Latents of a cohort: a few shared factors, as anatomy has, and something of one's own."""
    g = torch.Generator().manual_seed(seed)
    factors = torch.randn(rank, 2, 4, 4, 4, generator=torch.Generator().manual_seed(99))
    mixed = torch.einsum("nr,rcxyz->ncxyz", torch.randn(n, rank, generator=g), factors)
    return mixed / rank**0.5 + 0.5 * torch.randn(n, 2, 4, 4, 4, generator=g)


def yardstick(train, held_out=None, subjects=None):
    rows, held = (None if z is None else LatentRows(z, torch.full_like(z, -6.0), z.device) for z in (train, held_out))
    return Memorisation(rows, PLAIN, subjects or list(range(len(train))), held, 0.05)


def test_copies_are_told_from_new_cases_and_from_blurred_ones():
    train, held_out, new = latents(40, 0), latents(12, 1), latents(12, 2)
    curve = yardstick(train, held_out)
    fresh = curve.measure(new)
    assert fresh["memorised"] == 0 and fresh["nearness"] == pytest.approx(fresh["nearness_held_out"], abs=0.1)
    copied = curve.measure(train[:12] + 0.1 * latents(12, 3))
    assert copied["memorised"] == 1 and copied["copies"] == 1 and copied["nearness"] < 0.3
    some = curve.measure(torch.cat([new[:8], train[:4]]))
    assert some["copies"] >= 4 / 12 and some["memorised"] == 1
    blurred = curve.measure(0.3 * new)  # nearer to every case than cases are to each other
    assert blurred["memorised"] == 0 and blurred["nearness"] > curve.threshold


def test_it_is_the_same_where_rows_are_read_from_disk():
    train, held_out, new = latents(150, 0), latents(80, 1), latents(5, 2)

    def at(share):
        rows, held = (LatentRows(z, torch.full_like(z, -6.0), z.device, share=share) for z in (train, held_out))
        return Memorisation(rows, PLAIN, list(range(len(train))), held, 0.05)

    kept, read = at(1.0), at(0.0)
    assert kept.measure(new) == read.measure(new) and kept.threshold == read.threshold > 0


def test_other_encodings_of_a_subject_are_no_other_patients():
    train = latents(20, 0)
    twice = torch.cat([train, train + 0.01])
    alone = yardstick(train)
    assert yardstick(twice, subjects=[*range(20), *range(20)]).threshold == pytest.approx(alone.threshold, rel=0.02)
    assert "nearness_held_out" not in alone.measure(latents(3, 4))


def test_nearness_is_the_nearest_over_the_median_distance():
    reference = torch.tensor([[0.0], [1.0], [3.0]])
    found = nearness(torch.tensor([[0.5], [0.0]]), reference.split(2))
    np.testing.assert_allclose(found, [0.5 / 0.5, 0.0])
    own = nearness(reference, [reference], others=~torch.eye(3, dtype=torch.bool))
    np.testing.assert_allclose(own, [1 / 2, 1 / 1.5, 2 / 2.5])


def keeper(folder, net, best=True):
    return BestKeeper(folder, "net", net, lambda figures: "short", best=best)


def averages(net, value):
    with torch.no_grad():
        net.weight.fill_(value)
    return {key("net", p): Ema(net, g) for p, g in GAMMAS.items()}


def test_the_best_validation_before_copying_is_kept(tmp_path):
    net = torch.nn.Linear(1, 1)
    k = keeper(tmp_path, net)
    k.starts(0)
    copies = {"memorised": 1.0, "copies": 0.5}
    seen = [
        (100, {"loss": 0.5}, True),
        (200, {"loss": 0.4, "memorised": 0.0, "copies": 0.1}, True),
        (300, {"loss": 0.1, **copies}, False),
        (400, {"loss": 0.45}, False),
    ]
    for step, figures, kept in seen:
        assert k.see(step, averages(net, step), figures, last=step == 400) is kept
    assert load_kept(tmp_path / NAME, net)["weight"].item() == 200
    said = read_kept(tmp_path / NAME)
    assert (said["step"], said["average"], said["figures"]["loss"]) == (200, "short", 0.4)
    assert not k.see(500, averages(net, 500), {"loss": float("nan")}, last=False)
    first = keeper(tmp_path / "first", net)
    first.starts(0)
    assert first.see(100, averages(net, 1), {"loss": float("nan")}, last=False)
    assert first.see(200, averages(net, 2), {"loss": 3.0}, last=False), "any number is better than none"
    again = keeper(tmp_path, net)
    again.starts(150)  # what was kept of step 200 will be seen again
    assert again.see(160, averages(net, 160), {"loss": 0.45}, last=False)
    assert again.see(200, averages(net, 200), {"loss": 0.4}, last=False)
    again.starts(250)
    assert not again.see(260, averages(net, 260), {"loss": 0.41}, last=True)


def test_without_held_out_cases_the_last_weights_are_kept(tmp_path):
    net = torch.nn.Linear(1, 1)
    for folder, figures, best in ((tmp_path / "a", {}, True), (tmp_path / "b", {"loss": 1.0}, False)):
        k = keeper(folder, net, best)
        assert not k.see(1, averages(net, 1), figures, last=False)
        assert k.see(2, averages(net, 2), figures, last=True)
        assert load_kept(folder / NAME, net)["weight"].item() == 2


def test_damaged_weights_are_one_sentence(tmp_path):
    net = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match="run the training again"):
        read_kept(tmp_path / NAME)
    keeper(tmp_path, net).see(1, averages(net, 1), {}, last=True)
    with pytest.raises(InputError, match="missing or damaged"):
        load_kept(tmp_path / NAME, torch.nn.BatchNorm1d(2))


def test_profiles_have_the_widths_of_the_paper():
    for profile, width in (("long", 0.10), ("short", 0.05)):  # Karras et al. 2024, equation 126
        g = GAMMAS[profile]
        assert (g + 1) ** 0.5 / (g + 2) / (g + 3) ** 0.5 == pytest.approx(width, rel=1e-3)
