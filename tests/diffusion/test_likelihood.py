"""Densities against the closed-form Gaussian of ``tests/gaussian.py``."""

import math

import pytest
import torch

from medgen.diffusion import edm, flow, vp
from medgen.diffusion.likelihood import bits_per_dim, ode_likelihood, variational_bound
from medgen.models.seam import Prediction, expand
from medgen.sampling.noise import Key, streams
from tests.gaussian import MEAN, STD, exact_model, exact_path, no_condition

SHAPE = (2, 4, 4, 4)
SCALARS = math.prod(SHAPE)


def data(rows):
    return MEAN + STD * torch.randn(rows, *SHAPE, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def log_density(x0, smoothing):
    variance = STD**2 + smoothing**2
    return -0.5 * ((x0 - MEAN).square() / variance + math.log(2 * math.pi * variance)).flatten(1).sum(dim=1)


def noise(rows):
    return streams([Key(0, i) for i in range(rows)], SHAPE)


@pytest.mark.parametrize("process", [flow.build(), edm.build(), vp.build()], ids=["flow", "edm", "vp"])
def test_ode_likelihood_is_the_gaussians(process):
    x0 = data(3)
    got = ode_likelihood(exact_model, x0, no_condition(3), noise(3), sigma_range=process.sigma_range, tolerance=1e-6)
    low, high = process.sigma_range
    end = exact_path(x0, low, high) / (1 + high**2) ** 0.5
    assert torch.allclose(got.end, end, atol=1e-4)
    stretch = math.log(((STD**2 + high**2) / (STD**2 + low**2)) ** 0.5 / (1 + high**2) ** 0.5)
    reached = -0.5 * (end**2 + math.log(2 * math.pi)).flatten(1).sum(dim=1) + SCALARS * stretch
    assert torch.allclose(got.log_density, reached, atol=1e-4 * SCALARS)
    # The prior N(0, 1) of y is not the marginal's own mean and spread at the largest sigma: a small bias.
    truth = bits_per_dim(log_density(x0, low), SCALARS)
    assert torch.allclose(got.bits_per_dim, truth, atol=5 * MEAN / high / SCALARS**0.5 + 1e-3)
    assert got.evaluations < 400


def test_a_looser_tolerance_costs_less_and_stays_within_it():
    x0, sigmas = data(2), edm.build().sigma_range
    fine, rough = (
        ode_likelihood(exact_model, x0, no_condition(2), noise(2), sigma_range=sigmas, tolerance=t)
        for t in (1e-7, 1e-3)
    )
    assert rough.evaluations < fine.evaluations / 2
    assert torch.allclose(rough.bits_per_dim, fine.bits_per_dim, atol=0.01)


def test_the_trace_is_unbiased_where_the_jacobian_is_not_diagonal():
    """Data of one common value a row plus noise of its own: the Jacobian has off-diagonal entries."""
    own, common = 0.3, 0.6

    def model(x, sigma, cond, *, taps=()):
        s2, n = expand(sigma, x) ** 2, x[0].numel()
        mean = x.flatten(1).mean(dim=1).reshape(-1, 1, 1, 1, 1)
        within, between = own**2 / (own**2 + s2), (own**2 + n * common**2) / (own**2 + n * common**2 + s2)
        return Prediction(within * (x - mean) + between * mean)

    shape = (1, 2, 2, 2)
    random = torch.Generator().manual_seed(5)
    x0 = own * torch.randn(4, *shape, generator=random, dtype=torch.float64)
    x0 = x0 + common * torch.randn(4, 1, 1, 1, 1, generator=random, dtype=torch.float64)
    covariance = own**2 * torch.eye(8, dtype=torch.float64) + common**2
    truth = torch.distributions.MultivariateNormal(torch.zeros(8, dtype=torch.float64), covariance)
    draws = streams([Key(1, i) for i in range(4)], shape)
    got = ode_likelihood(model, x0, no_condition(4), draws, sigma_range=(0.002, 80), probes=64, tolerance=1e-5)
    assert torch.allclose(got.log_density, truth.log_prob(x0.flatten(1)), atol=1.0)
    other = ode_likelihood(model, x0, no_condition(4), lambda step: draws(step + 900), sigma_range=(0.002, 80))
    assert not torch.allclose(other.log_density, got.log_density, atol=1e-3)  # one probe is a draw


def test_gradients_stay_out_of_the_network():
    weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
    model = lambda x, s, c, *, taps=(): Prediction(weight * exact_model(x, s, c).x0)  # noqa: E731
    with torch.no_grad():
        got = ode_likelihood(model, data(1), no_condition(1), noise(1), sigma_range=(0.01, 50), tolerance=1e-3)
    assert weight.grad is None and not got.log_density.requires_grad


def test_variational_bound_is_its_closed_form_and_lies_above_the_density():
    process, rows = vp.build(), 8
    x0 = data(rows)
    bound = variational_bound(exact_model, x0, no_condition(rows), process.levels, noise(rows))
    s2 = process.levels.double() ** 2
    error = STD**2 * s2 / (STD**2 + s2)  # variance of x0 given x
    terms = 0.5 * (1 / s2[:-1] - 1 / s2[1:]) * error[1:] * SCALARS
    assert bound.terms.shape == (999, rows)
    standard = terms * (2 / (SCALARS * rows)) ** 0.5  # of a mean of chi-squares
    assert ((bound.terms.mean(dim=1) - terms).abs() < 5 * standard).all()
    assert float(bound.terms.sum(dim=0).mean()) == pytest.approx(float(terms.sum()), rel=0.01)
    first = 0.5 * SCALARS * (error[0] / s2[0] + torch.log(2 * math.pi * s2[0]))
    assert float(bound.reconstruction.mean()) == pytest.approx(float(first), rel=0.02)
    sigma = float(process.levels[-1])
    normal = torch.distributions.Normal
    prior = torch.distributions.kl_divergence(normal(x0, sigma), normal(0.0, (1 + sigma**2) ** 0.5))
    assert torch.allclose(bound.prior, prior.flatten(1).sum(dim=1))
    exact = bits_per_dim(log_density(x0, 0.0), SCALARS).mean()
    gap = float(bound.bits_per_dim.mean() - exact)
    # The chain's first steps double the variance each: a third of a bit is theirs, whatever the network.
    assert 0 < gap < 0.4


def test_more_timesteps_tighten_the_bound():
    x0, gaps = data(16), []
    for timesteps in (25, 100, 400):
        levels = vp.build().levels.quantile(torch.linspace(0, 1, timesteps))
        gaps.append(float(variational_bound(exact_model, x0, no_condition(16), levels, noise(16)).bits_per_dim.mean()))
    assert gaps[0] > gaps[1] > gaps[2] > float(bits_per_dim(log_density(x0, 0.0), SCALARS).mean())
