import pytest
import torch

from medgen.models.seam import expand
from medgen.sampling.heun import sample
from medgen.steering.gradient import guide
from tests.steering.toy import cond, gaussian

MEAN, STD, NOISE, ASKED = 0.5, 0.8, 0.1, torch.tensor([2.0, -1.0])
MODEL = gaussian(lambda c: (MEAN, STD))
COND = cond([[None, None]] * 2)
SIGMA = torch.tensor([0.4, 3.0])
X = torch.randn(2, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0)) * 2


def measure(x0, c):
    """-log p(y | x0): y is the mean of the cells with noise."""
    return 0.5 * ((x0.flatten(1).mean(1) - ASKED) / NOISE).square()


def posterior(x, sigma):
    """E[x0 | x, y] in closed form."""
    s2 = expand(sigma, x) ** 2
    v = STD**2 * s2 / (STD**2 + s2)
    m = (STD**2 * x + s2 * MEAN) / (STD**2 + s2)
    n = x[0].numel()
    gain = (v / n) / (v / n + NOISE**2)
    return m + gain * (expand(ASKED, x) - m.flatten(1).mean(1).reshape(-1, 1, 1, 1, 1))


@pytest.mark.parametrize("repeats", [1, 3])
def test_newton_is_the_exact_posterior_mean_of_a_linear_measurement(repeats):
    with torch.no_grad():
        out = guide(MODEL, measure, newton=True, repeats=repeats)(X, SIGMA, COND)
    assert torch.allclose(out.x0, posterior(X, SIGMA), atol=1e-5)
    assert not out.x0.requires_grad


def test_samples_follow_the_posterior():
    sigmas = torch.cat([torch.logspace(2, -2, 60), torch.zeros(1)])
    x = 100 * torch.randn(400, 1, 2, 2, 2, generator=torch.Generator().manual_seed(1))

    def all_two(x0, c):
        return 0.5 * ((x0.flatten(1).mean(1) - 2.0) / NOISE).square()

    with torch.no_grad():
        out = sample(guide(MODEL, all_two, newton=True), x, sigmas, cond([[None, None]] * 400), noise=None)
    gain = (STD**2 / 8) / (STD**2 / 8 + NOISE**2)
    means = out.flatten(1).mean(1)
    assert abs(float(means.mean()) - (MEAN + gain * (2 - MEAN))) < 0.02
    assert abs(float(means.std()) - ((1 - gain) * STD**2 / 8) ** 0.5) < 0.015


def test_without_newton_the_move_is_the_covariance_times_the_gradient():
    """DPS: it points where the posterior mean lies and overshoots, as it leaves out the estimate's own variance."""
    m = MODEL(X, SIGMA, COND).x0
    v = STD**2 * SIGMA**2 / (STD**2 + SIGMA**2)
    slope = (m.flatten(1).mean(1) - ASKED) / NOISE**2 / 8
    for scale in (0.1, 1.0):
        move = guide(MODEL, measure, scale=scale)(X, SIGMA, COND).x0 - m
        assert torch.allclose(move, -scale * expand(v * slope, X).expand_as(X), rtol=1e-3)
        assert (move * (posterior(X, SIGMA) - m) > 0).all()


def test_beside_the_denoiser_the_covariance_is_that_of_unit_data():
    unit = gaussian(lambda c: (0.0, 1.0))
    a, b = (guide(unit, measure, newton=True, through=t)(X, SIGMA, COND).x0 for t in (True, False))
    assert torch.allclose(a, b, atol=1e-5)


def test_repeats_meet_a_measure_that_is_not_linear():
    def square(x0, c):
        return 0.5 * ((x0.square().flatten(1).mean(1) - 4.0) / 0.01).square()

    errors = []
    for repeats in (1, 2, 6):
        x0 = guide(MODEL, square, newton=True, through=False, repeats=repeats)(X, SIGMA, COND).x0
        errors.append(float((x0.square().flatten(1).mean(1) - 4).abs().max()))
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.01


def test_rows_are_their_own_and_nothing_measured_moves_nothing():
    whole = guide(MODEL, measure, newton=True)(X, SIGMA, COND).x0

    def first(x0, c):
        return 0.5 * ((x0.flatten(1).mean(1) - ASKED[:1]) / NOISE).square()

    assert torch.allclose(whole[:1], guide(MODEL, first, newton=True)(X[:1], SIGMA[:1], COND.rows([0])).x0, atol=1e-6)
    for newton in (True, False):
        still = guide(MODEL, lambda x0, c: x0.new_zeros(len(x0)), newton=newton)(X, SIGMA, COND).x0
        assert torch.equal(still, MODEL(X, SIGMA, COND).x0)


def test_the_interval_and_gradients_of_the_caller():
    off = guide(MODEL, measure, interval=(5, 9))(X, SIGMA, COND).x0
    assert torch.equal(off, MODEL(X, SIGMA, COND).x0)
    x = X.clone().requires_grad_(True)
    nested = guide(guide(MODEL, measure, newton=True), lambda x0, c: 0.5 * x0.flatten(1).sum(1).square(), newton=True)
    with torch.no_grad():
        assert torch.isfinite(nested(X, SIGMA, COND).x0).all()
    guide(MODEL, measure, newton=True)(x, SIGMA, COND).x0.sum().backward()
    assert x.grad is not None
