"""How likely a model finds given latents: exactly by its probability-flow ODE, and the variational bound beside it.

Both go through the ``Model`` seam and so hold for every process. Densities are those of the latents as given
(standardised ones, in training); bits per dimension are -log2 of the density over the number of latent scalars. They
may be negative: a density is no probability.

Legend: N = C X Y Z scalars a row.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from medgen.models.condition import Condition
from medgen.models.seam import Model, Noise, expand

_State = tuple[torch.Tensor, torch.Tensor]
_SAFETY, _LEAST_STEP, _MOST_STEPS = 0.9, 1e-6, 10_000

# Dormand & Prince (1980), order 5 with an embedded one of order 4; the last stage is the next step's first.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


def bits_per_dim(log_density_B: torch.Tensor, scalars: int) -> torch.Tensor:
    """-log2 of a density over its dimensions, (B,)."""
    return -log_density_B / (scalars * math.log(2))


@dataclass(frozen=True)
class Likelihood:
    """What the ODE says.

    Attributes:
        log_density: natural log of each row's density, (B,) float64.
        bits_per_dim: (B,) float64.
        end: (B, C, X, Y, Z), where the ODE took each row: near standard normal for data that the model knows.
        evaluations: calls of the model, each with its gradient.
    """

    log_density: torch.Tensor
    bits_per_dim: torch.Tensor
    end: torch.Tensor
    evaluations: int


def ode_likelihood(
    model: Model,
    x0: torch.Tensor,
    cond: Condition,
    noise: Noise,
    *,
    sigma_range: tuple[float, float],
    probes: int = 1,
    tolerance: float = 1e-4,
) -> Likelihood:
    """Density of ``x0`` under the probability-flow ODE (Song et al. 2021, arXiv:2011.13456, appendix D.2).

    Along y = cos(a) x0 + sin(a) noise with tan(a) = sigma, in which every process is bounded, the ODE is

        dy/da = cos(a) (x - D) / sigma - sin(a) D,    x = y / cos(a), D = D(x, sigma)
        div   = (N - tr J) / sigma - sigma tr J,      J = dD/dx

    and log p(start) = log N(end; 0, I) + the integral of div. The trace is Hutchinson's: the mean of e^T J e over
    Rademacher vectors e, unbiased. The density is that of data smoothed by the least sigma, at ``x0`` itself.

    Args:
        model: the denoiser; its rows must not depend on each other.
        x0: (B, C, X, Y, Z).
        cond: their condition.
        noise: row streams; the signs of steps 1 to ``probes`` are the probes.
        sigma_range: least and largest noise level, ``process.sigma_range``.
        probes: Rademacher vectors; the error of the trace falls with their square root.
        tolerance: bound on the local error of a step, as root mean square over y (unit variance) and as nats a
            dimension of the log density; rows share their steps, so that another batch differs within it.

    Returns:
        The densities. In them are a bias through the network alone and the variance of the probes.
    """
    scalars = x0[0].numel()
    e_P = [torch.sign(noise(1 + p)).to(x0) for p in range(probes)]
    low, high = (math.atan(s) for s in sigma_range)
    evaluations = 0

    def slope(a: float, y: torch.Tensor) -> _State:
        nonlocal evaluations
        evaluations += 1
        sigma = math.tan(a)
        with torch.enable_grad():
            x = (y / math.cos(a)).detach().requires_grad_()
            D = model(x, torch.full((len(y),), sigma, dtype=y.dtype, device=y.device), cond).x0
            products = [
                torch.autograd.grad((D * e).sum(), x, retain_graph=p + 1 < probes)[0] * e for p, e in enumerate(e_P)
            ]
        trace = torch.stack([p.double().flatten(1).sum(dim=1) for p in products]).mean(dim=0)
        x, D = x.detach(), D.detach()
        return math.cos(a) * (x - D) / sigma - math.sin(a) * D, (scalars - trace) / sigma - sigma * trace

    y, integral = _integrate(slope, math.cos(low) * x0, low, high, tolerance, scalars)
    end = -0.5 * (y.double().square().flatten(1).sum(dim=1) + scalars * math.log(2 * math.pi))
    log_density = end + integral + scalars * math.log(math.cos(low))
    return Likelihood(log_density, bits_per_dim(log_density, scalars), y, evaluations)


def _integrate(
    slope: Callable[[float, torch.Tensor], _State],
    y: torch.Tensor,
    a: float,
    end: float,
    tolerance: float,
    scalars: int,
) -> _State:
    """Dormand-Prince with step control; returns y (B, ...) at ``end`` and the integral (B,) float64."""
    integral = torch.zeros(len(y), dtype=torch.float64, device=y.device)
    first = slope(a, y)
    h = 0.01 * (end - a)
    for _ in range(_MOST_STEPS):
        h = min(h, end - a)
        k = [first]
        for node, row in zip(_NODES[1:], _STAGES[1:], strict=True):
            stage = y + h * _weighted(row, [s[0] for s in k])
            k.append(slope(a + node * h, stage))
        y_K, integral_K = [s[0] for s in k], [s[1] for s in k]
        error_y, error_i = h * _weighted(_ERROR, y_K), h * _weighted(_ERROR, integral_K)
        # Each row by itself: over all of y together, one density among thousands of latents would go unchecked.
        worst = max(float(error_y.square().flatten(1).mean(dim=1).sqrt().max()), float(error_i.abs().max()) / scalars)
        if worst <= tolerance or h <= _LEAST_STEP:
            integral = integral + h * _weighted(_STAGES[-1], integral_K[:-1])
            y, first, a = stage, k[-1], a + h
            if end - a <= 1e-12:
                return y, integral
        h = max(h * min(5.0, max(0.2, _SAFETY * (tolerance / max(worst, 1e-30)) ** 0.2)), _LEAST_STEP)
    raise RuntimeError(f"the likelihood ODE did not end within {_MOST_STEPS} steps at tolerance {tolerance}")


def _weighted(weights: Sequence[float], parts: Sequence[torch.Tensor]) -> torch.Tensor:
    total = torch.zeros_like(parts[0])
    for weight, part in zip(weights, parts, strict=True):
        if weight:
            total = total + weight * part
    return total


@dataclass(frozen=True)
class Bound:
    """The variational bound on -log p, term by term, in nats.

    Attributes:
        prior: (B,), the last level's KL divergence from the prior.
        terms: (T - 1, B), the KL divergence of each step down, from the second level's to the last's.
        reconstruction: (B,), -log p(x0 | x at the first level).
        scalars: N.
    """

    prior: torch.Tensor
    terms: torch.Tensor
    reconstruction: torch.Tensor
    scalars: int

    @property
    def bits_per_dim(self) -> torch.Tensor:
        """The whole bound in bits per dimension, (B,)."""
        return bits_per_dim(-(self.prior + self.terms.sum(dim=0) + self.reconstruction), self.scalars)


@torch.no_grad()
def variational_bound(model: Model, x0: torch.Tensor, cond: Condition, levels_T: torch.Tensor, noise: Noise) -> Bound:
    """The bound of DDPM (Ho et al. 2020, arXiv:2006.11239, equation 5), one draw of noise a term.

    For a chain with levels sigma_1 < ... < sigma_T, in x = x0 + sigma noise and with the posterior's own variance, each
    KL divergence is (Kingma et al. 2021, arXiv:2107.00630, equation 13)

        L_i = (1 / sigma_(i-1)^2 - 1 / sigma_i^2) / 2 |x0 - D(x0 + sigma_i noise, sigma_i)|^2

    The prior is N(0, 1 + sigma_T^2), which is standard normal in x_t. Latents are continuous, and so the first level
    decodes to a Gaussian of deviation sigma_1 about D.

    Args:
        model: the denoiser.
        x0: (B, C, X, Y, Z).
        cond: their condition.
        levels_T: (T,) rising noise levels: ``Vp.levels`` for the chain that it was trained on. Fewer of them, or those
            of another process, are a chain too, with a looser bound.
        noise: row streams; term i takes step i, from 1 on.
    """
    scalars = x0[0].numel()
    levels = levels_T.double()
    errors = []
    for i, level in enumerate(levels_T.to(x0), 1):
        level_B = level.expand(len(x0))
        D = model(x0 + expand(level_B, x0) * noise(i).to(x0), level_B, cond).x0
        errors.append((x0 - D).double().square().flatten(1).sum(dim=1))
    error_TB = torch.stack(errors)
    precision = (1 / levels**2).to(error_TB.device)
    terms = 0.5 * (precision[:-1] - precision[1:])[:, None] * error_TB[1:]
    reconstruction = 0.5 * precision[0] * error_TB[0] + 0.5 * scalars * math.log(2 * math.pi * float(levels[0]) ** 2)
    kept, total = float(levels[-1]) ** 2, 1 + float(levels[-1]) ** 2
    square = x0.double().square().flatten(1).sum(dim=1)
    prior = 0.5 * (scalars * (math.log(total / kept) + kept / total - 1) + square / total)
    return Bound(prior, terms, reconstruction, scalars)
