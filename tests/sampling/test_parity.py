"""Step for step the same as diffusers and MONAI, where they implement the same thing, on a network without meaning."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
)
from monai.networks import schedulers as monai

from medgen.diffusion import edm, vp
from medgen.models.seam import expand
from medgen.sampling import ancestral, dpmpp, euler, heun, plms
from medgen.sampling.noise import generator
from tests.gaussian import no_condition

BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.0015, 0.0205)}
PEER_NAMES = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
SHAPE = (2, 3, 4, 4, 4)
WEIGHT = torch.randn(3, 3, 3, 3, 3, generator=generator("parity")) * 0.1


def network(x, time, cond=None):
    """Random, smooth and bounded; the timestep it is shown is 1000 ``time``."""
    mixed = torch.nn.functional.conv3d(x, WEIGHT.to(x), padding=1)
    return torch.tanh(mixed + 0.3 * torch.sin(0.01 * expand(1000 * time, x)))


def at(n):
    """``network`` as a peer calls it: with integer timesteps."""
    return torch.as_tensor(n).reshape(1).expand(SHAPE[0]) / 1000


def noise(step):
    return torch.randn(SHAPE, generator=generator("noise", step))


def ours(process, sampler, steps, **options):
    model = process.as_model(network)
    path = []

    def watched(x, sigma, cond, *, taps=()):
        path.append(x / expand((1 + sigma**2).sqrt(), x))
        return model(x, sigma, cond)

    end = process.sample(
        watched,
        SHAPE,
        no_condition(SHAPE[0]),
        lambda *a, **k: sampler.sample(*a, **k, **options),
        noise,
        steps=steps,
    )
    return [*path, end]


def peers(scheduler, steps, step=None):
    """The path of a diffusers or MONAI scheduler in x_t, the network called once a timestep."""
    scheduler.set_timesteps(steps)
    x, path = noise(0), []
    for i, n in enumerate(scheduler.timesteps):
        path.append(x)
        said = network(x, at(n))
        x = step(i, said, n, x) if step else scheduler.step(said, n, x)[0]
    return [*path, x]


def same(mine, theirs, tolerance=1e-4):
    """At every evaluation, within ``tolerance`` of the range: a network without meaning drives x far out."""
    assert len(mine) == len(theirs)
    for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
        error = float((a - b).abs().max() / b.abs().max().clamp(min=1))
        assert error < tolerance, f"evaluation {i}: {error}"


def process(schedule, prediction="eps", spacing="leading", **more):
    start, end = BETAS[schedule]
    return vp.build(schedule=schedule, beta_start=start, beta_end=end, prediction=prediction, spacing=spacing, **more)


def peer(kind, schedule, prediction="eps", spacing="leading", **more):
    start, end = BETAS[schedule]
    return kind(1000, start, end, schedule, prediction_type=PEER_NAMES[prediction], timestep_spacing=spacing, **more)


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
@pytest.mark.parametrize("schedule", BETAS)
def test_ddim(schedule, prediction, eta):
    scheduler = peer(DDIMScheduler, schedule, prediction, clip_sample=False)

    def step(i, said, n, x):
        return scheduler.step(said, n, x, eta=eta, variance_noise=noise(i + 1))[0]

    # The peer's last step ends at abar = 1, and its noise is 0 there.
    same(ours(process(schedule, prediction), ancestral, 50, eta=eta), peers(scheduler, 50, step))


@pytest.mark.parametrize("schedule", BETAS)
def test_ddim_of_monai_with_the_published_timesteps(schedule):
    """MONAI 1.6 starts its own at 999; brain LDM and others were published with 980, 960, ..., 0."""
    start, end = BETAS[schedule]
    scheduler = monai.DDIMScheduler(1000, f"{schedule}_beta", beta_start=start, beta_end=end, clip_sample=False)
    scheduler.set_timesteps(50)
    scheduler.timesteps = torch.arange(980, -1, -20)
    x, theirs = noise(0), []
    for n in scheduler.timesteps:
        theirs.append(x)
        x = scheduler.step(network(x, at(n)), int(n), x)[0]
    same(ours(process(schedule), ancestral, 50, eta=0.0), [*theirs, x])
    same(ours(process(schedule), euler, 50), [*theirs, x])


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("steps", [20, 250])
def test_ddpm(prediction, steps, monkeypatch):
    scheduler = peer(DDPMScheduler, "linear", prediction, clip_sample=False)
    drawn = iter(range(1, steps + 1))
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, **k: noise(next(drawn)))
    same(ours(process("linear", prediction), ancestral, steps), peers(scheduler, steps))


def test_ddpm_of_monai_at_every_timestep():
    """Ho et al.'s algorithm 2. Over fewer timesteps MONAI 1.6 goes on taking the posterior of a single one."""
    scheduler = monai.DDPMScheduler(1000, "linear_beta", clip_sample=False)
    built, model = process("linear"), process("linear").as_model(network)
    x = noise(0)
    # Not to the very end: MONAI's abar is a float32 product, and 1 - abar has three digits left there.
    for i, n in enumerate(range(460, 400, -1), 1):
        abar = scheduler.alphas_cumprod[n]
        x0 = (x - (1 - abar) ** 0.5 * network(x, at(n))) / abar**0.5
        x = scheduler._get_mean(n, x0, x) + scheduler._get_variance(n) ** 0.5 * noise(i)
    levels = built.levels[400:461].flip(0)
    mine = ancestral.sample(model, (1 + levels[0] ** 2).sqrt() * noise(0), levels, no_condition(2), noise=noise)
    same([mine * (1 + levels[-1] ** 2).rsqrt()], [x])


