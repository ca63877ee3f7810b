from dataclasses import replace

import torch

from medgen.cohort.schema import Schema
from medgen.diffusion.flow import build
from medgen.models.condition import ConditionEncoder
from medgen.models.unet import coordinates
from medgen.store.latent_rows import LatentRows
from medgen.store.latents import LatentStatistics
from medgen.training.diffusion import Crops, DiffusionTask, LatentSet, choice
from medgen.training.ema import GAMMAS, Ema, key

EXTENT = (8, 6, 4)


class Spy(torch.nn.Module):
    """A network of one number that remembers what it was shown."""

    def __init__(self, level=0.5):
        super().__init__()
        self.level, self.seen = torch.nn.Parameter(torch.tensor(level)), []

    def forward(self, x, time, cond):
        self.seen.append((x.detach(), cond))
        return self.level * x


def latents(n, weight=None, share=1.0, masks=None):
    # Every latent's value is its place, so that a crop shows where it comes from.
    x, y, z = (torch.linspace(-1, 1, e) for e in EXTENT)
    place = x[:, None, None] + 10 * y[None, :, None] + 100 * z[None, None, :]
    mean = place.expand(n, 1, *EXTENT).clone()
    cond = ConditionEncoder.fit(Schema(()), [{}]).encode([{}] * n)
    rows = LatentRows(mean, torch.full_like(mean, -40.0), torch.device("cpu"), weight=weight, masks=masks, share=share)
    return LatentSet(rows, cond)


def task(train, held_out=None, network=None, **options):
    plain = LatentStatistics((0.0,), (1.0,))
    usual = {"batch": 3, "learning_rate": 1e-3, "drop_all": 0.0, "drop_each": 0.0, "seed": 4}
    return DiffusionTask(network or Spy(), build(), train, plain, held_out, **(usual | options))


def test_crops_are_told_where_they_lie_and_mixed_with_whole_latents():
    # Times near 0 leave the latents nearly without noise.
    t = task(latents(5), crops=Crops((4, 2, 2), 0.5))
    t.process = build(time_mean=-12.0, time_std=0.1)
    for step in range(40):
        next(t.step(step, 0.0))
    sizes = [tuple(x.shape[2:]) for x, _ in t.network.seen]
    assert set(sizes) == {EXTENT, (4, 2, 2)} and 10 <= sizes.count(EXTENT) <= 30
    for x, cond in t.network.seen:
        assert (cond.box is None) == (tuple(x.shape[2:]) == EXTENT)
        where = coordinates(x, cond.box)
        told = where[:, 0] + 10 * where[:, 3] + 100 * where[:, 6]
        torch.testing.assert_close(told, x[:, 0], rtol=0, atol=0.01)
    again = task(latents(5), crops=Crops((4, 2, 2), 0.5))
    again.process = t.process
    next(again.step(17, 0.0))
    assert torch.equal(again.network.seen[0][0], t.network.seen[17][0]), "a pure function of the step"
    other = task(latents(5), crops=Crops((4, 2, 2), 0.5), rank=1)
    other.process = t.process
    next(other.step(17, 0.0))
    assert other.network.seen[0][0].shape == t.network.seen[17][0].shape, "all processes crop in the same steps"
    assert not torch.equal(other.network.seen[0][0], t.network.seen[17][0])


def test_both_extents_are_probed_before_a_precision_is_chosen():
    t = task(latents(5), crops=Crops((4, 2, 2), 0.5))
    for start in (0, 3, 17):
        t.network.seen.clear()
        for step in t.probes(start):
            next(t.step(step, 0.0))
        assert t.probes(start)[0] == start
        assert {tuple(x.shape[2:]) for x, _ in t.network.seen} == {EXTENT, (4, 2, 2)}
    assert list(task(latents(5)).probes(3)) == [3]
    assert list(task(latents(5), crops=Crops((4, 2, 2), 1.0)).probes(3)) == [3]


def test_a_training_is_the_same_where_latents_are_read_from_disk():
    weight = torch.rand(5, 1, *EXTENT, generator=torch.Generator().manual_seed(0)) > 0.3
    masks = torch.randint(-1, 4, (5, 8, *EXTENT), generator=torch.Generator().manual_seed(1), dtype=torch.int8)
    options = {"crops": Crops((4, 2, 2), 0.5), "drop_all": 0.3, "drop_each": 0.2}
    kept, read = (
        task(latents(5, weight, share, masks), latents(4, weight[:4], share, masks[:4]), **options)
        for share in (1.0, 0.0)
    )
    for step in (0, 1, 2, 3, 4, 5, 2):
        a, b = (next(t.step(step, 0.0))[0] for t in (kept, read))
        assert torch.equal(a, b)
        (x, one), (y, other) = (t.network.seen[-1] for t in (kept, read))
        assert torch.equal(x, y) and torch.equal(one.mask, other.mask) and one.mask.dtype == torch.int16
        assert one.mask.shape[2:] == x.shape[2:]
    averages = {key("network", p): Ema(kept.network, g) for p, g in GAMMAS.items()}
    assert kept.validate(averages) == read.validate(averages)


def test_a_validation_reads_each_row_once_an_average():
    held_out, loads = latents(4, share=0.0), []
    held_out.rows._one = lambda name, at, one=held_out.rows._one: loads.append((name, len(list(at)))) or one(name, at)
    t = task(latents(5), held_out)
    t.validate({key("network", p): Ema(t.network, g) for p, g in GAMMAS.items()})
    assert sum(n for name, n in loads if name == "mean") == 2 * 4


def test_what_layers_draw_is_a_function_of_the_step_too():
    class Dropping(Spy):
        def forward(self, x, time, cond):
            return torch.nn.functional.dropout(super().forward(x, time, cond), 0.5)

    first, again = task(latents(5), network=Dropping()), task(latents(5), network=Dropping())
    losses = [next(first.step(step, 0.0))[0] for step in range(4)]
    torch.rand(7)  # whatever else was drawn in between
    assert torch.equal(next(again.step(2, 0.0))[0], losses[2])
    other = task(latents(5), network=Dropping(), rank=1)
    assert next(other.step(2, 0.0))[0] != losses[2]


def test_padding_does_not_reach_the_loss():
    weight = torch.ones(5, 1, *EXTENT)
    weight[:, :, 6:] = 0
    clean, dirty = latents(5, weight), latents(5, weight)
    mean = dirty.rows.at(slice(None)).mean.clone()
    mean[:, :, 6:] = 1e3
    dirty = replace(dirty, rows=LatentRows(mean, torch.full_like(mean, -40.0), mean.device, weight=weight))
    a, b = (next(task(train).step(3, 0.0))[0] for train in (clean, dirty))
    assert torch.equal(a, b)
    assert next(task(latents(5)).step(3, 0.0))[0] != a


def test_validation_has_bands_and_both_averages_on_fixed_noise():
    t = task(latents(5), latents(4))
    averages = {key("network", p): Ema(t.network, g) for p, g in GAMMAS.items()}
    averages["network@short"].average["level"].fill_(0.0)
    found = t.validate(averages)
    assert found == t.validate(averages)
    assert found["loss"] == min(found["loss_long"], found["loss_short"])
    assert abs(found["loss"] - (found["low"] + found["mid"] + found["high"]) / 3) < 1e-4 * found["loss"]
    assert found["low"] != found["high"]
    assert task(latents(5)).validate(averages) == {}, "nothing is held out"


def test_the_average_that_is_named_is_taken():
    figures = {"loss_long": 1.0, "loss_short": 0.5}
    assert (choice("auto", figures), choice("long", figures), choice("auto", {})) == ("short", "long", "long")
