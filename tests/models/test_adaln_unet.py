"""The adaLN denoiser: shapes, its start, that conditions reach it, and that a crop knows its place."""

import pytest
import torch

from medgen.cohort.schema import Covariate, Schema
from medgen.errors import InputError
from medgen.models.adaln_unet import build, factor
from medgen.models.condition import ConditionEncoder, crop_box

SCHEMA = Schema((Covariate("age", "continuous"), Covariate("sex", "categorical", levels=("F", "M"))))
ROWS = [{"age": 20.0, "sex": "F"}, {"age": 60.0, "sex": "M"}]


def _network(**options: object) -> torch.nn.Module:
    torch.manual_seed(0)
    small = {"channels": (8, 16), "middle_blocks": 1, "heads": 2, "token_width": 8, "embedding": 16}
    return build(2, SCHEMA, **{**small, **options})  # type: ignore[arg-type]


def _shaken(network: torch.nn.Module) -> torch.nn.Module:
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return network


@pytest.mark.parametrize("options", [{}, {"heads": 0}, {"channels": (8,)}, {"channels": (8, 8, 16), "blocks": 2}])
def test_shape_and_a_start_at_zero(options: dict) -> None:
    network = _network(**options)
    x, cond = torch.randn(2, 2, 8, 4, 12), ConditionEncoder.fit(SCHEMA, ROWS).encode(ROWS)
    out = network(x, torch.rand(2), cond)
    assert out.shape == x.shape
    assert out.abs().max() == 0, "the last convolution starts at zero"


def test_time_and_covariates_reach_the_output() -> None:
    network = _shaken(_network(heads=0))
    encoder = ConditionEncoder.fit(SCHEMA, ROWS)
    x = torch.randn(1, 2, 4, 4, 4)

    def of(time: float, row: dict) -> torch.Tensor:
        return network(x, torch.tensor([time]), encoder.encode([row]))

    base = of(0.5, ROWS[0])
    assert not torch.allclose(base, of(0.6, ROWS[0]))
    assert not torch.allclose(base, of(0.5, ROWS[1]))
    assert not torch.allclose(base, of(0.5, {"age": 20.0}))


def test_rows_of_a_batch_do_not_see_each_other() -> None:
    network = _shaken(_network())
    cond = ConditionEncoder.fit(SCHEMA, ROWS).encode(ROWS)
    x, time = torch.randn(2, 2, 4, 4, 4), torch.tensor([0.2, 0.9])
    both = network(x, time, cond)
    alone = network(x[1:], time[1:], cond.rows(slice(1, 2)))
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


def test_a_crop_knows_where_it_lies() -> None:
    network = _shaken(_network(channels=(8,), middle_blocks=1, heads=0))
    cond = ConditionEncoder.fit(SCHEMA, ROWS).encode(ROWS[:1])
    x = torch.randn(1, 2, 16, 4, 4)
    whole = network(x, torch.tensor([0.5]), cond)
    box = crop_box((4, 0, 0), (12, 4, 4), (16, 4, 4))
    part = network(x[:, :, 4:], torch.tensor([0.5]), cond.crop(box))
    torch.testing.assert_close(part[:, :, 6:], whole[:, :, 10:], rtol=1e-4, atol=1e-5)


def test_its_extents_are_multiples_of_the_factor() -> None:
    assert factor(channels=(8, 16, 32)) == 4
    with pytest.raises(AssertionError, match="multiple of 2"):
        _network()(torch.randn(1, 2, 3, 4, 4), torch.rand(1), ConditionEncoder.fit(SCHEMA, ROWS).encode(ROWS[:1]))


@pytest.mark.parametrize("options", [{"channels": ()}, {"heads": 3}, {"middle_blocks": 0}])
def test_widths_that_do_not_fit_are_refused(options: dict) -> None:
    with pytest.raises(InputError, match=r"diffusion\.network_options"):
        _network(**options)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_checkpointing_changes_no_gradient(dropout: float) -> None:
    found = []
    for checkpointing in (False, True):
        network = _shaken_equally(_network(checkpointing=checkpointing, dropout=dropout))
        cond = ConditionEncoder.fit(SCHEMA, ROWS).encode(ROWS)
        torch.manual_seed(2)
        network(torch.ones(2, 2, 4, 4, 4), torch.tensor([0.1, 0.7]), cond).square().mean().backward()
        found.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again)


def test_dropout_acts_in_training_alone() -> None:
    cond = ConditionEncoder.fit(SCHEMA, ROWS).encode(ROWS)
    x, time = torch.randn(2, 2, 4, 4, 4), torch.tensor([0.2, 0.9])
    plain, dropping = (_shaken_equally(_network(dropout=share)) for share in (0.0, 0.5))
    torch.testing.assert_close(plain.eval()(x, time, cond), dropping.eval()(x, time, cond))
    dropping.train()
    first, second = dropping(x, time, cond), dropping(x, time, cond)
    assert not torch.allclose(first, second)
    with pytest.raises(InputError, match="dropout"):
        _network(dropout=1.0)


def _shaken_equally(network: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    return _shaken(network)
