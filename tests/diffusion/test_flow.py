import numpy as np
import pytest
import torch
from scipy import stats

from medgen.diffusion import flow
from medgen.errors import InputError
from medgen.models.seam import expand
from medgen.sampling import heun
from tests.gaussian import MEAN, STD, exact_model, no_condition


def exact_velocity(x_t, t, cond):
    """E[noise - x0 | x_t] for x0 ~ N(MEAN, STD^2), x_t = (1 - t) x0 + t noise."""
    s = expand(t, x_t)
    variance = (1 - s) ** 2 * STD**2 + s**2
    covariance = s - (1 - s) * STD**2
    return -MEAN + covariance / variance * (x_t - (1 - s) * MEAN)


def test_as_model_of_exact_velocity_is_exact_denoiser():
    x = torch.randn(5, 2, 3, 3, 3, dtype=torch.float64) * 3
    sigma = torch.tensor([1e-3, 0.1, 1.0, 5.0, 400.0], dtype=torch.float64)
    ours = flow.build().as_model(lambda *a: exact_velocity(*a).double())
    got = x / expand(1 + sigma, x) - expand(sigma / (1 + sigma), x) * exact_velocity(
        x / expand(1 + sigma, x), sigma / (1 + sigma), None
    )
    assert torch.allclose(got, exact_model(x, sigma, None).x0, atol=1e-9)
    assert torch.allclose(ours(x.float(), sigma.float(), no_condition(5)).x0.double(), got, atol=1e-3)


def test_samples_have_the_data_distribution():
    process = flow.build()
    model = process.as_model(exact_velocity)
    shape = (64, 1, 8, 8, 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = process.sample(model, shape, no_condition(64), heun.sample, lambda step: noise, steps=30)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(x.std()) == pytest.approx(STD, abs=0.01)


def test_loss_is_least_for_the_exact_velocity():
    process = flow.build()
    random = torch.Generator().manual_seed(1)
    x0 = MEAN + STD * torch.randn(512, 1, 4, 4, 4, generator=random)
    noise, uniform = torch.randn(x0.shape, generator=random), torch.rand(512, generator=random)

    def loss(scale):
        net = lambda *a: scale * exact_velocity(*a)  # noqa: E731
        return float(process.loss(net, x0, no_condition(512), noise, uniform).mean())

    best = loss(1.0)
    assert best < loss(0.95) and best < loss(1.05)
    t = process.time(uniform)
    conditional_variance = STD**2 + 1 - (t - (1 - t) * STD**2) ** 2 / ((1 - t) ** 2 * STD**2 + t**2)
    assert best == pytest.approx(float(conditional_variance.mean()), rel=0.02)


def test_times_are_logit_normal_and_shifted():
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(2))
    t = flow.build(time_mean=-0.3, time_std=0.8, shift=1.0).time(uniform).double().numpy()
    assert stats.kstest(np.log(t / (1 - t)), stats.norm(-0.3, 0.8).cdf).pvalue > 0.01
    plain, shifted = flow.build(shift=1.0).time(uniform), flow.build(shift=3.0).time(uniform)
    assert torch.allclose(shifted, 3 * plain / (1 + 2 * plain), atol=1e-6)


def test_sigmas_fall_from_a_finite_start_to_zero():
    sigmas = flow.build(shift=2.0, t_max=0.99).sigmas(7)
    assert len(sigmas) == 8 and sigmas[-1] == 0
    assert (sigmas[1:] < sigmas[:-1]).all()
    assert float(sigmas[0]) == pytest.approx(99, rel=1e-4)


@pytest.mark.parametrize("options", [{"t_max": 1.0}, {"t_max": 0.2}, {"shift": 0.0}, {"time_std": -1.0}])
def test_values_that_make_no_process_are_refused(options):
    with pytest.raises(InputError, match="diffusion 'flow'"):
        flow.build(**options)
