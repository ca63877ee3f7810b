from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch

from medgen.diffusion import edm, flow, vp
from medgen.errors import InputError
from medgen.models.seam import Prediction
from medgen.registry import check_options, kinds, resolve
from medgen.sampling import ancestral, dpmpp, euler, heun
from medgen.sampling.noise import Key, streams
from tests.gaussian import MEAN, STD, exact_model, exact_path, no_condition

ORDERS = {"ancestral": 1, "dpmpp": 2, "euler": 1, "heun": 2, "plms": 2}
DETERMINISTIC = {"ancestral": {"eta": 0.0}}  # the others are by default
PROCESSES = {"flow": flow.build(), "edm": edm.build(), "vp": vp.build(spacing="karras")}
STOCHASTIC = {"ddim": (ancestral, 0.3), "ddpm": (ancestral, 1.0), "sde": (dpmpp, 1.0), "half sde": (dpmpp, 0.5)}


def error_after(solver, steps, start=10.0, end=0.02):
    sigmas = torch.linspace(np.log(start), np.log(end), steps + 1, dtype=torch.float64).exp()
    x = torch.linspace(-20, 20, 27, dtype=torch.float64).reshape(1, 1, 3, 3, 3)
    out = solver(exact_model, x, sigmas, no_condition(1), noise=None)
    return float((out - exact_path(x, start, end)).abs().max())


def test_every_solver_of_the_room_has_a_known_order():
    assert set(kinds("sampling", "sample")) == set(ORDERS)


def solver_of(kind):
    return partial(resolve("sampling", kind, "sample"), **DETERMINISTIC.get(kind, {}))


@pytest.mark.parametrize("kind", ORDERS)
def test_convergence_order(kind):
    errors = [error_after(solver_of(kind), n) for n in (40, 80, 160)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.allclose(orders, ORDERS[kind], atol=0.25), orders


@pytest.mark.parametrize("kind", ORDERS)
@pytest.mark.parametrize("process", PROCESSES)
def test_convergence_order_on_each_process_schedule(process, kind):
    """Over the part of each schedule whose sigmas fall by modest ratios, where an order can be seen at all."""
    errors = []
    for steps in (60, 120, 240):
        sigmas = PROCESSES[process].sigmas(steps).double()
        first, last = (round(share * steps) for share in (0.2, 0.9))
        sigmas = sigmas[first : last + 1]
        x = torch.linspace(-4, 4, 27, dtype=torch.float64).reshape(1, 1, 3, 3, 3) * sigmas[0]
        out = solver_of(kind)(exact_model, x, sigmas, no_condition(1), noise=None)
        errors.append(float((out - exact_path(x, sigmas[0], sigmas[-1])).abs().max()))
    assert np.log2(errors[1] / errors[2]) == pytest.approx(ORDERS[kind], abs=0.35)
    assert errors[2] < (0.05 if ORDERS[kind] == 1 else 0.005)


@pytest.mark.parametrize("kind", ORDERS)
@pytest.mark.parametrize("process", PROCESSES)
def test_rising_sigmas_invert_falling_ones(process, kind):
    sigmas = PROCESSES[process].sigmas(400).double()
    sigmas = sigmas[sigmas < 10]
    x = torch.full((1, 1, 2, 2, 2), 3.0, dtype=torch.float64)
    down = solver_of(kind)(exact_model, x, sigmas, no_condition(1), noise=None)
    up = solver_of(kind)(exact_model, down, sigmas.flip(0), no_condition(1), noise=None)
    assert torch.allclose(up, x, rtol=0.1 if ORDERS[kind] == 1 else 0.02)


@pytest.mark.parametrize("kind", ORDERS)
def test_down_and_up_in_one_call_and_levels_that_repeat(kind):
    falling = torch.linspace(np.log(8.0), np.log(0.1), 200, dtype=torch.float64).exp()
    x = torch.full((1, 1, 2, 2, 2), 3.0, dtype=torch.float64)
    there_and_back = torch.cat([falling, falling.flip(0)])
    out = solver_of(kind)(exact_model, x, there_and_back, no_condition(1), noise=None)
    assert torch.allclose(out, x, rtol=0.1 if ORDERS[kind] == 1 else 0.01)


@pytest.mark.parametrize("case", STOCHASTIC)
@pytest.mark.parametrize("process", PROCESSES)
def test_stochastic_solvers_reach_the_data_distribution(process, case):
    solver, eta = STOCHASTIC[case]
    shape = (1, 8, 8, 8)
    keys = [Key(0, i) for i in range(40)]
    x = PROCESSES[process].sample(
        exact_model, (40, *shape), no_condition(40), partial(solver.sample, eta=eta), streams(keys, shape), steps=150
    )
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.015)
    assert float(x.std()) == pytest.approx(STD, abs=0.03 if solver is ancestral else 0.01)  # orders 1 and 2
    again = PROCESSES[process].sample(
        exact_model, (1, *shape), no_condition(1), partial(solver.sample, eta=eta), streams(keys[3:4], shape), steps=150
    )
    assert torch.allclose(again[0], x[3], atol=1e-5)  # a row's noise is its own


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_variance_after_few_ancestral_steps_is_its_closed_form(eta):
    """A Gaussian stays one: each step maps the variance by x0's share and adds that of fresh noise (DDIM, eq. 16)."""
    sigmas = vp.build().levels[[999, 700, 400, 200, 60, 0]].double()
    draws = streams([Key(2, i) for i in range(60)], (1, 8, 8, 8))
    start = (STD**2 + sigmas[0] ** 2).sqrt()
    x = ancestral.sample(exact_model, MEAN + start * draws(0), sigmas, no_condition(60), noise=draws, eta=eta)
    variance = float(start) ** 2
    for sigma, to in pairwise(sigmas.tolist()):
        abar, abar_to = 1 / (1 + sigma**2), 1 / (1 + to**2)
        fresh = eta**2 * (1 - abar_to) / (1 - abar) * (1 - abar / abar_to) / abar_to
        share = STD**2 / (STD**2 + sigma**2)
        variance *= (share + (to**2 - fresh) ** 0.5 / sigma * (1 - share)) ** 2
        variance += fresh
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(x.std()) == pytest.approx(variance**0.5, rel=0.01)


