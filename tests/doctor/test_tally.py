"""What is counted without being computed equals closed forms, and what torch itself holds."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from medgen.doctor.counted import Machine
from medgen.doctor.tally import Count, Tally


def test_operations_traffic_and_memory_of_a_product() -> None:
    with Tally(cuda=False) as tally:
        a, b = torch.empty(32, 64), torch.empty(64, 16)
        count = tally.count(lambda: a @ b)
    assert count.flops == 2 * 32 * 64 * 16
    assert count.moved_bytes == 4 * (32 * 64 + 64 * 16 + 32 * 16)
    assert count.held_bytes == 4 * (32 * 64 + 64 * 16) and count.peak_bytes == count.held_bytes + 4 * 32 * 16


def test_a_training_step_counts_three_convolutions_and_no_computing() -> None:
    layer = nn.Conv3d(8, 8, 3, padding=1, bias=False)
    optimiser = torch.optim.AdamW(layer.parameters(), fused=True)
    before = layer.weight
    with Tally(cuda=False) as tally:
        tally.adopt([layer], [optimiser])

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            layer(torch.zeros(2, 8, 400, 400, 400, requires_grad=True)).sum().backward()  # far beyond memory
            optimiser.step()

        first, second = tally.count(step), tally.count(step)
    one = 2 * 27 * 8 * 8 * 2 * 400**3
    assert second.flops == 3 * one
    # Adam's two moments are alive in the second step only.
    assert second.held_bytes - first.held_bytes >= 2 * 4 * layer.weight.numel()
    assert layer.weight is before and not optimiser.state, "what was adopted is put back"


def test_memory_is_freed_when_the_last_view_goes() -> None:
    with Tally(cuda=False) as tally:

        def work() -> None:
            x = torch.empty(1000)
            view = x[:10].reshape(2, 5)
            del x
            del view
            torch.empty(500)

        assert tally.count(work).peak_bytes == 4000 and tally.alive_bytes == 0


@pytest.mark.parametrize(("cuda", "kept"), [(True, torch.float32), (False, torch.bfloat16)])
def test_cudas_autocast_keeps_norms_in_float32(cuda: bool, kept: torch.dtype) -> None:
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    with Tally(cuda=cuda), torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.layer_norm(torch.empty_like(x), (8,)).dtype == kept
    if not cuda:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert F.layer_norm(x, (8,)).dtype == kept, "the CPU's own rule"


def test_attention_is_two_products() -> None:
    with Tally(cuda=False) as tally:
        q, k = torch.empty(1, 2, 50, 16), torch.empty(1, 2, 70, 16)
        count = tally.count(lambda: F.scaled_dot_product_attention(q, k, k))
    assert count.flops == 4 * 2 * 50 * 70 * 16


def test_time_is_operations_then_traffic() -> None:
    count = Count(peak_bytes=0, flops=4e12, moved_bytes=3e11)
    assert Machine(2.0).seconds(count) == 2.0
    assert Machine(2.0, gb_per_s=300).seconds(count) == pytest.approx(3.0)
    assert Machine(2.0, 300).told() == "2 TFLOP/s and 300 GB/s sustained"
