import pytest
import torch
from diffusers import DDPMScheduler

from medgen.diffusion import vp
from medgen.errors import InputError
from medgen.models.seam import expand
from medgen.sampling import dpmpp, heun
from tests.gaussian import MEAN, STD, exact_model, no_condition

PREDICTIONS = ("eps", "v", "x0")


def exact_network(process):
    """What a perfect network of this process says of Gaussian data, from x_t and time alone."""

    def net(x_t, time, cond):
        n = 1000 * time.double()
        low = n.floor().long().clamp(0, process.timesteps - 2)
        log = process.levels.double().log()
        sigma = expand((log[low] + (n - low) * (log[low + 1] - log[low])).exp(), x_t)
        total = (1 + sigma**2).sqrt()
        x0 = exact_model(total * x_t.double(), sigma.flatten(), cond).x0
        noise = (total * x_t - x0) / sigma
        said = {"eps": noise, "v": (noise - sigma * x0) / total, "x0": x0}[process.prediction]
        return said.float()

    return net


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_as_model_of_an_exact_network_is_the_exact_denoiser(prediction):
    process = vp.build(prediction=prediction)
    sigma = torch.cat([process.levels[[0, 7, 500, 999]], torch.tensor([0.3, 20.0])])
    x = torch.randn(6, 2, 3, 3, 3, generator=torch.Generator().manual_seed(0)) * expand(
        (STD**2 + sigma**2).sqrt(), torch.zeros(1, 1, 1, 1, 1)
    )
    got = process.as_model(exact_network(process))(x, sigma, no_condition(6)).x0
    # eps is divided by the signal's small share at the largest sigma: float32 leaves four digits there.
    assert torch.allclose(got, exact_model(x, sigma, None).x0, atol=2e-3 if prediction == "eps" else 2e-5)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_loss_is_least_for_the_exact_network(schedule, prediction):
    process = vp.build(schedule=schedule, prediction=prediction)
    random = torch.Generator().manual_seed(1)
    x0 = MEAN + STD * torch.randn(256, 1, 4, 4, 4, generator=random)
    noise, uniform = torch.randn(x0.shape, generator=random), torch.rand(256, generator=random)
    net = exact_network(process)

    def loss(scale):
        return float(process.loss(lambda *a: scale * net(*a), x0, no_condition(256), noise, uniform).mean())

    assert loss(1.0) < loss(0.95) and loss(1.0) < loss(1.05)


def test_min_snr_weighs_the_estimate_of_x0_alike_whatever_is_predicted():
    """Hang et al. 2023, section 3.4: min(SNR, gamma) |x0 - D|^2 in all three."""
    level = torch.tensor([0.05, 0.4, 1.0, 5.0])
    per_x0 = {"eps": level**-2, "v": level**-2 + 1, "x0": torch.ones(4)}  # squared error of each, for |x0 - D| = 1
    for prediction, error in per_x0.items():
        weighted = vp.build(prediction=prediction, min_snr=5.0).weight(level) * error
        assert torch.allclose(weighted, (level**-2).clamp(max=5.0)), prediction
        assert torch.equal(vp.build(prediction=prediction, min_snr=0.0).weight(level), torch.ones(4))


def test_loss_is_the_published_recipe_without_weights():
    process = vp.build(schedule="linear", prediction="eps", min_snr=0.0)
    peer = DDPMScheduler(1000, 1e-4, 0.02, "linear")
    random = torch.Generator().manual_seed(2)
    x0, noise = torch.randn(2, 5, 1, 4, 4, 4, generator=random)
    n = torch.tensor([0, 1, 500, 998, 999])
    net = lambda x, t, cond: torch.sin(x) + expand(1000 * t, x)  # noqa: E731
    expected = (net(peer.add_noise(x0, noise, n), n / 1000, None) - noise).square().flatten(1).mean(dim=1)
    got = process.loss(net, x0, no_condition(5), noise, (n + 0.5) / 1000)
    assert torch.allclose(got, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "peer"), [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")]
)
def test_signal_is_the_published_one(schedule, peer):
    start, end = {"linear": (1e-4, 0.02)}.get(schedule, (0.0015, 0.0195))
    own = (0.0, 0.0) if schedule == "cosine" else (start, end)
    published = DDPMScheduler(1000, start, end, peer).alphas_cumprod
    assert torch.allclose(vp.signal(schedule, 1000, *own).float(), published, rtol=1e-3, atol=1e-7)


def test_the_network_sees_the_published_timesteps():
    process = vp.build(schedule="linear")
    seen = 1000.0 * process.time(process.levels)
    integers = torch.arange(1000.0)
    assert torch.allclose(seen, integers, rtol=1e-7, atol=0)  # the last bit of a float32
    assert torch.equal(seen.round(), integers)
    visited = vp.build(schedule="linear", spacing="leading").visited(50)
    assert visited.tolist() == list(range(980, -1, -20))
    assert torch.equal(seen[visited], visited.float())
    between = process.time((process.levels[10] * process.levels[11]).sqrt().reshape(1))
    assert float(between) == pytest.approx(10.5e-3, rel=1e-4)
    outside = process.time(torch.tensor([0.0, 1e-6, 1e6]))
    assert torch.equal(outside * 1000, torch.tensor([0.0, 0.0, 999.0]))
    assert float(vp.build(timesteps=4000).time(torch.tensor([1e9]))) == pytest.approx(0.99975)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [1, 7, 50, 1000])
