import pytest
import torch

from medgen.cohort.schema import Covariate, Schema
from medgen.models import unet
from medgen.models.condition import Condition, ConditionEncoder
from medgen.models.embedding import CovariateEmbedding
from medgen.training.dropout import dropped

STAGES = ("none", "mild", "moderate", "severe", "end")
SCHEMA = Schema(
    (
        Covariate("age"),
        Covariate("stage", "ordinal", levels=STAGES),
        Covariate("hour", "periodic", period=24.0),
        Covariate("report", "text", tokens=4, width=6),
        Covariate("sex", "categorical", levels=("F", "M")),
        Covariate("indication", "text", tokens=3, width=6),
    )
)


class Words:
    """States that are a function of the text, as a frozen encoder's are."""

    cut = 0

    def __call__(self, texts):
        return {t: torch.randn(len(t.split()), 6, generator=torch.Generator().manual_seed(len(t))) for t in texts}


def encoder() -> ConditionEncoder:
    rows = [{"age": 20.0}, {"age": 60.0}]
    fitted = ConditionEncoder.fit(SCHEMA, rows)
    return ConditionEncoder(SCHEMA, fitted.centre, fitted.scale, None, Words())


def test_ordinal_levels_start_in_their_order():
    """Far levels are further apart than near ones, which a table of independent rows does not give."""
    schema, near, far = Schema((SCHEMA["stage"],)), [], []
    cond = ConditionEncoder.fit(schema, []).encode([{"stage": level} for level in STAGES])
    for seed in range(8):
        torch.manual_seed(seed)
        tokens = CovariateEmbedding(schema, 32, 8)(cond)[0][:, 0]
        gaps = torch.cdist(tokens, tokens)
        assert all(gaps[0, k] < gaps[0, k + 1] for k in range(1, 4))
        near.append(gaps.diagonal(1).mean())
        far.append(gaps[0, 4])
    assert sum(far) > 2 * sum(near)


def test_ordinal_levels_can_part_from_even_steps():
    schema = Schema((SCHEMA["stage"],))
    embedding = CovariateEmbedding(schema, 16, 8)
    cond = ConditionEncoder.fit(schema, []).encode([{"stage": level} for level in STAGES])
    before = embedding(cond)[0].detach().clone()
    with torch.no_grad():
        embedding.embed[0].offset.weight[2] += 1.0
    moved = (embedding(cond)[0].detach() - before).abs().amax(dim=(1, 2))
    assert moved[2] == pytest.approx(1.0, abs=1e-5) and not moved[[0, 1, 3, 4]].any()


def test_periods_wrap_to_the_bit():
    torch.manual_seed(0)
    embedding = CovariateEmbedding(SCHEMA, 8, 16)
    cond = encoder().encode([{"hour": h} for h in (1.0, 25.0, -23.0, 13.0)])
    tokens, summary = embedding(cond)
    assert torch.equal(tokens[0], tokens[1]) and torch.equal(tokens[0], tokens[2])
    assert torch.equal(summary[0], summary[1]) and not torch.allclose(summary[0], summary[3])


def test_text_tokens_meet_the_network_unpadded_and_apart():
    torch.manual_seed(0)
    embedding = CovariateEmbedding(SCHEMA, 8, 16)
    rows = [{"report": "large ventricles", "sex": "F"}, {"indication": "fall", "sex": "F"}, {"sex": "F"}]
    cond = encoder().encode(rows)
    tokens, summary = embedding(cond)
    assert tokens.shape == (3, 4 + 4 + 3, 8) and summary.shape == (3, 16)
    null = embedding.null + embedding.name
    assert torch.allclose(tokens[0, 5:7], null[3].expand(2, 8)), "places without a token are the column's null"
    assert torch.allclose(tokens[0, 8:], null[5].expand(3, 8)) and not torch.allclose(tokens[1, 8], null[5])
    # What else is in the batch changes nothing, with or without texts.
    for b in range(3):
        alone = embedding(encoder().encode([rows[b]]))
        assert torch.allclose(alone[0][0], tokens[b], atol=1e-6)
        assert torch.allclose(alone[1][0], summary[b], atol=1e-5)
    gone = embedding(cond.drop("report"))
    assert torch.allclose(gone[0][0], tokens[2]) and torch.allclose(gone[1][0], summary[2], atol=1e-6)


def test_network_listens_to_texts_and_passes_gradients_to_the_projection_alone():
    torch.manual_seed(0)
    net = unet.build(2, SCHEMA, channels=(16, 16), attention=(False, True), head_channels=8, token_width=8)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05) if p.ndim > 1 else None
    x, time = torch.randn(1, 2, 4, 4, 4), torch.tensor([0.5])
    asked = [encoder().encode([{"report": text}]) for text in ("large ventricles", "no large ventricles")]
    a, b = (net(x, time, cond) for cond in asked)
    assert not torch.allclose(a, b)
    assert torch.equal(net(x, time, asked[0].null()), net(x, time, asked[1].null()))
    a.sum().backward()
    assert net.covariates.embed[3].project.weight.grad.abs().sum() > 0


def test_schemas_without_new_kinds_keep_their_state_dict():
    plain = Schema(tuple(c for c in SCHEMA.covariates if c.kind in ("continuous", "categorical", "periodic")))
    assert set(CovariateEmbedding(plain, 8, 16).state_dict()) == {
        "null",
        "name",
        *(f"embed.{k}.mlp.{layer}.{w}" for k in (0, 1) for layer in (0, 2) for w in ("weight", "bias")),
        "embed.2.table.weight",
        *(f"summary.{layer}.{w}" for layer in (0, 2) for w in ("weight", "bias")),
    }


def test_dropout_leaves_texts_alone_now_and_then():
    cond = encoder().encode([{"age": 30.0, "sex": "F", "report": "old"}] * 4000 + [{"age": 30.0, "sex": "F"}] * 4000)
    kept = dropped(cond, 0.2, 0.0, torch.Generator().manual_seed(0)).present
    with_text, without = kept[:4000], kept[4000:]
    nothing = (~with_text.any(dim=1)).float().mean()
    alone = (with_text[:, 3] & ~with_text[:, 0] & ~with_text[:, 4]).float().mean()
    assert nothing == pytest.approx(0.2, abs=0.02) and alone == pytest.approx(0.8 * 0.2, abs=0.02)
    assert without[:, 0].float().mean() == pytest.approx(0.8, abs=0.02)
    each = dropped(cond, 0.0, 0.3, torch.Generator().manual_seed(0)).present[4000:, [0, 4]].float().mean(dim=0)
    assert torch.allclose(each, torch.tensor(0.7), atol=0.03)


def test_dropout_without_texts_draws_as_it_always_did():
    cond = Condition(("a", "b"), torch.zeros(64, 2), torch.ones(64, 2, dtype=torch.bool))
    random = torch.Generator().manual_seed(5)
    expected = (torch.rand(64, 1, generator=random) >= 0.1) & (torch.rand(64, 2, generator=random) >= 0.2)
    assert torch.equal(dropped(cond, 0.1, 0.2, torch.Generator().manual_seed(5)).present, expected)
