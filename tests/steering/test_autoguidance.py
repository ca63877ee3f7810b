from pathlib import Path

import pytest
import torch

from medgen.errors import InputError
from medgen.sampling.heun import sample
from medgen.steering.autoguidance import check, wrap
from tests.steering.toy import cond, context, gaussian

COND = cond([[None, None]])
STRONG = gaussian(lambda c: (1.0, 0.5))
WEAK = gaussian(lambda c: (0.7, 0.5))


def test_the_same_model_and_a_scale_of_one_are_the_identity():
    assert wrap(STRONG, context=context(), scale=1.0) is STRONG
    same = wrap(STRONG, context=context(other=lambda folder: STRONG), weak=Path("w"), scale=2.5)
    x = torch.randn(1, 1, 2, 2, 2)
    assert torch.equal(same(x, torch.ones(1), COND).x0, STRONG(x, torch.ones(1), COND).x0)


def test_the_error_that_the_weak_model_has_more_of_is_taken_away():
    """Truth at 1.1, the model at 1.0, the weak one at 0.7: a scale of 4/3 lands on the truth."""
    guided = wrap(STRONG, context=context(other=lambda folder: WEAK), weak=Path("w"), scale=4 / 3)
    sigmas = torch.cat([torch.logspace(2, -2, 60), torch.zeros(1)])
    x = 100 * torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    out = sample(guided, x, sigmas, COND, noise=None)
    assert abs(float(out.mean()) - 1.1) < 0.03 and abs(float(out.std()) - 0.5) < 0.02


def test_outside_the_interval_the_weak_model_rests():
    guided = wrap(STRONG, context=context(other=lambda folder: WEAK), weak=Path("w"), scale=2.0, interval=(0, 1))
    WEAK.batches.clear()
    guided(torch.zeros(1, 1, 2, 2, 2), torch.full((1,), 2.0), COND)
    assert WEAK.batches == []


def test_faults(tmp_path):
    with pytest.raises(InputError, match="needs 'weak'"):
        check(None, weak=Path(), interval=())
    with pytest.raises(InputError, match="is not a model folder"):
        check(None, weak=str(tmp_path), interval=())
