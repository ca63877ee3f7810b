"""Extra cases make up the share of the patches that was asked for, however many they are."""

import numpy as np
import pytest
import torch

from medgen.errors import InputError
from medgen.segment.train import train
from medgen.store.pool import Mixed, Order, Pool, Resident

SMALL = {"labels": 2, "widths": (4, 8), "batch": 2, "device": "cpu", "precision": "float32", "steps": 2}


def pairs(n, seed=0):
    rng = np.random.default_rng(seed)
    label = np.zeros((8, 8, 8), np.uint8)
    label[2:6, 2:6, 2:6] = 1
    return [(rng.uniform(-1, 1, (1, 8, 8, 8)).astype(np.float16), label) for _ in range(n)]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 2 / 3, 0.75])
def test_the_share_is_exact_at_any_point_and_each_side_takes_turns(share):
    mixed = Mixed(Order(3, [0], [0, 1]), Order(50, [0], [0, 6]), share)
    drawn = mixed(0, 600)
    second = drawn >= 3
    for n in (7, 60, 599, 600):
        assert abs(second[:n].sum() - share * n) <= 1
    counts = np.bincount(drawn, minlength=53)
    for own in (counts[:3], counts[3:]):
        assert np.ptp(own) <= 1, "each side is an endless list of permutations"
    assert np.array_equal(mixed(100, 50), drawn[100:150]), "keyed by the step alone"


def test_all_of_one_side():
    both = Order(2, [0], [0, 1]), Order(4, [0], [0, 6])
    assert set(Mixed(*both, 0.0)(0, 40).tolist()) == {0, 1}
    assert set(Mixed(*both, 1.0)(0, 40).tolist()) == {2, 3, 4, 5}


def test_volumes_on_the_device_are_mixed_and_without_a_mix_are_as_before():
    arrays = [torch.zeros(5, 1, 2, 2, 2)]
    cases, rows = Resident(arrays, seed=3, mix=(3, 0.5)).at(7, 4)
    assert np.array_equal(cases, rows) and (cases >= 2).sum() == 2
    plain = Resident(arrays, seed=3).at(7, 4)[0]
    assert np.array_equal(plain, Order(5, [3], [0, 1])(28, 4))


def test_a_pool_of_a_part_mixes_as_all_volumes_do():
    arrays = torch.arange(12.0).view(12, 1, 1, 1, 1)
    part = Pool(lambda n: (arrays[n],), 12, resident=4, device=torch.device("cpu"), seed=3, shows=2, mix=(9, 0.25))
    shown = np.concatenate([part.at(step, 4)[0] for step in range(200)])
    part.close()
    assert abs((shown >= 3).mean() - 0.25) < 0.01 and set(shown.tolist()) == set(range(12))


def test_a_segmenter_of_a_part_of_its_cases_at_a_time_sees_them_all_and_goes_on_alike(tmp_path):
    """What a device cannot hold takes turns on it, and the training is as reproducible as one of all."""
    images = [image for image, _ in pairs(5, 1)]
    first = train(pairs(2), tmp_path / "a", extra=pairs(5, 1), resident=3, **SMALL)
    again = train(pairs(2), tmp_path / "b", extra=pairs(5, 1), resident=3, **SMALL)
    whole = train(pairs(2), tmp_path / "c", extra=pairs(5, 1), **SMALL)
    enough = train(pairs(2), tmp_path / "d", extra=pairs(5, 1), resident=7, **SMALL)
    assert np.array_equal(first.features(images[0]), again.features(images[0]))
    assert not np.array_equal(first.features(images[0]), whole.features(images[0]))
    assert np.array_equal(enough.features(images[0]), whole.features(images[0]))


def test_a_segmenter_says_what_it_was_mixed_of(tmp_path):
    done = train(pairs(2), tmp_path / "a", extra=pairs(5, 1), share=0.25, **SMALL)
    assert done.training["cases"] == 2 and done.training["extra"] == 5 and done.training["share"] == 0.25
    other = train(pairs(2), tmp_path / "b", extra=pairs(5, 1), share=0.75, **SMALL)
    image = pairs(1, 2)[0][0]
    assert not np.array_equal(done.features(image), other.features(image))
    assert "share" not in train(pairs(2), tmp_path / "c", **SMALL).training
    with pytest.raises(InputError, match="share between 0 and 1"):
        train(pairs(2), tmp_path / "d", extra=pairs(1), share=1.0, **SMALL)
    with pytest.raises(InputError, match="share between 0 and 1"):
        train([], tmp_path / "d", extra=pairs(1), **SMALL)
