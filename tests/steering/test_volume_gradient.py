import pytest
import torch

from medgen.cohort.joint import Joint
from medgen.errors import InputError
from medgen.models.codec import Decoded
from medgen.steering.context import Known
from medgen.steering.volume_gradient import check, volume_loss, wrap
from tests.steering.toy import KNOWN, ROWS, SCHEMA, cond_of, context, gaussian

MODEL = gaussian(lambda c: (0.0, 1.0))
VOXEL_ML = 0.01


def decode(x0):
    """A ball is where x0 is above 1."""
    return Decoded(x0, torch.cat([torch.zeros_like(x0), 4 * (x0 - 1)], dim=1))


def ball_ml(x0):
    return (x0 > 1).flatten(1).sum(1) * VOXEL_ML


CONTEXT = context(decode=decode, voxel_ml=VOXEL_ML)
X = torch.randn(3, 1, 12, 12, 12, generator=torch.Generator().manual_seed(0))


def test_the_volume_comes_to_what_was_asked_and_only_where_it_was_asked():
    asked = cond_of({"ball_ml": 2.5}, {"ball_ml": 2.0}, {"a": 1.0})
    sigma = torch.full((3,), 0.7)
    before = MODEL(X, sigma, asked).x0
    with torch.no_grad():
        after = wrap(MODEL, context=CONTEXT, tolerance=0.01, repeats=5)(X, sigma, asked).x0
    error = (ball_ml(after)[:2] - torch.tensor([2.5, 2.0])).abs()
    assert (ball_ml(before)[:2] - torch.tensor([2.5, 2.0])).abs().min() > 0.4 and error.max() < 0.2
    assert torch.equal(before[2], after[2])


@pytest.mark.parametrize("through", [True, False])
def test_above_the_interval_nothing_is_decoded(through):
    def never(x0):
        raise AssertionError

    steered = wrap(MODEL, context=context(decode=never), through=through, interval=(0.0, 1.0))
    steered(X, torch.full((3,), 2.0), cond_of(*[{"ball_ml": 3.0}] * 3))


def test_the_loss_is_in_units_of_the_tolerance():
    std = torch.tensor([r["ball_ml"] for r in ROWS]).std(correction=0)
    loss = volume_loss(CONTEXT, {"ball": 1}, 0.1)(X, cond_of(*[{"ball_ml": 4.0}] * 3))
    assert torch.allclose(loss, 0.5 * ((ball_ml(X) - 4.0) / (0.1 * std)).square(), rtol=1e-4)


def test_faults():
    options = {"labels": (), "tolerance": 0.1, "repeats": 1, "interval": ()}
    check(KNOWN, **options)
    with pytest.raises(InputError, match="did you mean 'ball'"):
        check(KNOWN, **{**options, "labels": ["bal"]})
    with pytest.raises(InputError, match="tolerance above 0"):
        check(None, **{**options, "tolerance": 0})
    bare = Known(Joint.fit(SCHEMA.only(["a"]), ROWS), ("background", "ball"))
    with pytest.raises(InputError, match="needs a label"):
        check(bare, **options)
    with pytest.raises(InputError, match="registration"):
        wrap(MODEL, context=context(decode=decode, voxel_ml=None))