def test_ancestral_with_eta_one_draws_from_the_exact_posterior():
    """Exact however few the steps: for a Gaussian of no spread the marginals of every level are known."""
    sigmas = torch.tensor([5.0, 2.0, 0.7])
    point = lambda x, sigma, cond, *, taps=(): Prediction(torch.full_like(x, MEAN))  # noqa: E731
    draws = streams([Key(0, i) for i in range(30)], (1, 8, 8, 8))
    x = ancestral.sample(point, MEAN + 5.0 * draws(0), sigmas, no_condition(30), noise=draws)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.02)
    assert float(x.std()) == pytest.approx(0.7, rel=0.02)
    mean = MEAN + (2.0 / 5.0) ** 2 * 5.0 * draws(0)
    spread = (2.0**2 * (5.0**2 - 2.0**2) / 5.0**2) ** 0.5
    once = ancestral.sample(point, MEAN + 5.0 * draws(0), sigmas[:2], no_condition(30), noise=draws)
    assert torch.allclose(once, mean + spread * draws(1), atol=1e-5)


@pytest.mark.parametrize("solver", [ancestral, dpmpp])
def test_noise_is_refused_where_sigmas_rise_and_eta_where_it_means_nothing(solver):
    x, rising = torch.zeros(1, 1, 2, 2, 2), torch.tensor([0.1, 1.0])
    with pytest.raises(InputError, match="only with eta 0"):
        solver.sample(exact_model, x, rising, no_condition(1), noise=None, eta=0.5)
    with pytest.raises(InputError, match="option 'eta'"):
        solver.sample(exact_model, x, rising, no_condition(1), noise=None, eta=-0.5)


@pytest.mark.parametrize("kind", ORDERS)
def test_state_stays_float32_and_no_noise_is_drawn_for_the_start(kind):
    def noise(step):
        assert step >= 1, "noise(0) is the start's own"
        return torch.randn(1, 1, 2, 2, 2)

    sigmas = edm.build().sigmas(5)
    for solver in (resolve("sampling", kind, "sample"), solver_of(kind)):
        out = solver(exact_model, sigmas[0] * torch.ones(1, 1, 2, 2, 2), sigmas, no_condition(1), noise=noise)
        assert out.dtype == torch.float32 and torch.isfinite(out).all()


