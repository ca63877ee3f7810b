from itertools import pairwise

import numpy as np
import pytest
import torch

from medgen.diffusion import flow
from medgen.errors import InputError
from medgen.registry import check_options, kinds, resolve
from medgen.sampling import euler, heun
from medgen.sampling.noise import Key, streams
from tests.gaussian import exact_model, exact_path, no_condition

ORDERS = {"euler": 1, "heun": 2}


def error_after(solver, steps, start=10.0, end=0.02):
    sigmas = torch.linspace(np.log(start), np.log(end), steps + 1, dtype=torch.float64).exp()
    x = torch.linspace(-20, 20, 27, dtype=torch.float64).reshape(1, 1, 3, 3, 3)
    out = solver(exact_model, x, sigmas, no_condition(1), noise=None)
    return float((out - exact_path(x, start, end)).abs().max())


def test_every_solver_of_the_room_has_a_known_order():
    assert set(kinds("sampling", "sample")) == set(ORDERS)


@pytest.mark.parametrize("kind", ORDERS)
def test_convergence_order(kind):
    solver = resolve("sampling", kind, "sample")
    errors = [error_after(solver, n) for n in (40, 80, 160)]
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert np.allclose(orders, ORDERS[kind], atol=0.25), orders


@pytest.mark.parametrize("kind", ORDERS)
def test_rising_sigmas_invert_falling_ones(kind):
    solver = resolve("sampling", kind, "sample")
    sigmas = torch.cat([flow.build().sigmas(400)[40:-1].double(), torch.tensor([0.0], dtype=torch.float64)])
    x = torch.full((1, 1, 2, 2, 2), 3.0, dtype=torch.float64)
    down = solver(exact_model, x, sigmas, no_condition(1), noise=None)
    up = solver(exact_model, down, sigmas.flip(0), no_condition(1), noise=None)
    assert torch.allclose(up, x, rtol=0.1 if kind == "euler" else 0.01)


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
    """At equal evaluations, on the schedule generation uses: in sigma it would be worse than Euler."""
    sigmas = flow.build().sigmas(steps).double()
    fine = flow.build().sigmas(2 * steps - 1).double()
    x = sigmas[0] * torch.linspace(-3, 3, 27, dtype=torch.float64).reshape(1, 1, 3, 3, 3)
    truth = exact_path(x, sigmas[0], 0.0)
    second = heun.sample(exact_model, x, sigmas, no_condition(1), noise=None)
    first = euler.sample(exact_model, x, fine, no_condition(1), noise=None)
    assert (second - truth).abs().max() < (first - truth).abs().max() / 2


def test_heun_needs_fewer_evaluations_than_euler():
    assert error_after(heun.sample, 20) < error_after(euler.sample, 40) / 2
