import numpy as np
import torch

from medgen.store.centres import Centres, Chances
from medgen.store.patches import PatchSampler

SHAPE = (24, 24, 24)


def cohort():
    """Four cases: a large label 1, a label 2 of eight voxels in cases 0 to 2, and case 3 without a label."""
    image = np.full((4, 1, *SHAPE), -1.0, dtype=np.float16)
    image[:, :, 4:20, 4:20, 4:20] = 0.2
    label = np.zeros((4, *SHAPE), dtype=np.int16)
    label[:, 6:18, 6:18, 6:18] = 1
    for case in range(3):
        label[case, 8 + case : 10 + case, 14:16, 10:12] = 2
    label[3] = -1
    return image, label


def centres_of(image, label):
    pairs = [(i, None if (row == -1).all() else row) for i, row in zip(image, label, strict=True)]
    return Centres.build(pairs, 3, seed=0)


def drawn(chances, cases, times=400):
    image, label = cohort()
    table = centres_of(image, label)
    out = [table.draw(chances, np.array(cases), np.random.default_rng([0, t])) for t in range(times)]
    return image, label, np.concatenate([v for v, _ in out]), np.concatenate([f for _, f in out]), np.tile(cases, times)


def test_tables_hold_voxels_of_their_class():
    image, label = cohort()
    table = centres_of(image, label)
    assert table.counts.tolist() == [[4096, 1720, 8]] * 3 + [[4096, 0, 0]]
    for case in range(4):
        for c in range(3):
            voxels = table.voxels[table.bounds[case, c] : table.bounds[case, c + 1]]
            assert len(voxels) == min(table.counts[case, c], 2048)
            wanted = image[case, 0] > -0.9 if c == 0 else label[case] == c
            assert wanted.reshape(-1)[voxels].all()


def test_chances_are_kept_and_labels_are_as_likely_whatever_their_size():
    image, label, voxels, found, cases = drawn(Chances(foreground=0.3, labels=0.4), [0, 1, 2, 2])
    assert abs(found.mean() - 0.7) < 0.03
    ids = label[cases[found], *voxels[found].T]
    inside = image[cases[found], 0, *voxels[found].T] > -0.9
    assert inside.all()
    assert abs((ids == 2).mean() - 0.2 / 0.7) < 0.04  # half of "labels"; the foreground hardly ever meets it


def test_rare_labels_come_first():
    _, label, voxels, found, cases = drawn(Chances(rare=1.0), [0, 1, 2, 3])
    assert (found == (cases != 3)).all(), "a case without labels is placed uniformly"
    assert (label[cases[found], *voxels[found].T] == 2).mean() > 0.98


def test_patches_hold_what_they_are_centred_on_and_stay_inside():
    image, label = cohort()
    arrays = [torch.from_numpy(image), torch.from_numpy(label)[:, None]]
    options = {"centres": centres_of(image, label), "chances": Chances(rare=1.0)}
    sampler = PatchSampler(arrays, (6, 6, 6), 8, seed=0, **options)
    holds = []
    for step in range(30):
        batch = sampler(step)
        assert batch.starts.min() >= 0 and (batch.starts + 6 <= 24).all()
        holds += [(ids == 2).any().item() for ids, case in zip(batch.arrays[1], batch.cases, strict=True) if case != 3]
    assert np.mean(holds) > 0.98
    uniform = PatchSampler(arrays, (6, 6, 6), 8, seed=0)
    assert np.mean([(ids == 2).any().item() for s in range(30) for ids in uniform(s).arrays[1]]) < 0.2


def test_a_cohort_without_labels_has_a_foreground():
    image, _ = cohort()
    table = Centres.build([(i, None) for i in image], 0, seed=0)
    voxels, found = table.draw(Chances(foreground=0.5, labels=0.5), np.arange(4).repeat(50), np.random.default_rng(0))
    assert 0.3 < found.mean() < 0.7
    assert (image[0, 0][tuple(voxels[found].T)] > -0.9).all()