def test_euler_is_euler_in_flow_time():
    """The step MONAI's RFlowScheduler takes: x_t + (t' - t) v."""
    velocity = lambda x, t, cond: torch.sin(3 * x) + t.reshape(-1, 1, 1, 1, 1)  # noqa: E731
    process = flow.build(t_max=0.95)
    sigmas = process.sigmas(12)
    x = sigmas[0] * torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    ours = euler.sample(process.as_model(velocity), x, sigmas, no_condition(2), noise=None)
    t = sigmas / (1 + sigmas)
    x_t = x / (1 + sigmas[0])
    for now, to in pairwise(t):
        x_t = x_t + (to - now) * velocity(x_t, now.expand(2), None)
    assert torch.allclose(ours, x_t, atol=2e-4)


def test_a_new_sampler_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "lazy.py").write_text(
        '"""Keeps x."""\n\n\ndef sample(model, x, sigmas, cond, *, noise, strength=1.0, careful=False):\n'
        '    """Return x."""\n    return strength * x\n'
    )
    import medgen.sampling

    monkeypatch.setattr(medgen.sampling, "__path__", [*medgen.sampling.__path__, str(tmp_path)])
    assert "lazy" in kinds("sampling", "sample")
    check_options("sampling", "lazy", "sample", {"strength": 0.5, "careful": True})
    assert float(resolve("sampling", "lazy", "sample")(None, torch.ones(1), None, None, noise=None, strength=2.0)) == 2
    wrong = {"strenght": (1, "did you mean 'strength'"), "careful": (3, "true or false"), "strength": ("a", "number")}
    for name, (value, word) in wrong.items():
        options = {name: value}
        with pytest.raises(InputError, match=word):
            check_options("sampling", "lazy", "sample", options)


def test_noise_belongs_to_the_sample_not_to_the_batch():
    together = streams([Key(1, 0), Key(1, 1), Key(1, 1, 1)], (2, 3, 3, 3))
    alone = streams([Key(1, 1)], (2, 3, 3, 3))
    assert torch.equal(together(4)[1], alone(4)[0])
    rows = [*together(0), *together(1), *streams([Key(2, 0)], (2, 3, 3, 3))(0)]
    for i, a in enumerate(rows):
        for b in rows[:i]:
            assert not torch.equal(a, b)


@pytest.mark.parametrize("variable", ["time", "sigma"])
def test_heun_has_order_two_in_both_variables(variable):
    errors = [error_after(lambda *a, **k: heun.sample(*a, **k, variable=variable), n) for n in (80, 160)]
    assert np.log2(errors[0] / errors[1]) == pytest.approx(2, abs=0.25)
    with pytest.raises(InputError, match="time or sigma"):
        heun.sample(None, torch.zeros(1), torch.zeros(1), None, noise=None, variable="x")


@pytest.mark.parametrize("steps", [6, 12, 24])
def test_heun_beats_euler_from_the_largest_sigma_of_flow(steps):
    """At equal evaluations, on even times: in sigma it would be worse than Euler."""
    sigmas = flow.build(shift=1.0).sigmas(steps).double()
    fine = flow.build(shift=1.0).sigmas(2 * steps - 1).double()
    x = sigmas[0] * torch.linspace(-3, 3, 27, dtype=torch.float64).reshape(1, 1, 3, 3, 3)
    truth = exact_path(x, sigmas[0], 0.0)
    second = heun.sample(exact_model, x, sigmas, no_condition(1), noise=None)
    first = euler.sample(exact_model, x, fine, no_condition(1), noise=None)
    assert (second - truth).abs().max() < (first - truth).abs().max() / 2


@pytest.mark.parametrize("steps", [6, 8, 12, 24])
def test_the_multistep_solver_is_best_on_the_default_schedule(steps):
    """Shifted times leave a long last step, which costs a solver that takes it as a straight line the most."""
    sigmas, fine = (flow.build().sigmas(n).double() for n in (steps, 2 * steps - 1))
    x = sigmas[0] * torch.linspace(-3, 3, 27, dtype=torch.float64).reshape(1, 1, 3, 3, 3)
    truth = exact_path(x, sigmas[0], 0.0)

    def error(solver, levels):
        return (solver.sample(exact_model, x, levels, no_condition(1), noise=None) - truth).abs().max()

    multistep = error(dpmpp, fine)
    assert multistep < error(heun, sigmas) and multistep < error(euler, fine)


def test_heun_needs_fewer_evaluations_than_euler():
    assert error_after(heun.sample, 20) < error_after(euler.sample, 40) / 2
