import json
import pickletools

import numpy as np
import pytest
import torch
from safetensors import safe_open

from medgen.errors import InputError
from medgen.training import checkpoint
from medgen.training.ema import Ema
from medgen.training.loop import Schedule, train
from medgen.training.precision import device_of

CPU = torch.device("cpu")


class Line:
    """Fits y = 2 x with noise keyed by the step; can die or diverge at a step."""

    def __init__(self, die_at=None, nan_at=None):
        torch.manual_seed(0)
        self.net = torch.nn.Linear(3, 1)
        self.modules = {"net": self.net}
        self.optimisers = {"net": torch.optim.AdamW(self.net.parameters(), lr=0.05)}
        self.die_at, self.nan_at, self.steps = die_at, nan_at, []

    def step(self, step, share):
        if step == self.die_at:
            raise KeyboardInterrupt
        self.steps.append(step)
        x = torch.randn(16, 3, generator=torch.Generator().manual_seed(step))
        loss = (self.net(x) - 2 * x.sum(1, keepdim=True)).square().mean()
        if step == self.nan_at:
            loss = loss * float("nan")
        yield loss, "net", {"loss": loss}

    def validate(self, averages):
        return {"weight": float(averages["net"].average["weight"].mean())}

    def panel(self, averages):
        return np.zeros((4, 4, 3), np.uint8)


SCHEDULE = Schedule(steps=60, warmup=5, log_every=10, validate_every=30, checkpoint_seconds=0.0, precision="float32")


def test_a_killed_training_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = Line()
    averages = train(whole, tmp_path / "whole", SCHEDULE, CPU)
    killed = Line(die_at=37)
    with pytest.raises(KeyboardInterrupt):
        train(killed, tmp_path / "killed", SCHEDULE, CPU)
    resumed = Line()
    again = train(resumed, tmp_path / "killed", SCHEDULE, CPU)
    assert resumed.steps == list(range(37, 60))
    for key, value in whole.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[key])
        assert torch.equal(averages["net"].average[key], again["net"].average[key])
    lines = [json.loads(x) for x in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    steps = [x["step"] for x in lines if "loss" in x]
    assert steps == [10, 20, 30, 40, 50, 60]
    assert (tmp_path / "whole" / "panels" / "panel-000030.png").exists()


def test_divergence_stops_before_any_weight_is_touched(tmp_path):
    task = Line(nan_at=20)
    with pytest.raises(InputError, match="diverged at step 20"):
        train(task, tmp_path, SCHEDULE, CPU)
    assert all(torch.isfinite(p).all() for p in task.net.parameters())
    with safe_open(tmp_path / "checkpoint.safetensors", "pt") as file:
        assert json.loads(file.metadata()["progress"])["step"] == 20


def test_minutes_end_a_training_and_the_rate_reaches_zero(tmp_path):
    schedule = Schedule(steps=10**9, minutes=0.04, warmup=1, log_every=1, validate_every=10**6, precision="float32")
    train(Line(), tmp_path, schedule, CPU)
    lines = [json.loads(x) for x in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert 2.0 < [x["seconds"] for x in lines if "seconds" in x][-1] < 30
    assert [x["rate"] for x in lines if "rate" in x][-1] < 0.3
    assert Schedule(steps=100).rate(50, 0) == pytest.approx(0.5)


def test_the_clock_may_end_during_a_validation_and_the_result_is_saved(tmp_path):
    import time

    class Slow(Line):
        def validate(self, averages):
            time.sleep(1.0)
            return {}

    schedule = Schedule(steps=10**9, minutes=0.01, warmup=1, log_every=10, validate_every=3, precision="float32")
    task = Slow()
    averages = train(task, tmp_path, schedule, CPU)
    saved = checkpoint.load_average(tmp_path / "checkpoint.safetensors", "net", task.net)
    assert torch.equal(saved["weight"], averages["net"].average["weight"])


def test_checkpoints_hold_no_pickle_and_refuse_other_networks(tmp_path):
    train(Line(), tmp_path, SCHEDULE, CPU)
    path = tmp_path / "checkpoint.safetensors"
    with pytest.raises(Exception):  # noqa: B017 (whatever the disassembler says, it is no pickle)
        list(pickletools.genops(path.read_bytes()))
    other = torch.nn.Linear(4, 1)
    with pytest.raises(InputError, match="not a checkpoint of this network"):
        checkpoint.load(path, {"net": other}, {"net": Ema(other)}, {})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="checkpoint"):
        train(Line(), tmp_path, SCHEDULE, CPU)


def test_ema_is_the_power_function_average():
    net = torch.nn.Linear(1, 1, bias=False)
    ema = Ema(net, gamma=3.0)
    history = []
    for step in range(1, 51):
        with torch.no_grad():
            net.weight.fill_(step**1.5)
        history.append(step**1.5)
        ema.update(net, step)
    t = np.arange(1, 51)
    betas = (1 - 1 / t) ** 4
    weights = np.array([(1 - betas[i]) * np.prod(betas[i + 1 :]) for i in range(50)])
    assert weights.sum() == pytest.approx(1)
    assert float(ema.average["weight"]) == pytest.approx(float(weights @ history), rel=1e-4)


def test_an_absent_device_is_one_sentence():
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="not available"):
            device_of("cuda")
    assert device_of("cpu").type == "cpu"
