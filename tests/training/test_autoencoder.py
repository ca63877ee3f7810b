"""Training of codecs: what the adversary does, and that a resumed training is the uninterrupted one."""

from pathlib import Path

import pytest
import torch

from medgen.models.wavelet import build
from medgen.store.patches import PatchSampler
from medgen.training.adversary import Adversary, AdversaryOptions
from medgen.training.autoencoder import AutoencoderTask, LossWeights
from medgen.training.loop import Schedule, train

CPU = torch.device("cpu")


def _adversary(**options: float) -> Adversary:
    torch.manual_seed(1)
    return Adversary(AdversaryOptions(width=4, **options), 1, 1e-3, CPU)  # type: ignore[arg-type]


def test_the_pull_has_the_length_that_was_asked_for() -> None:
    adversary = _adversary(weight=0.3)
    real = torch.randn(2, 1, 16, 16, 16)
    made = torch.randn(2, 1, 16, 16, 16, requires_grad=True)
    others = (made - real).abs().mean()
    pull, _ = adversary.pull(made, real, others, 0.3)
    (mine,) = torch.autograd.grad(pull, made, retain_graph=True)
    (theirs,) = torch.autograd.grad(others, made)
    torch.testing.assert_close(mine.norm(), 0.3 * theirs.norm(), rtol=1e-3, atol=0)


def test_the_pull_leaves_no_gradient_in_the_discriminator() -> None:
    adversary = _adversary(weight=0.3)
    made = torch.randn(1, 1, 16, 16, 16, requires_grad=True)
    pull, _ = adversary.pull(made, torch.randn(1, 1, 16, 16, 16), made.abs().mean(), 0.3)
    pull.backward()
    assert all(p.grad is None for p in adversary.net.parameters())
    assert all(p.requires_grad for p in adversary.net.parameters())


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (0.3, 0.0), (0.35, 0.1), (0.4, 0.2), (0.9, 0.2)])
def test_the_strength_ramps(share: float, expected: float) -> None:
    assert _adversary(weight=0.2, start=0.3, ramp=0.1).strength(share) == pytest.approx(expected)


def _task(adversary: float = 0.2) -> AutoencoderTask:
    torch.manual_seed(0)
    codec = build(1, 3, channels=(4, 8), latent_channels=2)
    images, labels = torch.rand(4, 1, 16, 16, 16) * 2 - 1, torch.randint(-1, 3, (4, 1, 16, 16, 16))
    return AutoencoderTask(
        codec,
        PatchSampler([images.half(), labels.short()], (12, 12, 12), 2, seed=0),
        [],
        weights=LossWeights(l2=0.5, spectral=0.5),
        adversary=AdversaryOptions(weight=adversary, start=0.25, width=4),
        learning_rate=1e-3,
        seed=0,
    )


def test_before_its_start_there_is_no_adversary() -> None:
    task = _task()
    assert [name for _, name, _ in task.step(0, 0.1)] == ["codec"]
    assert [name for _, name, _ in task.step(0, 0.5)] == ["codec", "adversary"]


def test_a_resumed_training_is_the_uninterrupted_one(tmp_path: Path) -> None:
    schedule = Schedule(8, warmup=2, precision="float32", validate_every=100, checkpoint_seconds=0.0)
    whole = train(_task(), tmp_path / "whole", schedule, CPU)

    class KilledError(Exception):
        pass

    class Interrupted(AutoencoderTask):
        def step(self, step, share):
            if step == 5:
                raise KilledError
            yield from super().step(step, share)

    cut = _task()
    cut.__class__ = Interrupted
    with pytest.raises(KilledError):
        train(cut, tmp_path / "cut", schedule, CPU)
    resumed = train(_task(), tmp_path / "cut", schedule, CPU)
    for name in whole:
        for key, value in whole[name].average.items():
            assert torch.equal(value, resumed[name].average[key]), (name, key)


def test_the_losses_that_are_off_are_not_computed() -> None:
    task = _task(adversary=0.0)
    task.weights = LossWeights(l1=1.0, spectral=0.0, label=0.0)
    (_, _, figures), *_ = task.step(0, 0.5)
    assert set(figures) == {"loss", "l1", "kl"}
