"""EDM (Karras et al. 2022, arXiv:2206.00364): a preconditioned denoiser in sigma itself.

With F the network and d = ``sigma_data`` the deviation of the data (table 1, column "Ours"),

    D(x, sigma) = c_skip x + c_out F(c_in x, c_noise)
    c_skip = d^2 / (sigma^2 + d^2),  c_out = sigma d / sqrt(sigma^2 + d^2),  c_in = 1 / sqrt(sigma^2 + d^2)

so that F's input and target have unit variance at every sigma. x = x0 + sigma noise is the samplers' form already.
c_noise is log sigma brought to [0, 1] over the range that sampling uses, where the paper has log(sigma) / 4: networks
of this house take their time from [0, 1].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medgen.diffusion.process import drawn, rho_levels, row_means
from medgen.errors import InputError
from medgen.models.condition import Condition
from medgen.models.seam import Model, Network, Noise, Prediction, Sampler, expand


@dataclass(frozen=True)
class Edm:
    """The process.

    Attributes:
        sigma_data: deviation of the data; 1 for standardised latents (the paper's images have 0.5).
        log_mean: mean of log(sigma / sigma_data) in training.
        log_std: its standard deviation.
        sigma_min: last noise level of sampling before 0.
        sigma_max: where sampling starts.
        rho: how much sampling favours low noise (equation 5).
    """

    sigma_data: float
    log_mean: float
    log_std: float
    sigma_min: float
    sigma_max: float
    rho: float

    def level(self, uniform_B: torch.Tensor) -> torch.Tensor:
        """Training sigmas (B,), log-normal, from uniform numbers (B,)."""
        normal = torch.special.ndtri(uniform_B.double().clamp(1e-6, 1 - 1e-6))
        return (self.sigma_data * (self.log_mean + self.log_std * normal).exp()).float()

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Least and largest noise level."""
        return self.sigma_min, self.sigma_max

    def time(self, sigma: torch.Tensor) -> torch.Tensor:
        """c_noise (B,) in [0, 1]; beyond the range of sampling it is its end."""
        span = math.log(self.sigma_max / self.sigma_min)
        return ((sigma / self.sigma_min).log() / span).clamp(0.0, 1.0)

    def _scales(self, sigma: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """c_skip, c_out, c_in."""
        total = sigma**2 + self.sigma_data**2
        return self.sigma_data**2 / total, sigma * self.sigma_data * total.rsqrt(), total.rsqrt()

    def loss(
        self,
        net: Network,
        x0: torch.Tensor,
        cond: Condition,
        noise: torch.Tensor,
        uniform_B: torch.Tensor,
        *,
        weight: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """lambda(sigma) |D - x0|^2 of each row, (B,); see :class:`medgen.diffusion.process.Process`.

        The paper's weight lambda = 1 / c_out^2 makes it the squared error of F, in which it is taken (equation 8).
        """
        level_B = self.level(uniform_B).to(x0.device)
        skip, out, scale = self._scales(expand(level_B, x0))
        x = x0 + expand(level_B, x0) * noise
        raw = net(scale * x, self.time(level_B), cond).float()
        return row_means((raw - (x0 - skip * x) / out).square(), weight)

    def as_model(self, net: Network) -> Model:
        """The network as a denoiser of x = x0 + sigma noise."""

        def model(x: torch.Tensor, sigma: torch.Tensor, cond: Condition, *, taps: Sequence[str] = ()) -> Prediction:
            skip, out, scale = self._scales(expand(sigma, x))
            return Prediction(skip * x + out * net(scale * x, self.time(sigma), cond).float())

        return model

    def sigmas(self, steps: int) -> torch.Tensor:
        """Noise levels (steps + 1,): the rho-schedule from sigma_max to sigma_min (equation 5), then 0."""
        levels = rho_levels(self.sigma_max, self.sigma_min, steps, self.rho)
        return torch.cat([levels, torch.zeros(1, dtype=torch.float64)]).float()

    def sample(
        self, model: Model, shape: Sequence[int], cond: Condition, sampler: Sampler, noise: Noise, *, steps: int
    ) -> torch.Tensor:
        """Draw latents of ``shape`` (B, C, X, Y, Z) from sigma_max * noise (algorithm 1)."""
        return drawn(model, shape, cond, sampler, noise, self.sigmas(steps))


def build(
    *,
    sigma_data: float = 1.0,
    log_mean: float = -0.5,
    log_std: float = 1.2,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Edm:
    """Build the process; see :class:`Edm`.

    The paper draws log sigma from N(-1.2, 1.2^2) for data of deviation 0.5: relative to the data, that is -0.5.

    Raises:
        InputError: a value that makes no process.
    """
    if not 0 < sigma_min < sigma_max:
        raise InputError(f"diffusion 'edm' needs 0 < sigma_min < sigma_max, not {sigma_min} and {sigma_max}")
    if min(sigma_data, log_std, rho) <= 0:
        raise InputError("diffusion 'edm' needs sigma_data, log_std and rho above 0")
    return Edm(sigma_data, log_mean, log_std, sigma_min, sigma_max, rho)
