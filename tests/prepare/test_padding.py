import numpy as np
import torch

from medgen.cohort.schema import Schema
from medgen.diffusion.flow import build
from medgen.models.condition import ConditionEncoder
from medgen.prepare.grid import GeometryRecord, Grid
from medgen.prepare.padding import known, reached, weights
from medgen.store.latent_rows import LatentRows
from medgen.store.latents import LatentStatistics
from medgen.training.diffusion import DiffusionTask, LatentSet


def record(source, target, start, world=None):
    """A grid of 1 mm cut out of, or padded around, another."""
    affine = np.eye(4)
    affine[:3, 3] = start
    return GeometryRecord(Grid(source, np.eye(4)), Grid(target, affine), np.eye(4) if world is None else world)


def test_padding_is_what_the_source_does_not_reach():
    found = reached(record((10, 8, 8), (16, 8, 8), (-3, 0, 0)))
    assert found.shape == (16, 8, 8) and found[3:13].all() and not found[:3].any() and not found[13:].any()
    blocks = reached(record((10, 8, 8), (16, 8, 8), (-3, 0, 0)), 4)
    assert blocks.shape == (4, 2, 2) and blocks.all(), "a block with one voxel of the source is none of padding"
    assert reached(record((10, 8, 8), (16, 8, 8), (-5, 0, 0)), 4)[:, 0, 0].tolist() == [False, True, True, True]


def test_a_turned_source_reaches_what_its_voxels_do():
    a = np.deg2rad(20)
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    r = record((12, 12, 8), (16, 16, 8), (-2, -2, 0), turn)
    ones = r.apply_image(np.ones((12, 12, 8), np.float32), fill=0.0)
    found = reached(r)
    assert (found[ones > 0.5]).all() and found.sum() < 1.1 * (ones > 0.5).sum()


def test_padding_counts_where_nobody_shows_what_is_there():
    there = np.ones((20, 4, 1, 1), dtype=bool)
    there[:, 3] = False  # no case reaches it
    there[1:, 2] = False  # one of twenty does
    there[:5, 0] = False
    counts = weights(there, known(there))[:, 0, :, 0, 0]
    assert (counts[:, 3] == 1).all() and (counts[:, 2] == 1).all() and (counts[:, 1] == 1).all()
    assert (counts[:5, 0] == 0).all() and (counts[5:, 0] == 1).all()
    assert weights(np.ones((3, 2, 2, 2), bool), np.ones((2, 2, 2), bool)) is None


class Table(torch.nn.Module):
    """Knows one value a place and nothing else: x0 is the table."""

    def __init__(self, start):
        super().__init__()
        self.x0 = torch.nn.Parameter(start)

    def forward(self, x, time, cond):
        return (x - self.x0) / time.reshape(-1, 1, 1, 1, 1)


def test_the_frame_is_learnt_as_background_and_holes_from_other_cases():
    background, tissue = -2.0, 1.0
    mean = torch.full((8, 1, 6, 2, 2), tissue)
    there = np.ones((8, 6, 2, 2), dtype=bool)
    there[:, 5], there[:3, 0] = False, False
    mean[torch.from_numpy(~there)[:, None]] = background
    cond = ConditionEncoder.fit(Schema(()), [{}]).encode([{}] * 8)
    counts = torch.from_numpy(weights(there, known(there)))
    task = DiffusionTask(
        Table(torch.full((1, 1, 6, 2, 2), 3.0)),
        build(),
        LatentSet(LatentRows(mean, torch.full_like(mean, -20.0), mean.device, weight=counts), cond),
        LatentStatistics((0.0,), (1.0,)),
        None,
        batch=8,
        learning_rate=0.1,
        drop_all=0.0,
        drop_each=0.0,
        seed=0,
    )
    for step in range(200):
        for loss, name, _ in task.step(step, 0.0):
            task.optimisers[name].zero_grad()
            loss.backward()
            task.optimisers[name].step()
    learnt = task.network.x0.detach()[0, 0, :, 0, 0]
    assert abs(float(learnt[5]) - background) < 0.2, "no bright frame where every case was padded"
    assert abs(float(learnt[0]) - tissue) < 0.2, "the padding of some cases is no part of the anatomy"
