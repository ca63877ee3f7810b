import numpy as np
import pytest
import torch

from medgen.errors import InputError
from medgen.store.latents import Latents, LatentStatistics


def test_statistics_are_those_of_draws_over_the_whole_set(tmp_path):
    rng = np.random.default_rng(0)
    mean = rng.normal([1.0, -2.0], [0.5, 3.0], size=(40, 6, 6, 6, 2)).transpose(0, 4, 1, 2, 3).astype(np.float32)
    logvar = np.full_like(mean, np.log(0.25))
    statistics = LatentStatistics.measure(mean, logvar)
    assert np.allclose(statistics.mean, [1, -2], atol=0.1)
    assert np.allclose(statistics.std, np.sqrt([0.25 + 0.25, 9 + 0.25]), rtol=0.02)
    stored = Latents.write(tmp_path, mean, logvar, range(40), [False] * 40, statistics)
    z = torch.from_numpy(np.array(stored.mean)) + 0.5 * torch.randn(mean.shape)
    x = stored.statistics.standardise(z)
    assert torch.allclose(x.std(dim=(0, 2, 3, 4)), torch.ones(2), atol=0.02)
    assert torch.allclose(stored.statistics.restore(x), z, atol=1e-5)


def test_rows_and_damage(tmp_path):
    array = np.zeros((4, 1, 2, 2, 2), np.float32)
    flat = LatentStatistics((0.0,), (1.0,))
    stored = Latents.write(tmp_path, array, array, [0, 0, 1, 1], [False, True, False, True], flat)
    assert stored.rows([1]) == [2, 3] and stored.rows([0, 1], mirrored=False) == [0, 2]
    (tmp_path / "mean.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(InputError, match="damaged"):
        Latents(tmp_path)
