import pytest
import torch

from medgen.errors import InputError
from medgen.steering.per_covariate import check, wrap
from tests.steering.toy import KNOWN, cond, gaussian, score


def apart(c):
    """Cell 0 is column a with noise, cell 1 column b: independent given x."""
    mean = torch.zeros(len(c), 1, 1, 1, 2)
    std = torch.ones(len(c), 1, 1, 1, 2)
    for k in (0, 1):
        mean[..., k] = torch.where(c.present[:, k], c.values[:, k] / 2, 0.0).reshape(-1, 1, 1, 1)
        std[..., k] = torch.where(c.present[:, k], 0.5**0.5, 1.0).reshape(-1, 1, 1, 1)
    return mean, std


X = torch.randn(2, 1, 1, 1, 2, generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.5, 3.0])
ASKED = cond([[1.0, -1.0], [2.0, 0.3]])


def test_independent_columns_get_the_power_of_their_own_likelihood():
    """The score is that of p(x) p(a | x)^2 p(b | x)^0.5: the sum over columns asked alone (Liu et al. 2022)."""
    model = gaussian(apart)
    weighted = wrap(model, weights={"a": 2, "b": 0.5})
    free = score(model, X, SIGMA, ASKED.null())
    alone = [score(model, X, SIGMA, ASKED.drop(other)) - free for other in ("b", "a")]
    model.batches.clear()
    assert torch.allclose(score(weighted, X, SIGMA, ASKED), free + 2 * alone[0] + 0.5 * alone[1], atol=1e-5)
    assert model.batches == [6]


def test_dependent_columns_are_not_counted_twice():
    """Two columns that say the same: weights of 1 are the model, and 0 drops one, whatever they share."""
    view = (-1, 1, 1, 1, 1)
    mean = lambda c: (c.values * c.present).sum(1) / (1 + c.present.sum(1))  # noqa: E731
    model = gaussian(lambda c: (mean(c).reshape(view), 0.7))
    assert wrap(model, weights={"a": 1.0, "b": 1}) is model and wrap(model) is model
    out = wrap(model, weights={"a": 1, "b": 0})(X[:1], SIGMA[:1], ASKED.rows([0])).x0
    assert torch.allclose(out, model(X[:1], SIGMA[:1], ASKED.rows([0]).drop("b")).x0, atol=1e-6)


def test_a_column_that_is_not_asked_weighs_nothing():
    model = gaussian(apart)
    partly = cond([[1.0, None], [2.0, None]])
    assert torch.equal(wrap(model, weights={"b": 5.0})(X, SIGMA, partly).x0, model(X, SIGMA, partly).x0)


def test_the_interval_costs_one_pass_outside():
    model = gaussian(apart)
    out = wrap(model, weights={"a": 3}, interval=(5, 9))(X, SIGMA, ASKED).x0
    assert model.batches == [2] and torch.equal(out, model(X, SIGMA, ASKED).x0)


@pytest.mark.parametrize(
    ("weights", "word"), [({"ball": 1}, "did you mean 'ball_ml'"), ({"a": "x"}, "finite"), ({"a": True}, "finite")]
)
def test_faults(weights, word):
    with pytest.raises(InputError, match=word):
        check(KNOWN, weights=weights, interval=())