def test_visited_timesteps_are_diffusers(spacing, steps):
    peer = DDPMScheduler(1000, timestep_spacing=spacing)
    peer.set_timesteps(steps)
    got = vp.build(spacing=spacing).visited(steps)
    if (spacing, steps) == ("linspace", 1):  # numpy's linspace of one value is its start: pure data
        assert got.tolist() == [999]
    else:
        assert got.tolist() == peer.timesteps.tolist()


@pytest.mark.parametrize("steps", [350, 400, 600, 700])
def test_leading_steps_that_would_not_start_in_noise_are_refused(steps):
    """Of 1000 timesteps 600 steps of spacing leading visit the lower 600, from a state that is half data."""
    process = vp.build(spacing="leading")
    with pytest.raises(InputError, match="where little of the noise is left") as caught:
        process.visited(steps)
    better = int(str(caught.value).rsplit(" ", 1)[1])
    assert process.visited(better)[0] > 990


def test_offset_and_karras():
    assert vp.build(spacing="leading", offset=1).visited(50).tolist() == list(range(981, 0, -20))
    process = vp.build(spacing="karras")
    sigmas = process.sigmas(9)
    assert len(sigmas) == 10 and sigmas[-1] == 0
    assert torch.allclose(sigmas[[0, 8]], process.levels[[-1, 0]], rtol=1e-5)
    assert torch.allclose(((sigmas[:-1] ** (1 / 7)).diff().diff()), torch.zeros(7), atol=1e-5)


def test_zero_terminal_ends_in_noise_and_stays_finite():
    process = vp.build(schedule="scaled_linear", zero_terminal=True)
    peer = DDPMScheduler(1000, 0.0015, 0.0195, "scaled_linear", rescale_betas_zero_snr=True).alphas_cumprod
    abar = 1 / (1 + process.levels.double() ** 2)
    assert torch.allclose(abar.float(), peer, atol=1e-6)
    assert torch.isfinite(process.levels).all() and (process.levels.diff() > 0).all()
    assert process.levels[-1] > 1000
    assert process.weight(process.levels[-1:]) == 1  # trained, where min-SNR alone would say 0
    shape = (32, 1, 8, 8, 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    model = process.as_model(exact_network(process))
    x = process.sample(model, shape, no_condition(32), dpmpp.sample, lambda step: noise, steps=30)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02)


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_samples_have_the_data_distribution(schedule, prediction):
    process = vp.build(schedule=schedule, prediction=prediction)
    shape = (32, 1, 8, 8, 8)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    model = process.as_model(exact_network(process))
    x = process.sample(model, shape, no_condition(32), heun.sample, lambda step: noise, steps=40)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(x.std()) == pytest.approx(STD, abs=0.02)


def test_padding_is_left_out_of_the_loss():
    process = vp.build()
    random = torch.Generator().manual_seed(5)
    x0, noise = torch.randn(2, 3, 2, 4, 4, 4, generator=random)
    weight = torch.ones(3, 1, 4, 4, 4)
    weight[..., 2:] = 0
    net = lambda x, t, cond: x.tanh()  # noqa: E731
    uniform = torch.tensor([0.1, 0.5, 0.9])
    whole = process.loss(net, x0, no_condition(3), noise, uniform, weight=weight)
    inside = process.loss(net, x0[..., :2], no_condition(3), noise[..., :2], uniform)
    assert torch.allclose(whole, inside)
    x0[0, ..., 3] = torch.inf
    assert torch.allclose(process.loss(net, x0, no_condition(3), noise, uniform, weight=weight)[1:], inside[1:])


WRONG = {
    "schedule": ({"schedule": "linar"}, "linear, scaled_linear, cosine"),
    "prediction": ({"prediction": "epsilon"}, "eps, v, x0"),
    "spacing": ({"spacing": "even"}, "leading, trailing"),
    "cosine": ({"schedule": "cosine", "beta_end": 0.02}, "leave them out"),
    "betas": ({"beta_start": 0.5, "beta_end": 0.1}, "beta_start <= beta_end"),
    "terminal": ({"zero_terminal": True, "prediction": "eps"}, "prediction v or x0"),
    "offset": ({"offset": 1}, "spacing leading"),
    "timesteps": ({"timesteps": 1}, "at least 10"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_process_is_refused(case):
    options, said = WRONG[case]
    with pytest.raises(InputError, match=said):
        vp.build(**options)


def test_more_steps_than_timesteps_are_refused():
    with pytest.raises(InputError, match="more than the 100 timesteps"):
        vp.build(timesteps=100).sigmas(101)
