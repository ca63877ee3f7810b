import pytest
import torch

from medgen.errors import InputError
from medgen.models.seam import Prediction
from medgen.steering.threshold import check, wrap

X = torch.cat([torch.linspace(-2, 2, 1000), torch.linspace(-10, 10, 1000)]).reshape(2, 1, 10, 10, 10)


def identity(x, sigma, cond, *, taps=()):
    return Prediction(x)


def test_static_clips():
    assert torch.equal(wrap(identity, limit=3.0)(X, torch.ones(2), None).x0, X.clamp(-3, 3))


def test_dynamic_is_each_samples_own_and_keeps_the_bound():
    out = wrap(identity, limit=3.0, quantile=0.9)(X, torch.ones(2), None).x0
    assert torch.equal(out[0], X[0]), "below the limit nothing is touched"
    s = X[1].abs().flatten().sort().values[899]
    assert abs(float(s) - 9.0) < 0.02 and torch.allclose(out[1], X[1].clamp(-s, s) * 3 / s)
    assert out.abs().max() <= 3.0 + 1e-6
    assert torch.allclose(wrap(identity, limit=3.0, quantile=1.0)(X, torch.ones(2), None).x0[1], X[1] * 0.3)


def test_faults():
    with pytest.raises(InputError, match="above 0"):
        check(None, limit=0.0, quantile=0.5)
    with pytest.raises(InputError, match="between 0 and 1"):
        check(None, limit=1.0, quantile=99.5)
