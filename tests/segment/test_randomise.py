"""Images of random contrast: made from labels alone, fresh at every step, the same for the same step."""

import numpy as np
import torch

from medgen.segment.randomise import Randomisation, randomise
from medgen.segment.segmenter import Segmenter
from medgen.segment.train import train

PLAIN = Randomisation(deviation=0.0, blobs=1, blur_voxels=0.0, bias=0.0, gamma=0.0, noise=0.0)


def ids(batch=2, extent=(16, 18, 14)):
    label = torch.zeros(batch, *extent, dtype=torch.long)
    label[:, 3:8, 4:12, 3:10], label[:, 8:12, 4:12, 3:10] = 1, 2
    return label


def test_without_its_disturbances_an_image_is_one_level_a_region():
    label = ids()
    image = randomise(label, 3, 2, PLAIN, seed=0, step=0)
    assert image.shape == (2, 2, 16, 18, 14) and image.dtype == torch.float32
    for b in range(2):
        for c in range(2):
            levels = [image[b, c][label[b] == k] for k in range(3)]
            assert all(level.std() < 1e-5 for level in levels)
            means = sorted(float(level.mean()) for level in levels)
            assert np.isclose(means[0], -1, atol=1e-4) and np.isclose(means[2], 1, atol=1e-4)
    assert not torch.allclose(image[0], image[1]) and not torch.allclose(image[:, 0], image[:, 1])


def test_it_is_keyed_by_seed_and_step_and_leaves_labels_alone():
    label = ids()
    before = label.clone()
    first = randomise(label, 3, 1, Randomisation(), seed=1, step=5)
    assert torch.equal(first, randomise(label, 3, 1, Randomisation(), seed=1, step=5))
    assert not torch.equal(first, randomise(label, 3, 1, Randomisation(), seed=1, step=6))
    assert not torch.equal(first, randomise(label, 3, 1, Randomisation(), seed=2, step=5))
    assert torch.equal(label, before) and torch.isfinite(first).all()
    assert first.min() >= -1 and first.max() <= 1
    unknown = label.clone()
    unknown[unknown == 0] = -1
    assert torch.equal(first, randomise(unknown, 3, 1, Randomisation(), seed=1, step=5)), "-1 is background"


def test_the_background_falls_into_blobs_and_any_region_may_be_the_brighter():
    empty = torch.zeros(1, 24, 24, 24, dtype=torch.long)
    many = Randomisation(**{**PLAIN.__dict__, "blobs": 6})
    levels = [len(randomise(empty, 2, 1, many, seed=0, step=s).round(decimals=3).unique()) for s in range(12)]
    assert min(levels) == 1 and 3 <= max(levels) <= 6
    label = ids(1)
    brighter = [
        bool(image[label == 1].mean() > image[label == 2].mean())
        for s in range(24)
        for image in [randomise(label, 3, 1, PLAIN, seed=0, step=s)[:, 0]]
    ]
    assert 5 < sum(brighter) < 19


def test_blur_mixes_neighbours_and_keeps_what_is_flat():
    label = ids(1)
    blurred = Randomisation(**{**PLAIN.__dict__, "blur_voxels": 1.5})
    pairs = [[randomise(label, 3, 1, o, seed=3, step=s)[0, 0] for o in (PLAIN, blurred)] for s in range(8)]
    sharp, soft = (
        np.mean([[float(p.diff(dim=d).abs().max()) for d in range(3)] for p in side])
        for side in zip(*pairs, strict=True)
    )
    assert soft < 0.7 * sharp
    for one in (pair[1] for pair in pairs):
        assert one[15].std() < 1e-3, "no dark rim at the border"


def test_training_on_it_never_sees_the_images(tmp_path):
    label = ids(1)[0].numpy().astype(np.uint8)
    small = {"labels": 3, "widths": (4, 8), "batch": 1, "device": "cpu", "precision": "float32", "steps": 3}
    rng = np.random.default_rng(0)
    found = []
    for k in range(2):
        cases = [(rng.uniform(-1, 1, (1, *label.shape)).astype(np.float16), label)]
        one = train(cases, tmp_path / str(k), randomisation=Randomisation(), **small)
        found.append(one.features(np.ones((1, *label.shape)) * 0.3))
    np.testing.assert_array_equal(*found)
    assert Segmenter.load(tmp_path / "0", device="cpu").training["randomisation"]["blobs"] == 6
