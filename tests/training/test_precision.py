"""bfloat16 where it is right: a training whose convolutions it computes wrongly goes on in float32, and says so."""

import pytest
import torch
from torch import nn

from medgen.training import loop, precision
from medgen.training.loop import Schedule, train
from medgen.training.precision import Convolution, bfloat16_is_sound, unsound

CPU = torch.device("cpu")


class Tiny:
    """A convolution of 2 x 2 x 2 voxels, with a buffer that every forward pass changes."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.BatchNorm3d(4), nn.Conv3d(4, 4, 3, padding=1))
        self.modules = {"net": self.net}
        self.optimisers = {"net": torch.optim.SGD(self.net.parameters(), lr=0.01)}
        self.types: list[torch.dtype] = []

    def step(self, step, share):
        x = torch.randn(2, 4, 2, 2, 2, generator=torch.Generator().manual_seed(step))
        out = self.net(x)
        self.types.append(out.dtype)
        yield out.float().square().mean(), "net", {}

    def validate(self, averages):
        return {}

    def panel(self, averages):
        return None


def trained(folder, said):
    task, told = Tiny(), []
    train(task, folder, Schedule(steps=3, precision=said), CPU, lambda done, total, remark: told.append(remark))
    return task, told


@pytest.fixture
def pays(monkeypatch):
    monkeypatch.setattr(loop, "bfloat16_pays", lambda device: True)
    monkeypatch.setattr(precision, "bfloat16_pays", lambda device: True)


def test_auto_is_float32_where_bfloat16_is_wrong(tmp_path, pays, monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_is_sound", lambda device, conv: False)
    task, told = trained(tmp_path / "auto", "auto")
    assert set(task.types[1:]) == {torch.float32}
    assert "bfloat16 convolutions give wrong gradients on inputs of 2 x 2 x 2 on this machine" in told[0]
    plain, _ = trained(tmp_path / "float32", "float32")
    for mine, theirs in zip(task.net.state_dict().values(), plain.net.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), "looking changed the training"


def test_auto_is_bfloat16_where_it_is_right(tmp_path, pays, monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_is_sound", lambda device, conv: True)
    task, told = trained(tmp_path, "auto")
    assert set(task.types) == {torch.bfloat16} and "wrong" not in " ".join(told)


def test_large_inputs_and_other_layers_are_not_asked(monkeypatch):
    monkeypatch.setattr(precision, "bfloat16_is_sound", lambda device, conv: False)
    conv = nn.Conv3d(2, 2, 3, padding=1)
    assert unsound([conv], lambda: conv(torch.zeros(1, 2, 8, 8, 8)), CPU) is None
    found = unsound([conv], lambda: conv(torch.zeros(1, 2, 3, 4, 5)), CPU)
    assert found == Convolution((1, 2, 3, 4, 5), 2, (3, 3, 3), (1, 1, 1), (1, 1, 1), False)
    assert unsound([nn.Linear(2, 2)], lambda: pytest.fail("nothing to look at"), CPU) is None


def test_the_check_knows_a_wrong_gradient_from_rounding(monkeypatch):
    conv = Convolution((1, 8, 6, 6, 6), 8, (3, 3, 3), (1, 1, 1), (1, 1, 1), False)
    bfloat16_is_sound.cache_clear()
    assert bfloat16_is_sound(CPU, conv)
    true_grad = torch.autograd.grad

    def wrong(out, leaves, *rest):
        found = list(true_grad(out, leaves, *rest))
        found[0] = found[0] * (1.3 if out.dtype == torch.bfloat16 else 1.0)
        return found

    monkeypatch.setattr(torch.autograd, "grad", wrong)
    bfloat16_is_sound.cache_clear()
    assert not bfloat16_is_sound(CPU, conv)
    bfloat16_is_sound.cache_clear()


def test_looking_changes_nothing_of_what_learns_without_a_gradient():
    """A codebook does, in its forward pass; a training that is resumed looks again."""
    from medgen.models import vq

    codec = vq.build(1, 0, channels=(8, 16), latent_channels=2, codes=16)
    before = {key: value.clone() for key, value in codec.state_dict().items()}
    unsound([codec], lambda: codec.encode(torch.randn(1, 1, 8, 8, 8), None), CPU)
    assert all(torch.equal(value, before[key]) for key, value in codec.state_dict().items())
    codec.encode(torch.randn(1, 1, 8, 8, 8), None)
    assert not torch.equal(codec.book.embedding.weight, before["net.quantizer.quantizer.embedding.weight"])
