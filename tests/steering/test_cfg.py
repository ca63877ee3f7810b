import pytest
import torch

from medgen.errors import InputError
from medgen.models.condition import Condition
from medgen.models.seam import Prediction
from medgen.sampling.heun import sample
from medgen.steering.cfg import check, wrap
from tests.steering.toy import cond as cond_ab
from tests.steering.toy import gaussian


def model(x, sigma, cond, *, taps=()):
    """x0 = the condition's value where asked, else -1."""
    value = torch.where(cond.present[:, 0], cond.values[:, 0], -1.0)
    model.batches.append(len(x))
    return Prediction(x * 0 + value.reshape(-1, 1, 1, 1, 1))


model.batches = []
COND = Condition(("age",), torch.tensor([[2.0], [3.0]]), torch.ones(2, 1, dtype=torch.bool))
X = torch.zeros(2, 1, 2, 2, 2)


def test_extrapolates_from_null_to_condition_in_one_batch():
    model.batches.clear()
    out = wrap(model, scale=1.5)(X, torch.ones(2), COND).x0
    assert torch.allclose(out[:, 0, 0, 0, 0], torch.tensor([-1 + 1.5 * 3, -1 + 1.5 * 4]))
    assert model.batches == [4]


def test_scale_one_is_the_model_and_zero_the_unconditional():
    assert wrap(model, scale=1.0) is model
    assert torch.allclose(wrap(model, scale=0.0)(X, torch.ones(2), COND).x0, torch.full_like(X, -1))


def test_outside_the_interval_the_model_alone_is_called():
    guided = wrap(model, scale=3.0, interval=(0.5, 2.0))
    for sigma, inside in ((0.5, False), (0.51, True), (2.0, True), (2.1, False)):
        model.batches.clear()
        out = guided(X, torch.full((2,), sigma), COND).x0
        assert model.batches == [4 if inside else 2]
        assert torch.equal(out, wrap(model, scale=3.0 if inside else 1.0)(X, torch.ones(2), COND).x0)


def test_a_batch_on_both_sides_of_the_interval_is_steered_row_by_row():
    out = wrap(model, scale=2.0, interval=(0.5, 2.0))(X, torch.tensor([1.0, 3.0]), COND).x0
    assert out[:, 0, 0, 0, 0].tolist() == [5.0, 3.0]


def test_guided_gaussians_of_one_spread_are_the_gaussian_of_the_extrapolated_mean():
    """Both scores are linear with one slope: p(x) (p(x | c) / p(x))^w is N(m0 + w (m1 - m0), s^2) at every sigma."""
    exact = gaussian(lambda c: (torch.where(c.present[:, 0], c.values[:, 0], 0.0).reshape(-1, 1, 1, 1, 1), 0.5))
    sigmas = torch.cat([torch.logspace(2, -2, 60), torch.zeros(1)])
    x = 100 * torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    out = sample(wrap(exact, scale=3.0), x, sigmas, cond_ab([[1.0, None], [-0.5, None]]), noise=None)
    assert torch.allclose(out.mean((1, 2, 3, 4)), torch.tensor([3.0, -1.5]), atol=0.03)
    assert torch.allclose(out.std((1, 2, 3, 4)), torch.tensor(0.5), atol=0.02)


def test_rescale_brings_back_the_spread_of_the_conditional_estimate():
    def wide(x, sigma, cond, *, taps=()):
        return Prediction(x * torch.where(cond.present[:, 0], 2.0, 1.0).reshape(-1, 1, 1, 1, 1))

    x = torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    axes = (1, 2, 3, 4)
    plain, half, whole = (wrap(wide, scale=4.0, rescale=r)(x, torch.ones(2), COND).x0 for r in (0.0, 0.5, 1.0))
    asked = wide(x, torch.ones(2), COND).x0
    assert torch.allclose(plain.std(axes), 2.5 * asked.std(axes))
    assert torch.allclose(whole.std(axes), asked.std(axes))
    assert torch.allclose(half, 0.5 * (plain + whole), atol=1e-6)


def test_features_are_those_of_the_conditional_pass():
    exact = gaussian(lambda c: (c.present[:, :1].float().reshape(-1, 1, 1, 1, 1), 1.0))
    x = torch.randn(2, 1, 2, 2, 2)
    for sigma in ([1.0, 1.0], [1.0, 9.0]):
        out = wrap(exact, scale=2.0, interval=(0, 5))(x, torch.tensor(sigma), cond_ab([[1, 2], [3, 4]]), taps=("x",))
        assert torch.equal(out.features["x"], x)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"interval": [2, 1]}, "low < high"),
        ({"interval": [1]}, "low < high"),
        ({"interval": ["a", 2]}, "low < high"),
        ({"interval": [0, float("inf")]}, "low < high"),
        ({"rescale": 1.5}, "between 0 and 1"),
    ],
)
def test_values_out_of_bounds_are_refused(options, word):
    with pytest.raises(InputError, match=word):
        check(None, **{"interval": (), "rescale": 0.0, "scale": 1.0, **options})
