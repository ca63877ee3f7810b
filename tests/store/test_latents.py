import numpy as np
import pytest
import torch

from medgen.errors import InputError
from medgen.store import latent_rows
from medgen.store.latent_rows import LatentRows
from medgen.store.latent_writer import ENCODING, LatentWriter
from medgen.store.latents import Latents, LatentStatistics
from medgen.store.patches import PatchSampler
from tests.encodings import write_latents

CPU = torch.device("cpu")


def test_statistics_are_those_of_draws_over_the_whole_set(tmp_path):
    rng = np.random.default_rng(0)
    mean = rng.normal([1.0, -2.0], [0.5, 3.0], size=(40, 6, 6, 6, 2)).transpose(0, 4, 1, 2, 3).astype(np.float32)
    logvar = rng.normal(np.log(0.25), 0.1, mean.shape).astype(np.float32)
    stored = write_latents(tmp_path, mean, logvar, range(40))
    axes = (0, 2, 3, 4)
    variance = mean.var(axis=axes, dtype=np.float64) + np.exp(logvar.astype(np.float64)).mean(axis=axes)
    np.testing.assert_allclose(stored.statistics.mean, mean.mean(axis=axes, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(stored.statistics.std, np.sqrt(variance), rtol=1e-12)
    some = LatentStatistics.measure(mean, logvar, [3, 7])
    np.testing.assert_allclose(some.mean, mean[[3, 7]].mean(axis=axes, dtype=np.float64), rtol=1e-12)
    z = torch.from_numpy(np.array(stored.mean)) + torch.from_numpy(np.exp(0.5 * logvar)) * torch.randn(mean.shape)
    x = stored.statistics.standardise(z)
    assert torch.allclose(x.std(dim=(0, 2, 3, 4)), torch.ones(2), atol=0.02)
    assert torch.allclose(stored.statistics.restore(x), z, atol=1e-5)


def test_rows_and_damage(tmp_path):
    array = np.zeros((4, 1, 2, 2, 2), np.float32)
    stored = write_latents(tmp_path, array, array, [0, 0, 1, 1], [False, True, False, True])
    assert stored.rows([1]) == [2, 3] and stored.rows([0, 1], mirrored=False) == [0, 2]
    (tmp_path / "mean.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match="damaged"):
        Latents(tmp_path)


def row_of(r):
    rng = np.random.default_rng(r)
    return {"mean": rng.normal(size=(2, 3, 4, 5)).astype(np.float32), "logvar": np.full((2, 3, 4, 5), -r, np.float32)}


def test_an_encoding_that_was_killed_goes_on(tmp_path):
    whole = write_latents(
        tmp_path / "whole", *(np.stack([row_of(r)[k] for r in range(6)]) for k in ("mean", "logvar")), range(6)
    )
    folder = tmp_path / "killed"
    killed = LatentWriter(folder, 6)
    for r in range(4):
        killed.add(row_of(r), r, copy=r % 2, volumes_ml={"gm_ml": float(r)} if r % 2 else None)
        if r == 2:
            killed.commit(now=True)
    for stream in killed._streams.values():
        stream.write(b"half of a row")  # after the last commit, and on disk
        stream.flush()
    with LatentWriter(folder, 6) as again:
        assert again.cases == [0, 1, 2]
        for r in range(3, 6):
            again.add(row_of(r), r)
        stored = again.finish(None, set(range(6)))
    assert (folder / "mean.npy").read_bytes() == (tmp_path / "whole" / "mean.npy").read_bytes()
    assert np.array_equal(stored.logvar, whole.logvar) and stored.statistics == whole.statistics
    assert stored.copies == [0, 1, 0, 0, 0, 0] and stored.volumes_ml[1] == {"gm_ml": 1.0}
    assert not (folder / ENCODING).exists() and Latents.whole(folder)


def test_files_that_were_moved_before_a_kill_are_found_again(tmp_path):
    with LatentWriter(tmp_path, 2) as writer:
        for r in range(2):
            writer.add(row_of(r), r)
        writer.commit(now=True)
    (tmp_path / ENCODING / "logvar.npy").replace(tmp_path / "logvar.npy")  # as far as the renaming came
    with LatentWriter(tmp_path, 2) as again:
        assert again.cases == [0, 1]
        stored = again.finish(None, {0, 1})
    assert np.array_equal(stored.logvar[1], row_of(1)["logvar"]) and np.array_equal(stored.mean[0], row_of(0)["mean"])


def test_an_encoding_of_another_length_or_without_its_files_begins_again(tmp_path):
    with LatentWriter(tmp_path, 3) as writer:
        writer.add(row_of(0), 0)
        writer.commit(now=True)
    with LatentWriter(tmp_path, 4) as other:
        assert other.cases == []
    (tmp_path / ENCODING / "mean.npy").unlink()
    with LatentWriter(tmp_path, 3) as other:
        assert other.cases == []


def test_a_file_that_lost_rows_is_not_filled_with_zeros(tmp_path):
    with LatentWriter(tmp_path, 3) as writer:
        for r in range(2):
            writer.add(row_of(r), r)
        writer.commit(now=True)
    path = tmp_path / ENCODING / "mean.npy"
    path.write_bytes(path.read_bytes()[:-7])
    with LatentWriter(tmp_path, 3) as again:
        assert again.cases == []


def test_what_is_asked_for_alone_is_read(tmp_path, monkeypatch):
    mean = np.random.default_rng(0).normal(size=(7, 2, 4, 4, 6)).astype(np.float32)
    masks = np.zeros((7, 8, 4, 4, 6), np.int8)
    rows = LatentRows(mean, mean, CPU, masks=masks, share=0.0)
    read = []
    monkeypatch.setattr(latent_rows, "_tensor", lambda array: read.append(array.shape) or torch.from_numpy(array))
    assert torch.equal(rows.means([3, 1]), torch.from_numpy(mean[[3, 1]])) and set(read) == {(2, 4, 4, 6)}
    read.clear()
    assert rows.masks(slice(0, 2)).dtype == torch.int16 and read == [(8, 4, 4, 6)] * 2
    assert LatentRows(mean, mean, CPU).masks([0]) is None


def test_an_accelerator_crops_weights_and_masks_as_a_cpu_does():
    rng = np.random.default_rng(0)
    arrays = [
        torch.from_numpy(rng.normal(size=(5, 2, 6, 6, 6)).astype(np.float32)),
        torch.from_numpy(rng.random((5, 1, 6, 6, 6)) > 0.5),
        torch.from_numpy(rng.integers(-1, 9, (5, 8, 6, 6, 6)).astype(np.int8)),
    ]
    options = {"seed": 3, "kinds": ("latent", "latent", "label"), "label_dtype": torch.int16}
    one, other = (PatchSampler(arrays, (4, 6, 2), 3, batched=batched, **options) for batched in (False, True))
    for step in range(4):
        a, b = one(step).arrays, other(step).arrays
        assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("share", [1.0, 0.0])
def test_rows_are_the_same_on_the_device_and_on_disk(tmp_path, share):
    mean = np.random.default_rng(0).normal(size=(7, 2, 4, 4, 6)).astype(np.float32)
    masks = np.random.default_rng(1).integers(-1, 5, (7, 8, 4, 4, 6)).astype(np.int8)
    stored = write_latents(tmp_path, mean, mean - 3, range(7), masks=masks)
    weight = np.random.default_rng(2).random((7, 1, 4, 4, 6)) > 0.5
    index = [6, 1, 2, 5, 4]
    rows = LatentRows(stored.mean, stored.logvar, CPU, index=index, weight=weight, masks=stored.masks, share=share)
    assert rows.resident == (share > 0) and len(rows) == 5
    assert (rows.channels, rows.extent) == (2, (4, 4, 6))
    for at in (slice(1, 4), [1, 2, 3]):
        found = rows.at(at)
        assert torch.equal(found.mean, torch.from_numpy(mean[[1, 2, 5]]))
        assert found.weight.dtype == torch.float32 and found.mask.dtype == torch.int16
        assert np.array_equal(found.mask.numpy(), masks[[1, 2, 5]])
    whole, cropped = rows.samplers([(4, 4, 6), (2, 2, 2)], 3, seed=4)
    for step in (0, 1, 7, 2, 3):
        for sampler in (whole, cropped):
            batch = sampler(step)
            found = rows.named(batch.arrays)
            for b, (case, (x, y, z)) in enumerate(zip(batch.cases, batch.starts, strict=True)):
                i, j, k = sampler.patch
                where = (slice(None), slice(x, x + i), slice(y, y + j), slice(z, z + k))
                assert np.array_equal(found.mean[b].numpy(), mean[index[case]][where])
                assert np.array_equal(found.mask[b].numpy(), masks[index[case]][where])
                assert np.array_equal(found.weight[b].numpy() > 0, weight[index[case]][where])


def test_a_step_sees_the_same_wherever_the_rows_lie(tmp_path):
    mean = np.random.default_rng(0).normal(size=(7, 2, 4, 4, 4)).astype(np.float32)
    stored = write_latents(tmp_path, mean, mean, range(7))
    kept, read = (LatentRows(stored.mean, stored.logvar, CPU, share=share) for share in (1.0, 0.0))
    (one,), (other,) = (rows.samplers([(2, 4, 4)], 3, seed=1, rank=2) for rows in (kept, read))
    for step in (0, 1, 2, 3, 9, 10, 4):
        a, b = one(step), other(step)
        assert np.array_equal(a.cases, b.cases) and all(map(torch.equal, a.arrays, b.arrays))
