import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler
from scipy import stats

from medgen.diffusion import edm
from medgen.errors import InputError
from medgen.models.seam import expand
from medgen.sampling import heun
from tests.gaussian import MEAN, STD, exact_model, no_condition


def exact_network(process):
    """F of the exact denoiser, from its scaled input and c_noise alone (equation 7, solved for F)."""

    def net(scaled, time, cond):
        sigma = process.sigma_min * (process.sigma_max / process.sigma_min) ** time.double()
        s, d = expand(sigma, scaled), process.sigma_data
        total = s**2 + d**2
        x = scaled * total.sqrt()
        return ((exact_model(x, sigma, cond).x0 - d**2 / total * x) * total.sqrt() / (s * d)).float()

    return net


@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_as_model_of_an_exact_network_is_the_exact_denoiser(sigma_data):
    process = edm.build(sigma_data=sigma_data)
    sigma = torch.tensor([0.002, 0.03, 1.0, 7.0, 80.0])
    x = MEAN + torch.randn(5, 2, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * expand(
        (STD**2 + sigma**2).sqrt(), torch.zeros(5, 1, 1, 1, 1)
    )
    got = process.as_model(exact_network(process))(x, sigma, no_condition(5)).x0
    assert torch.allclose(got, exact_model(x, sigma, None).x0, atol=2e-5)


def test_input_and_target_of_the_network_have_unit_variance():
    process = edm.build(sigma_data=STD)
    random = torch.Generator().manual_seed(1)
    x0, noise = torch.randn(2, 400, 1, 4, 4, 4, generator=random)
    for share in (0.05, 0.5, 0.95):
        seen = []
        net = lambda x, t, cond, seen=seen: seen.append(x) or torch.zeros_like(x)  # noqa: E731
        loss = process.loss(net, STD * x0, no_condition(400), noise, torch.full((400,), share))
        assert float(seen[0].var()) == pytest.approx(1, rel=0.03)
        assert float(loss.mean()) == pytest.approx(1, rel=0.03)  # of a network that says 0


def test_loss_is_the_papers_weighted_denoising_error():
    process = edm.build(sigma_data=0.5)
    random = torch.Generator().manual_seed(2)
    x0, noise = torch.randn(2, 6, 1, 4, 4, 4, generator=random)
    uniform = torch.rand(6, generator=random)
    net = lambda x, t, cond: torch.sin(x) * (1 + expand(t, x))  # noqa: E731
    sigma = process.level(uniform)
    denoised = process.as_model(net)(x0 + expand(sigma, x0) * noise, sigma, no_condition(6)).x0
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    expected = weight * (denoised - x0).square().flatten(1).mean(dim=1)
    assert torch.allclose(process.loss(net, x0, no_condition(6), noise, uniform), expected, rtol=1e-3)


def test_preconditioning_and_schedule_are_diffusers():
    process, peer = edm.build(sigma_data=0.5), EDMEulerScheduler(0.002, 80.0, sigma_data=0.5)
    peer.set_timesteps(18)
    assert torch.allclose(process.sigmas(18), peer.sigmas, rtol=1e-5)
    x, raw = torch.randn(2, 1, 1, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    for sigma in (0.01, 0.5, 30.0):
        level = torch.tensor([sigma])
        seen = []
        net = lambda x, t, cond, seen=seen: seen.append(x) or raw  # noqa: E731
        ours = process.as_model(net)(x, level, no_condition(1)).x0
        assert torch.allclose(seen[0], peer.precondition_inputs(x, level), atol=1e-6)
        assert torch.allclose(ours, peer.precondition_outputs(x, raw, level), atol=1e-5)


def test_levels_are_log_normal_relative_to_the_data():
    uniform = torch.rand(4000, generator=torch.Generator().manual_seed(4))
    process = edm.build(sigma_data=0.5, log_mean=-0.5, log_std=1.2)
    log = np.log(process.level(uniform).double().numpy())
    assert stats.kstest(log, stats.norm(-0.5 + np.log(0.5), 1.2).cdf).pvalue > 0.01
    time = process.time(torch.tensor([1e-9, 0.002, 0.4, 80.0, 1e4]))
    assert torch.allclose(time, torch.tensor([0, 0, 0.5, 1, 1]), atol=1e-6)


def test_loss_is_least_for_the_exact_network_and_padding_is_left_out():
    process = edm.build()
    random = torch.Generator().manual_seed(5)
    x0 = MEAN + STD * torch.randn(512, 1, 4, 4, 4, generator=random)
    noise, uniform = torch.randn(x0.shape, generator=random), torch.rand(512, generator=random)
    net = exact_network(process)
    loss = lambda scale: float(process.loss(lambda *a: scale * net(*a), x0, no_condition(512), noise, uniform).mean())  # noqa: E731
    assert loss(1.0) < loss(0.95) and loss(1.0) < loss(1.05)
    weight = torch.zeros(1, 1, 4, 4, 4)
    weight[..., :3] = 1
    whole = process.loss(net, x0, no_condition(512), noise, uniform, weight=weight)
    inside = process.loss(net, x0[..., :3], no_condition(512), noise[..., :3], uniform)
    assert torch.allclose(whole, inside, rtol=1e-5)


def test_samples_have_the_data_distribution():
    process, shape = edm.build(), (64, 1, 8, 8, 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model = process.as_model(exact_network(process))
    x = process.sample(model, shape, no_condition(64), heun.sample, lambda step: noise, steps=18)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(x.std()) == pytest.approx(STD, abs=0.02)


@pytest.mark.parametrize("options", [{"sigma_min": 0.0}, {"sigma_min": 3.0, "sigma_max": 2.0}, {"rho": 0.0}])
def test_what_makes_no_process_is_refused(options):
    with pytest.raises(InputError, match="diffusion 'edm' needs"):
        edm.build(**options)
