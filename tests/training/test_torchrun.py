import torch
from safetensors.torch import load_file

from medgen.training.distributed import World
from tests.processes import run_two

SCRIPT = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from medgen.training.distributed import leave, world
from medgen.training.loop import Schedule, train

class Line:
    def __init__(self, rank):
        torch.manual_seed(rank)  # other weights in each, until they are shared
        self.net = torch.nn.Linear(3, 1)
        self.spare = torch.nn.Parameter(torch.ones(1))  # used by one process only
        self.net.register_parameter("spare", self.spare)
        self.rank, self.modules = rank, {"net": self.net}
        self.optimisers = {"net": torch.optim.AdamW(self.net.parameters(), lr=0.05)}

    def step(self, step, share):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(2 * step + self.rank))
        loss = (self.net(x) - x.sum(1, keepdim=True)).square().mean()
        if self.rank == 1:
            loss = loss + self.spare.square().sum()
            if step == 12 and self.optimisers["net"].param_groups[0]["lr"] > 0.01:
                loss = loss * float("nan")  # one process alone diverges, and all go back
        yield loss, "net", {"loss": loss}

    def validate(self, averages):
        assert self.rank == 0
        return {"loss": 1.0}

    def panel(self, averages):
        return None

torch.set_num_threads(1)
here, folder = world(torch.device("cpu")), Path(sys.argv[1])
task = Line(here.rank)
schedule = Schedule(steps=20, warmup=1, validate_every=10, log_every=10, precision="float32")
train(task, folder / "run", schedule, torch.device("cpu"))
save_file(task.net.state_dict(), folder / f"rank{here.rank}of{here.size}.safetensors")
leave()
"""


def test_two_processes_hold_equal_weights_and_one_writes(tmp_path):
    run_two(SCRIPT, tmp_path)
    first, second = (load_file(tmp_path / f"rank{r}of2.safetensors") for r in (0, 1))
    for key, value in first.items():
        assert torch.equal(value, second[key])
    assert float(first["spare"]) < 0.99, "what one process used is trained in both"
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert sum('"rollback"' in line for line in lines) == 1 and sum('"val_loss"' in line for line in lines) == 2


def test_averaged_gradients_keep_their_weights_layout(monkeypatch):
    # A fused optimiser steps along memory: a gradient of another layout would change the wrong weights.
    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: tensor.mul_(2))
    weight = torch.nn.Parameter(torch.randn(4, 3, 2, 2, 2).to(memory_format=torch.channels_last_3d))
    own = torch.randn(4, 3, 2, 2, 2)
    weight.grad = torch.empty_like(weight).copy_(own)
    World(0, 2).average_gradients([weight])
    assert weight.grad.stride() == weight.stride() and torch.allclose(weight.grad, own)
