import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric
from scipy import stats

from medgen.measure.agreement import agreement
from medgen.measure.image import mean_pairwise_ssim, psnr_db, ssim
from medgen.measure.overlap import dice
from medgen.measure.volumes import label_volumes_ml

RNG = np.random.default_rng(0)


def test_dice_equals_monai():
    a, b = RNG.integers(0, 4, (2, 9, 8, 7))
    onehot = [torch.nn.functional.one_hot(torch.from_numpy(v), 4).movedim(-1, 0)[None].float() for v in (a, b)]
    expected = DiceMetric(include_background=False, reduction="none")(*onehot)[0].tolist()
    assert dice(a, b, [1, 2, 3]) == pytest.approx(expected, rel=1e-6)
    assert np.isnan(dice(a, b, [9])[0]) and dice(a, a, [1]) == [1.0]


def test_agreement_against_scipy_and_closed_forms():
    x = RNG.normal(30, 10, 50)
    y = 0.8 * x + RNG.normal(2, 3, 50)
    found = agreement(x, y)
    line = stats.linregress(x, y)
    assert found.r == pytest.approx(line.rvalue) and found.slope == pytest.approx(line.slope)
    shifted = agreement(x, x + 5)
    assert shifted.r == pytest.approx(1) and shifted.bias == pytest.approx(5)
    assert shifted.ccc == pytest.approx(2 * x.var() / (2 * x.var() + 25))
    assert agreement(x, x).ccc == pytest.approx(1)
    assert np.isnan(agreement(x[:2], y[:2]).r) and np.isnan(agreement(np.ones(5), y[:5]).r)


def test_volumes_use_the_determinant():
    label = np.zeros((10, 10, 10), int)
    label[:2], label[5, :3, 0] = 7, -3
    affine = np.diag([-2.0, 3.0, 0.5, 1.0])
    assert label_volumes_ml(label, [7, -3, 5], affine) == pytest.approx({7: 0.6, -3: 0.009, 5: 0.0})


def test_psnr_and_ssim():
    a = RNG.uniform(-1, 1, (1, 12, 12, 12))
    assert psnr_db(a, a) == np.inf and psnr_db(a, a + 0.2) == pytest.approx(20)
    assert ssim(a, a) == pytest.approx(1, abs=1e-5)
    assert ssim(a, a + RNG.normal(0, 0.3, a.shape)) < 0.95
    alike = [a + RNG.normal(0, 0.05, a.shape) for _ in range(4)]
    different = list(RNG.uniform(-1, 1, (4, 1, 12, 12, 12)))
    assert mean_pairwise_ssim(different) < 0.3 < 0.9 < mean_pairwise_ssim(alike)
    assert mean_pairwise_ssim(different, pairs=3) == mean_pairwise_ssim(different, pairs=3)
