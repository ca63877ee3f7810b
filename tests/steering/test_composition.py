import pytest
import torch

from medgen.errors import InputError
from medgen.models.seam import Prediction
from medgen.sampling.heun import sample
from medgen.steering.composition import check, decides, wrap
from tests.steering.toy import ENCODER, KNOWN, SCHEMA, cond_of, context, gaussian, score

SIGMAS = torch.cat([torch.logspace(1.7, -2, 50), torch.zeros(1)])
SHAPE = (1, 1, 16, 16, 16)


def start(seed=0):
    return SIGMAS[0] * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def measured(c):
    """p(x) = N(0, 1) and each asked column is x with noise of variance 1: p(x | n columns) has variance 1 / (1 + n)."""
    n = c.present[:, :2].sum(1)
    total = (c.values * c.present)[:, :2].sum(1)
    view = (-1, 1, 1, 1, 1)
    return (total / (1 + n)).reshape(view), (1 / (1 + n)).sqrt().reshape(view)


def standardised(**row):
    """Values whose standardised form is given."""
    names = SCHEMA.names
    return {n: v * ENCODER.scale[names.index(n)] + ENCODER.centre[names.index(n)] for n, v in row.items()}


AND = [{"where": standardised(a=0.6)}, {"where": standardised(ball_ml=1.2), "weight": 1}]


def test_and_adds_the_scores_of_the_conditions():
    model = gaussian(measured)
    x, sigma, null = torch.randn(2, 1, 2, 2, 2), torch.tensor([0.3, 2.0]), cond_of({}, {})
    both = wrap(model, context=context(), conditions=AND)
    model.batches.clear()
    total = score(both, x, sigma, null)
    assert model.batches == [6], "one batch of three passes"
    one, two = (score(model, x, sigma, cond_of(*[entry["where"]] * 2)) for entry in AND)
    assert torch.allclose(total, one + two - score(model, x, sigma, null), atol=1e-4)


def test_and_tends_to_the_product_of_gaussians():
    """p(x) p(a | x) p(b | x) = N((a + b) / 3, 1 / 3), the asked columns being independent given x."""
    both = wrap(gaussian(measured), context=context(), conditions=AND)
    x, sigma = torch.randn(1, 1, 2, 2, 2), torch.tensor([0.01])
    exact = 0.6 + 1.2 - 3 * x
    assert torch.allclose(score(both, x, sigma, cond_of({})), exact, atol=0.02)


def shifted(c):
    """Every condition moves the mean of a Gaussian of one spread."""
    return (c.values * c.present)[:, :2].sum(1).reshape(-1, 1, 1, 1, 1), 0.5


@pytest.mark.parametrize(("weights", "mean"), [((1, 1), 1.8), ((1, -0.5), 0.0), ((2, 0), 1.2), ((-1, 1), 0.6)])
def test_samples_of_and_not_and_weights(weights, mean):
    """Gaussians of one spread compose exactly at every noise level: the mean is the weighted sum."""
    conditions = [{**entry, "weight": w} for entry, w in zip(AND, weights, strict=True)]
    steered = wrap(gaussian(shifted), context=context(), conditions=conditions)
    out = sample(steered, start(), SIGMAS, cond_of({}), noise=None)
    assert abs(float(out.mean()) - mean) < 0.03 and abs(float(out.std()) - 0.5) < 0.02


def strata(x, sigma, c, *, taps=()):
    """Half the cells are women at +1, half men at -1, spread 0.2: the exact denoiser of the mixture and of a side."""
    s2 = sigma.reshape(-1, 1, 1, 1, 1) ** 2
    parts = [(0.04 * x + s2 * m) / (0.04 + s2) for m in (1.0, -1.0)]
    share = torch.sigmoid(2 * x / (0.04 + s2))
    asked, woman = (t[:, 2].reshape(-1, 1, 1, 1, 1) for t in (c.present, c.values == 0))
    share = torch.where(asked, woman.float(), share)
    return Prediction(share * parts[0] + (1 - share) * parts[1])


def test_not_a_stratum_empties_it():
    for conditions, low, high in (
        ([{"where": {"sex": "F"}, "weight": 1e-9}], 0.45, 0.55),
        ([{"where": "sex=F", "weight": -0.5}], 0.0, 0.35),
        ([{"where": {"sex": "F"}, "weight": 1}], 0.99, 1.0),
    ):
        steered = wrap(strata, context=context(), conditions=conditions)
        out = sample(steered, start(1), SIGMAS, cond_of({"sex": "M"}), noise=None)
        women = float((out > 0).float().mean())
        assert low <= women <= high, (conditions, women)


def test_named_columns_are_decided_here_and_the_rest_of_the_request_stays():
    seen = []

    def spy(x, sigma, c, *, taps=()):
        seen.append(c)
        return Prediction(x)

    row = {"a": 3.0, "ball_ml": 4.0, "sex": "F"}
    wrap(spy, context=context(), conditions=[{"where": {"a": 1}}])(
        torch.zeros(1, 1, 2, 2, 2), torch.ones(1), cond_of(row)
    )
    assert seen[0].present.tolist() == [[False, True, True], [True, True, True]]
    assert torch.equal(seen[0].rows([1]).values, cond_of({**row, "a": 1.0}).values)
    outside = wrap(spy, context=context(), conditions=[{"where": {"a": 1}}], interval=(2, 3))
    outside(torch.zeros(1, 1, 2, 2, 2), torch.ones(1), cond_of(row))
    assert seen[1].present.tolist() == [[False, True, True]]
    assert decides(conditions=[{"where": {"a": 1}}, {"where": "sex=F"}], schema=SCHEMA) == {"a", "sex"}


@pytest.mark.parametrize(
    ("conditions", "word"),
    [
        ([], "needs conditions"),
        ([{"where": {}}], "of the form"),
        ([{"wher": {"a": 1}}], "of the form"),
        ([{"where": {"a": 1}, "weigth": 2}], "did you mean 'weight'"),
        ([{"where": {"a": 1}, "weight": "much"}], "finite number"),
        ([{"where": {"b": 1}}], "unknown covariate 'b'"),
        ([{"where": {"sex": "X"}}], "no level 'X'"),
        ([{"where": {"a": [1, 3]}}], "several values"),
        ([{"where": {"a": None}}], "asks for nothing"),
        ([{"where": {"a": 40}}], "force"),
        (["a=1"], "of the form"),
    ],
)
def test_faults_are_one_sentence(conditions, word):
    with pytest.raises(InputError, match=word):
        check(KNOWN, conditions=conditions, interval=(), force=False)
    check(KNOWN, conditions=[{"where": {"a": 40}}], interval=(), force=True)
