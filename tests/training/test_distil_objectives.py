"""Distillation against data whose probability-flow ODE is known in closed form."""

from functools import partial

import pytest
import torch

from medgen.diffusion import edm, flow, vp
from medgen.errors import InputError
from medgen.registry import check_options, kinds, resolve
from medgen.sampling import euler, heun
from medgen.sampling.noise import Key, streams
from medgen.training.distil.paths import levels, paths, refined
from medgen.training.distil.straight import time_of, velocity
from medgen.training.distil.task import DistilTask, Teacher
from medgen.training.loop import Schedule, train
from tests.gaussian import MEAN, exact_model, exact_path, no_condition

CPU = torch.device("cpu")
SHAPE = (1, 2, 2, 2)
ROOM = "training.distil"
PROCESSES = {"flow": flow.build(shift=3.0), "edm": edm.build(), "vp": vp.build(zero_terminal=True)}


class Affine(torch.nn.Module):
    """A network that scales and shifts its input by functions of time: what a Gaussian's denoisers are."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.of_time = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.SiLU(), torch.nn.Linear(32, 2))

    def forward(self, x, time, cond):
        scale, shift = self.of_time(torch.stack([time, time**2, time**4], dim=1)).T
        return scale[:, None, None, None, None] * x + shift[:, None, None, None, None]


def teacher(process=PROCESSES["flow"], steps=64, model=exact_model):
    def ask(purpose, numbers):
        return no_condition(len(numbers))

    return Teacher(Affine(), model, process, heun.sample, steps, SHAPE, ask)


def task(folder, kind="trajectory", steps=4, **options):
    loss = partial(resolve(ROOM, kind, "loss"), **options)
    return DistilTask(teacher(), loss, folder, steps=steps, batch=16, reuse=8, learning_rate=0.02, drop=0.1, seed=0)


def schedule(steps):
    return Schedule(
        steps=steps, warmup=10, log_every=100, validate_every=steps, checkpoint_seconds=0.0, precision="float32"
    )


def test_a_velocity_takes_eulers_step_to_where_the_sampler_does():
    torch.manual_seed(1)
    x, sigmas = torch.randn(3, *SHAPE) * 4, torch.tensor([4.0, 0.5])
    there = euler.sample(exact_model, x, sigmas, no_condition(3), noise=lambda step: x)
    t, r = time_of(sigmas)
    z = x / 5.0
    moved = z - (t - r) * velocity(exact_model, z, t.expand(3), no_condition(3))
    assert torch.allclose(moved * 1.5, there, atol=1e-5)


@pytest.mark.parametrize("name", sorted(PROCESSES))
def test_paths_follow_the_exact_ode_through_the_students_levels(name):
    process, cond = PROCESSES[name], no_condition(2)
    own = levels(process, 4, cond)
    assert own[-1] == 0 and len(own) == 5 and bool((own.diff() < 0).all())
    noise = streams([Key(3, 0), Key(3, 1)], SHAPE)
    states, times = paths(exact_model, process, heun.sample, (2, *SHAPE), cond, noise, steps=4, teacher_steps=200)
    assert torch.allclose(times, time_of(own))
    start = states[:, 0] * (1 + own[0])
    for k, sigma in enumerate(own):
        assert torch.allclose(states[:, k] * (1 + sigma), exact_path(start, own[0], sigma), atol=5e-3), f"level {k}"


def test_a_teacher_passes_through_the_ends_of_the_students_steps_once():
    own, fine = torch.tensor([9.0, 1.0, 0.0]), torch.tensor([9.0, 3.0, 1.0, 0.4, 0.0])
    first, second = refined(own, fine)
    assert first.tolist() == [9.0, 3.0, 1.0]
    assert second.tolist() == pytest.approx([1.0, 0.4, 0.0])


@pytest.mark.parametrize("kind", kinds(ROOM, "loss"))
def test_a_student_of_four_steps_takes_the_teachers_way(tmp_path, kind):
    distilled = task(tmp_path, kind)
    untrained = distilled.distance(distilled.teacher.process.as_model(distilled.teacher.network))
    coarse = distilled.distance(exact_model)
    averages = train(distilled, tmp_path, schedule(600), CPU)
    reached = distilled.validate(averages)["rmse"]
    assert reached < 0.1 * untrained
    assert reached < 0.25 * coarse, "the exact denoiser itself, in as few steps"
    # The same map in closed form, from noise the training never saw.
    process = distilled.teacher.process
    network = Affine().requires_grad_(False)
    network.load_state_dict(averages["network"].state(network), strict=True)
    sigma = levels(process, 4, no_condition(8))[0]
    noise = streams([Key(11, i) for i in range(8)], SHAPE)
    drawn = process.sample(process.as_model(network), (8, *SHAPE), no_condition(8), euler.sample, noise, steps=4)
    exact = exact_path(sigma * noise(0), sigma, torch.tensor(0.0))
    assert float((drawn - exact).square().mean().sqrt()) < 0.25 * coarse
    assert float(drawn.mean()) == pytest.approx(MEAN, abs=0.2)


def test_a_resumed_distillation_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = train(task(tmp_path / "whole"), tmp_path / "whole", schedule(30), CPU)

    class Killed(DistilTask):
        def step(self, step, share):
            if step == 17:
                raise KeyboardInterrupt
            yield from super().step(step, share)

    killed = task(tmp_path / "killed")
    killed.__class__ = Killed
    with pytest.raises(KeyboardInterrupt):
        train(killed, tmp_path / "killed", schedule(30), CPU)
    # A path that is lost is drawn again, the same.
    sorted((tmp_path / "killed").rglob("0*.safetensors"))[0].unlink()
    again = train(task(tmp_path / "killed"), tmp_path / "killed", schedule(30), CPU)
    for key, value in whole["network"].average.items():
        assert torch.equal(value, again["network"].average[key])


def test_paths_of_long_ago_are_let_go_and_a_resumed_training_does_not_miss_them(tmp_path, monkeypatch):
    monkeypatch.setattr("medgen.training.distil.task._ROOM_BYTES", 0)
    monkeypatch.setattr("medgen.training.distil.task._LEAST_CHUNKS", 2)
    reuse = task(tmp_path / "whole").reuse
    whole = train(task(tmp_path / "whole"), tmp_path / "whole", schedule(8 * reuse), CPU)
    left = sorted(p.name for p in (tmp_path / "whole" / "paths-0").iterdir())
    assert left[-1] == "000007.safetensors" and len(left) <= 5

    class Killed(DistilTask):
        def step(self, step, share):
            if step == 6 * reuse + 1:
                raise KeyboardInterrupt
            yield from super().step(step, share)

    killed = task(tmp_path / "killed")
    killed.__class__ = Killed
    with pytest.raises(KeyboardInterrupt):
        train(killed, tmp_path / "killed", schedule(8 * reuse), CPU)
    again = train(task(tmp_path / "killed"), tmp_path / "killed", schedule(8 * reuse), CPU)
    for key, value in whole["network"].average.items():
        assert torch.equal(value, again["network"].average[key])


def test_each_process_of_a_distributed_training_has_paths_of_its_own(tmp_path):
    loss = resolve(ROOM, "trajectory", "loss")
    first, second = (
        DistilTask(
            teacher(), loss, tmp_path, steps=4, batch=2, reuse=8, learning_rate=0.01, drop=0.0, seed=0, rank=rank
        )
        for rank in (0, 1)
    )
    assert not torch.equal(first.paths(0), second.paths(0))
    assert torch.equal(first.held_out(0), second.held_out(0))


def test_a_student_learns_without_dropout_and_without_a_level_twice(tmp_path):
    assert not task(tmp_path, "trajectory").student.training
    loss = resolve(ROOM, "trajectory", "loss")
    how = {"batch": 2, "reuse": 8, "learning_rate": 0.01, "drop": 0.0, "seed": 0}
    with pytest.raises(InputError, match="in 50 steps this process repeats a noise level"):
        DistilTask(teacher(flow.build(shift=12.0)), loss, tmp_path / "many", steps=50, **how)


def test_the_objectives_are_found_by_name():
    check_options(ROOM, "trajectory", "loss", {})
    assert "trajectory" in kinds(ROOM, "loss")
