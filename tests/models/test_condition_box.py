import torch

from medgen.models.condition import Condition, crop_box
from medgen.models.unet import coordinates

WHOLE = torch.zeros(2, 1, 13, 10, 8)


def condition(batch: int = 2) -> Condition:
    present = torch.tensor([[True], [False]]).repeat(batch, 1)[:batch]
    return Condition(("age",), torch.arange(batch, dtype=torch.float32)[:, None], present)


def part(x: torch.Tensor, start: tuple[int, ...], size: tuple[int, ...]) -> torch.Tensor:
    return x[:, :, *(slice(s, s + n) for s, n in zip(start, size, strict=True))]


def test_coordinates_of_a_crop_are_the_crop_of_the_coordinates():
    truth = coordinates(WHOLE)
    for start, size in (((0, 0, 0), (13, 10, 8)), ((2, 1, 0), (8, 6, 8)), ((12, 0, 3), (1, 10, 2))):
        cond = condition().crop(crop_box(start, size, (13, 10, 8)))
        found = coordinates(part(WHOLE, start, size), cond.box)
        assert torch.allclose(found, part(truth, start, size), atol=2e-6)
    assert torch.equal(coordinates(WHOLE, None), truth)


def test_a_crop_of_a_crop_is_the_crop_of_the_whole():
    once = condition().crop(crop_box((2, 1, 0), (8, 6, 8), (13, 10, 8)))
    twice = once.crop(crop_box((1, 2, 3), (4, 3, 4), (8, 6, 8)))
    direct = condition().crop(crop_box((3, 3, 3), (4, 3, 4), (13, 10, 8)))
    assert torch.allclose(twice.box, direct.box, atol=1e-6)


def test_each_row_has_its_own_box():
    boxes = torch.stack([crop_box((0, 0, 0), (4, 4, 4), (13, 10, 8)), crop_box((9, 6, 4), (4, 4, 4), (13, 10, 8))])
    cond, truth = condition().crop(boxes), coordinates(WHOLE)
    found = coordinates(torch.zeros(2, 1, 4, 4, 4), cond.box)
    assert torch.allclose(found[0], truth[0, :, :4, :4, :4], atol=2e-6)
    assert torch.allclose(found[1], truth[1, :, 9:, 6:, 4:], atol=2e-6)


def test_box_and_tokens_go_wherever_the_covariates_go():
    box = crop_box((2, 1, 0), (8, 6, 8), (13, 10, 8))
    tokens, columns = torch.randn(2, 3, 4), torch.tensor([[0, 0, -1], [0, -1, -1]])
    cond = Condition(("report",), torch.zeros(2, 1), torch.ones(2, 1, dtype=torch.bool), None, tokens, columns).crop(
        box
    )
    for same in (cond.null(), cond.drop("report"), cond.masked(torch.zeros(2, 1, dtype=torch.bool)), cond.to("cpu")):
        assert torch.equal(same.box, cond.box) and torch.equal(same.tokens, tokens)
    assert torch.equal(cond.rows([1]).box[0], box) and torch.equal(cond.rows([1]).tokens[0], tokens[1])
    plain = Condition(("report",), torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool))
    for joined, at in ((Condition.cat([cond, plain]), 2), (Condition.cat([plain, cond]), 0)):
        assert joined.box.shape == (3, 3, 2) and joined.box[at].tolist() == [[-1, 1]] * 3
        assert joined.token_column[at].tolist() == [-1] * 3 and not joined.tokens[at].any()
    assert Condition.cat([plain, plain]).box is None and Condition.cat([plain, plain]).tokens is None
