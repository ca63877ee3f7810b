"""Masks as a condition: layout, crops, what dropping does, and that a network follows them."""

import pytest
import torch

from medgen.cohort.schema import Covariate, Schema
from medgen.models import adaln_unet, unet
from medgen.models.condition import Condition, crop_box
from medgen.models.mask import MaskInput, MaskStem, from_cells, to_cells
from medgen.training.dropout import dropped

SCHEMA = Schema((Covariate("age"),))
SMALL = {"channels": (16, 16), "middle_blocks": 1, "heads": 2, "token_width": 8, "embedding": 16}


def condition(mask: torch.Tensor | None, rows: int = 2) -> Condition:
    return Condition(("age",), torch.zeros(rows, 1), torch.ones(rows, 1, dtype=torch.bool), mask=mask)


def ids(rows: int = 2, extent: int = 16) -> torch.Tensor:
    return torch.randint(-1, 4, (rows, extent, extent, extent), generator=torch.Generator().manual_seed(0))


def test_cells_hold_every_voxel_of_their_latent() -> None:
    label = ids()
    cells = to_cells(label, 4)
    assert cells.shape == (2, 64, 4, 4, 4) and cells.dtype == torch.int16
    own = label[1, 4:8, 8:12, 12:16].flatten()
    assert torch.equal(cells[1, :, 1, 2, 3].long(), own)
    assert torch.equal(from_cells(cells).long(), label)


def test_a_crop_of_the_condition_crops_the_mask() -> None:
    label = ids()
    starts, size = [(1, 0, 2), (0, 2, 1)], (2, 2, 2)
    boxes = torch.stack([crop_box(start, size, (4, 4, 4)) for start in starts])
    cropped = condition(to_cells(label, 4)).crop(boxes)
    assert cropped.mask is not None
    for row, start in enumerate(starts):
        x, y, z = (slice(4 * s, 4 * (s + 2)) for s in start)
        assert torch.equal(from_cells(cropped.mask)[row].long(), label[row, x, y, z])
    # The crop of a crop is given within the crop.
    again = cropped.crop(crop_box((1, 1, 0), (1, 1, 2), (2, 2, 2)))
    assert again.mask is not None
    assert torch.equal(from_cells(again.mask)[0].long(), label[0, 8:12, 4:8, 8:16])


def test_null_and_joins() -> None:
    cond = condition(to_cells(ids(), 4))
    assert cond.null().mask is None
    both = Condition.cat([cond, cond.null()])
    assert both.mask is not None and bool((both.mask[2:] == -1).all()) and torch.equal(both.mask[:2], cond.mask)
    assert both.rows([1]).mask is not None and len(both.rows([1])) == 1
    assert cond.drop("age").mask is not None


def test_the_mask_goes_with_all_of_a_row_and_on_its_own() -> None:
    cond = condition(to_cells(ids(400, 4).clamp(min=0), 4), rows=400)
    random = torch.Generator().manual_seed(1)
    every = dropped(cond, 1 - 1e-6, 0.0, random)
    assert every.mask is not None and bool((every.mask == -1).all()) and not every.present.any()
    some = dropped(cond, 0.0, 0.25, random)
    assert some.mask is not None
    share = float((some.mask == -1).flatten(1).all(dim=1).float().mean())
    assert 0.15 < share < 0.35


@pytest.mark.parametrize("kind", ["adaln_unet", "unet"])
def test_networks_see_the_mask(kind: str) -> None:
    torch.manual_seed(0)
    mask = MaskInput(labels=4, stride=4)
    if kind == "unet":
        options = {"channels": (16, 16), "attention": (False, True), "norm_groups": 8, "head_channels": 8}
        network = unet.build(2, SCHEMA, mask, **options)
    else:
        network = adaln_unet.build(2, SCHEMA, mask, **SMALL)
    for p in network.parameters():  # what starts at zero would hide everything
        torch.nn.init.normal_(p, std=0.05)
    x, time = torch.randn(2, 2, 4, 4, 4), torch.full((2,), 0.5)
    with torch.no_grad():
        without = network(x, time, condition(None))
        unknown = network(x, time, condition(torch.full((2, 64, 4, 4, 4), -1, dtype=torch.int16)))
        told = network(x, time, condition(to_cells(ids(), 4)))
    assert without.shape == x.shape
    assert torch.allclose(without, unknown, atol=1e-5), "no mask and a mask that is unknown are the same"
    assert not torch.allclose(without, told, atol=1e-3)


def test_the_stem_learns_from_single_voxels() -> None:
    torch.manual_seed(0)
    stem = MaskStem(MaskInput(3, 4), width=8)
    label = torch.zeros(1, 8, 8, 8, dtype=torch.int64)
    one = label.clone()
    one[0, 5, 2, 3] = 2
    like = torch.zeros(1, 1, 2, 2, 2)
    assert not torch.allclose(stem(to_cells(label, 4), like), stem(to_cells(one, 4), like))
