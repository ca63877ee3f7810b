import numpy as np
import torch

from medgen.store.patches import PatchSampler

VOLUMES = torch.randn(5, 2, 10, 12, 9, generator=torch.Generator().manual_seed(0)).half()
LABELS = torch.randint(-1, 4, (5, 1, 10, 12, 9), dtype=torch.int16)


def test_patches_are_the_slices_they_say_and_arrays_stay_together():
    batch = PatchSampler([VOLUMES, LABELS], (4, 5, 6), 8, seed=1)(3)
    image, label = batch.arrays
    assert image.dtype == torch.float32 and label.dtype == torch.int64
    for b, (case, (x, y, z)) in enumerate(zip(batch.cases, batch.starts, strict=True)):
        where = (case, slice(None), slice(x, x + 4), slice(y, y + 5), slice(z, z + 6))
        assert torch.equal(image[b], VOLUMES[where].float())
        assert torch.equal(label[b], LABELS[where].long())


def test_a_step_is_a_pure_function_of_seed_step_and_rank():
    make = lambda **k: PatchSampler([VOLUMES], (4, 4, 4), 6, **{"seed": 1, **k})(7).arrays[0]  # noqa: E731
    assert torch.equal(make(), make())
    assert not torch.equal(make(), make(seed=2))
    assert not torch.equal(make(), make(rank=1))


def test_every_case_comes_once_a_pass_and_positions_cover_the_volume():
    sampler = PatchSampler([VOLUMES], (4, 4, 4), 5, seed=0)
    batches = [sampler(step) for step in range(200)]
    assert all(sorted(b.cases) == [0, 1, 2, 3, 4] for b in batches)
    starts = np.concatenate([b.starts for b in batches])
    assert starts.min(0).tolist() == [0, 0, 0] and starts.max(0).tolist() == [6, 8, 5]
    counts = np.bincount(starts[:, 0], minlength=7)
    assert counts.min() > 0.6 * counts.mean()


def test_the_gather_of_accelerators_equals_the_loop_of_the_cpu():
    sampler = PatchSampler([VOLUMES], (4, 5, 6), 8, seed=1)
    batch = sampler(0)
    assert torch.equal(sampler.gather(VOLUMES, batch.cases, batch.starts), batch.arrays[0])


def test_patches_larger_than_the_volume_are_the_volume():
    assert PatchSampler([VOLUMES], (64, 64, 64), 2, seed=0)(0).arrays[0].shape == (2, 2, 10, 12, 9)
