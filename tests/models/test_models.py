import pytest
import torch

from medgen.cohort.schema import Covariate, Schema
from medgen.errors import InputError
from medgen.models import kl, losses, unet
from medgen.models.codec import Decoded, Gaussian
from medgen.models.condition import Condition, ConditionEncoder
from medgen.models.embedding import CovariateEmbedding

SCHEMA = Schema(
    (
        Covariate("age", "continuous", "year", 20, 90),
        Covariate("sex", "categorical", levels=("F", "M")),
        Covariate("hour", "periodic", "h", period=24.0),
    )
)
ROWS = [{"age": 30.0, "sex": "F", "hour": 1.0}, {"age": 50.0, "sex": "M"}, {"sex": "F", "hour": 25.0}]


def test_encoder_standardises_and_masks():
    encoder = ConditionEncoder.fit(SCHEMA, ROWS)
    cond = encoder.encode(ROWS)
    assert cond.present.tolist() == [[True, True, True], [True, True, False], [False, True, True]]
    assert cond.values[:2, 0].tolist() == [-1.0, 1.0]
    assert cond.values[:, 1].tolist() == [0.0, 1.0, 0.0]
    assert ConditionEncoder.from_json(encoder.to_json()) == encoder


def test_condition_operations():
    cond = ConditionEncoder.fit(SCHEMA, ROWS).encode(ROWS)
    assert not cond.null().present.any() and cond.present.any()
    assert cond.drop("sex").present[:, 1].tolist() == [False] * 3
    assert cond.replace("age", torch.tensor([5.0, 6.0, 7.0])).values[2, 0] == 7 and cond.values[2, 0] == 0
    assert len(Condition.cat([cond, cond.rows([0])])) == 4


def test_null_tokens_hide_the_value_and_periods_wrap():
    torch.manual_seed(0)
    embedding = CovariateEmbedding(SCHEMA, 8, 16)
    cond = ConditionEncoder.fit(SCHEMA, ROWS).encode(ROWS)
    other = Condition(cond.columns, cond.values + 3, cond.present)
    for a, b in zip(embedding(cond.null()), embedding(other.null()), strict=True):
        assert torch.equal(a, b)
    tokens, summary = embedding(cond)
    assert tokens.shape == (3, 3, 8) and summary.shape == (3, 16)
    assert torch.allclose(tokens[0, 2], tokens[2, 2], atol=1e-5), "1 o'clock is 25 o'clock"
    assert not torch.allclose(tokens[0, 0], tokens[1, 0])


def test_unet_follows_its_condition_and_refuses_bad_widths():
    torch.manual_seed(0)
    net = unet.build(3, SCHEMA, channels=(16, 16), attention=(False, True), head_channels=8)
    for p in net.parameters():  # zero-initialised outputs would hide everything
        torch.nn.init.normal_(p, std=0.05) if p.ndim > 1 else None
    cond = ConditionEncoder.fit(SCHEMA, ROWS).encode(ROWS)
    x = torch.randn(3, 3, 4, 6, 4)
    time = torch.full((3,), 0.5)
    out = net(x, time, cond)
    assert out.shape == x.shape
    moved = net(x, time, cond.replace("age", torch.tensor([3.0, 3.0, 3.0])))
    assert not torch.allclose(out, moved)
    assert torch.equal(net(x, time, cond.null()), net(x, time, cond.replace("age", torch.zeros(3)).null()))
    assert unet.factor(channels=(16, 32, 64)) == 4
    with pytest.raises(InputError, match="multiples of norm_groups"):
        unet.build(3, SCHEMA, channels=(16, 20), attention=(False, False))


def test_unconditional_unet_has_a_constant_token():
    net = unet.build(1, Schema(), channels=(16, 16), attention=(False, True), head_channels=8)
    empty = Condition((), torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool))
    assert net(torch.randn(2, 1, 4, 4, 4), torch.rand(2), empty).shape == (2, 1, 4, 4, 4)


@pytest.mark.parametrize("labels", [0, 4])
def test_kl_codec_shapes_and_unlabelled_cases(labels):
    codec = kl.build(2, labels, channels=(8, 16), latent_channels=3)
    image = torch.randn(2, 2, 8, 12, 8)
    label = torch.randint(0, labels, (2, 8, 12, 8)) if labels else None
    posterior = codec.encode(image, label)
    assert posterior.mean.shape == (2, 3, 4, 6, 4) and codec.stride == kl.stride(channels=(8, 16)) == 2
    decoded = codec.decode(posterior.mean)
    assert decoded.image.shape == image.shape
    assert (decoded.label_logits is None) == (labels == 0)
    if labels:
        assert decoded.label_logits.shape == (2, 4, 8, 12, 8)
        unlabelled = torch.full((2, 8, 12, 8), -1)
        assert torch.equal(codec.encode(image, unlabelled).mean, codec.encode(image, None).mean)


def test_kl_matches_torch_distributions():
    mean, logvar = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 3, 4, 4, 4)
    truth = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (0.5 * logvar).exp()), torch.distributions.Normal(0.0, 1.0)
    )
    assert losses.kl_to_standard_normal(Gaussian(mean, logvar)).item() == pytest.approx(truth.mean().item(), rel=1e-5)


def test_label_loss_ignores_voxels_without_label():
    label = torch.randint(0, 3, (2, 4, 4, 4))
    logits = torch.randn(2, 3, 4, 4, 4)
    hidden, changed = label.clone(), logits.clone()
    hidden[:, :2] = -1
    changed[:, :, :2] = 17.0 * torch.randn_like(changed[:, :, :2])
    assert torch.allclose(losses.label_loss(logits, hidden), losses.label_loss(changed, hidden))
    assert losses.label_loss(logits, torch.full_like(label, -1)).item() == 0
    perfect = torch.nn.functional.one_hot(label, 3).movedim(-1, 1) * 50.0
    assert losses.label_loss(perfect, label).item() == pytest.approx(0, abs=1e-4)
    assert losses.image_l1(Decoded(torch.zeros(1, 1, 2, 2, 2), None), torch.ones(1, 1, 2, 2, 2)).item() == 1


def test_a_column_of_one_large_value_is_not_scaled_by_its_rounding():
    schema = Schema((Covariate("volume"),))
    encoder = ConditionEncoder.fit(schema, [{"volume": 1450123.77}] * 7)
    assert encoder.scale == (1.0,)
    assert encoder.encode([{"volume": 1450123.77}]).values.abs().max() < 1e-6
