import json

import pytest
import torch

from medgen.errors import InputError
from medgen.training import loop
from medgen.training.loop import Schedule, train
from medgen.training.watch import Watch

CPU = torch.device("cpu")


class Slope:
    """Fits a line by plain gradient descent: stable below a learning rate of about 1; may break at a step."""

    def __init__(self, rate=0.1, broken=lambda step, lr: False, die_at=None, parts=1):
        torch.manual_seed(0)
        self.net = torch.nn.Linear(4, 1)
        self.modules = {"net": self.net}
        self.optimisers = {"net": torch.optim.SGD(self.net.parameters(), lr=rate, momentum=0.9)}
        self.broken, self.die_at, self.parts, self.calls = broken, die_at, parts, 0

    def step(self, step, share):
        self.calls += 1
        if self.calls == self.die_at:
            raise KeyboardInterrupt
        whole, part = divmod(step, self.parts)
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(whole)).chunk(self.parts)[part]
        loss = (self.net(x) - x.sum(1, keepdim=True)).square().mean() + 0.01
        if self.broken(step, self.optimisers["net"].param_groups[0]["lr"]):
            loss = loss * float("nan")
        yield loss, "net", {"loss": loss}

    def validate(self, averages):
        return {}

    def panel(self, averages):
        return None


def schedule(**changes):
    usual = {"steps": 120, "warmup": 1, "log_every": 20, "clip": 1e9, "precision": "float32", "checkpoint_seconds": 0.0}
    return Schedule(**(usual | changes))


def logged(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_nan_goes_back_to_the_last_good_state_at_half_the_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "GOOD_EVERY", 25)
    once = iter([True])
    task = Slope(broken=lambda step, lr: step == 60 and next(once, False))
    train(task, tmp_path, schedule(), CPU)
    lines = logged(tmp_path)
    assert [x["step"] for x in lines if "rollback" in x] == [50]
    assert task.calls == 120 + 11, "steps 50 to 60 were taken twice, the broken one not applied"
    usual = {s: schedule().rate(s - 1, 0) for s in (40, 80)}
    rates = {x["step"]: x["rate"] for x in lines if "rate" in x}
    assert rates[40] == pytest.approx(usual[40], abs=1e-5) and rates[80] == pytest.approx(usual[80] / 2, abs=1e-5)
    assert [x for x in lines if "loss" in x][-1]["loss"] < 0.05
    assert not list(tmp_path.glob("good-*")), "a finished training needs no way back"


def test_a_rate_that_explodes_is_halved_until_it_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "GOOD_EVERY", 25)
    task = Slope(rate=6.0)
    train(task, tmp_path, schedule(warmup=100, rollbacks=6), CPU)
    lines = logged(tmp_path)
    assert any("rollback" in x for x in lines)
    assert all(torch.isfinite(p).all() for p in task.net.parameters())
    assert [x for x in lines if "loss" in x][-1]["loss"] < 1.0


def test_a_fault_that_stays_ends_in_one_sentence(tmp_path):
    task = Slope(broken=lambda step, lr: step == 30)
    with pytest.raises(InputError, match=r"diverged at step 30 .* after going back 2 times; lower") as caught:
        train(task, tmp_path, schedule(rollbacks=2), CPU)
    assert "\n" not in str(caught.value)
    assert all(torch.isfinite(p).all() for p in task.net.parameters())


@pytest.mark.parametrize("die_at", [58, 75, 100])
def test_a_killed_training_goes_back_as_an_uninterrupted_one(tmp_path, monkeypatch, die_at):
    monkeypatch.setattr(loop, "GOOD_EVERY", 25)

    def too_fast(step, lr):  # a fault of the rate, as divergence is
        return step == 60 and lr > 0.04

    whole, killed, resumed = Slope(broken=too_fast), Slope(broken=too_fast, die_at=die_at), Slope(broken=too_fast)
    train(whole, tmp_path / "whole", schedule(), CPU)
    with pytest.raises(KeyboardInterrupt):
        train(killed, tmp_path / "killed", schedule(), CPU)
    train(resumed, tmp_path / "killed", schedule(), CPU)
    for key, value in whole.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[key])
    assert [x["step"] for x in logged(tmp_path / "killed") if "rollback" in x] == [50]


def test_accumulated_batches_are_one_large_batch(tmp_path):
    large, parts = Slope(), Slope(parts=4)
    train(large, tmp_path / "a", schedule(steps=20), CPU)
    train(parts, tmp_path / "b", schedule(steps=20, accumulate=4), CPU)
    assert parts.calls == 80
    for key, value in large.net.state_dict().items():
        torch.testing.assert_close(value, parts.net.state_dict()[key], rtol=1e-5, atol=1e-6)


def test_one_odd_batch_is_no_explosion_and_several_are():
    watch = Watch(losses=[1.0, 1.2, 0.8] * 10)
    assert not watch.exploded(50.0)
    assert watch.exploded(200.0), "far beyond anything seen"
    for _ in range(2):
        watch.add(20.0)
    assert watch.exploded(20.0), "three of the last five"
    assert not Watch(losses=[1.0] * 5).exploded(1e9), "too early to tell"
    assert Watch.from_json(json.loads(json.dumps(watch.to_json()))) == watch