@pytest.mark.parametrize("schedule", BETAS)
def test_plms(schedule):
    scheduler = peer(PNDMScheduler, schedule, skip_prk_steps=True, set_alpha_to_one=True)
    same(ours(process(schedule), plms, 50), peers(scheduler, 50))


def test_plms_of_monai_with_the_published_timesteps():
    """MONAI 1.6's own list has 960 once, and x lags a step from there; published lists have it twice."""
    start, end = BETAS["scaled_linear"]
    scheduler = monai.PNDMScheduler(
        1000, "scaled_linear_beta", skip_prk_steps=True, set_alpha_to_one=True, beta_start=start, beta_end=end
    )
    scheduler.set_timesteps(50)
    x, theirs = noise(0), []
    for n in [980, 960, *range(960, -1, -20)]:
        theirs.append(x)
        x = scheduler.step(network(x, at(n)), n, x)[0]
    same(ours(process("scaled_linear"), plms, 50), [*theirs, x])


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_dpmpp(prediction, spacing):
    scheduler = peer(DPMSolverMultistepScheduler, "scaled_linear", prediction, spacing)
    scheduler.set_timesteps(20)
    visited = scheduler.timesteps
    built = process("scaled_linear", prediction, spacing)
    # The peer's "leading" starts one stride from the end in its own way; the same timesteps are given to ours.
    sigmas = torch.cat([built.levels[visited], torch.zeros(1)])
    path, x = [], noise(0) * (1 + sigmas[0] ** 2).sqrt()
    model = built.as_model(network)

    def watched(x, sigma, cond, *, taps=()):
        path.append(x / expand((1 + sigma**2).sqrt(), x))
        return model(x, sigma, cond)

    end = dpmpp.sample(watched, x, sigmas, no_condition(2), noise=noise)
    same([*path, end], peers(scheduler, 20))


def test_dpmpp_sde():
    scheduler = peer(DPMSolverMultistepScheduler, "scaled_linear", "eps", "trailing", algorithm_type="sde-dpmsolver++")

    def step(i, said, n, x):
        return scheduler.step(said, n, x, variance_noise=noise(i + 1))[0]

    same(ours(process("scaled_linear", "eps", "trailing"), dpmpp, 20, eta=1.0), peers(scheduler, 20, step))


def test_heun_and_euler_with_karras_sigmas():
    built = process("scaled_linear", "eps", "karras")
    for kind, sampler, options in (
        (EulerDiscreteScheduler, euler, {}),
        (HeunDiscreteScheduler, heun, {"variable": "sigma"}),
    ):
        scheduler = peer(kind, "scaled_linear", "eps", "linspace", use_karras_sigmas=True)
        scheduler.set_timesteps(12)
        start = (1 + scheduler.sigmas[0] ** 2).sqrt() * noise(0)
        x, theirs = start, []
        for n in scheduler.timesteps:
            scaled = scheduler.scale_model_input(x, n)
            theirs.append(scaled)
            x = scheduler.step(network(scaled, at(n)), n, x)[0]
        assert np.allclose(built.sigmas(12), scheduler.sigmas.unique().flip(0), rtol=1e-4)
        same(ours(built, sampler, 12, **options), [*theirs, x])


def test_euler_ancestral(monkeypatch):
    scheduler = peer(EulerAncestralDiscreteScheduler, "scaled_linear", "eps", "trailing")
    drawn = iter(range(1, 21))
    name = "diffusers.schedulers.scheduling_euler_ancestral_discrete.randn_tensor"
    monkeypatch.setattr(name, lambda *a, **k: noise(next(drawn)))
    built = process("scaled_linear", "eps", "trailing")
    scheduler.set_timesteps(20)
    x, theirs = (1 + scheduler.sigmas[0] ** 2).sqrt() * noise(0), []
    for n in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, n)
        theirs.append(scaled)
        x = scheduler.step(network(scaled, at(n)), n, x)[0]
    same(ours(built, ancestral, 20), [*theirs, x])


@pytest.mark.parametrize(("kind", "sampler"), [(EDMEulerScheduler, euler), (EDMDPMSolverMultistepScheduler, dpmpp)])
def test_edm(kind, sampler):
    scheduler = kind(0.002, 80.0, sigma_data=0.5)
    scheduler.set_timesteps(18)
    built = edm.build(sigma_data=0.5)
    x, theirs = 80.0 * noise(0), []
    for n, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        theirs.append(x / (1 + sigma**2).sqrt())
        scaled = scheduler.scale_model_input(x, n)
        x = scheduler.step(network(scaled, built.time(sigma.reshape(1)).expand(2)), n, x)[0]
    same(ours(built, sampler, 18), [*theirs, x])


def test_edm_heun_is_the_papers_algorithm_1():
    built = edm.build(sigma_data=0.5)
    model = built.as_model(network)
    x = built.sigmas(10)[0] * noise(0)
    for sigma, to in pairwise(built.sigmas(10)):
        d = (x - model(x, sigma.expand(2), None).x0) / sigma
        ahead = x + (to - sigma) * d
        if to != 0:
            other = (ahead - model(ahead, to.expand(2), None).x0) / to
            ahead = x + (to - sigma) * (d / 2 + other / 2)
        x = ahead
    assert torch.allclose(ours(built, heun, 10, variable="sigma")[-1], x, atol=1e-4)
