import torch

from medgen.models.condition import Condition
from medgen.models.seam import Prediction
from medgen.steering.cfg import wrap


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
