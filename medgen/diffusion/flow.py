"""Rectified flow (Liu et al. 2023, arXiv:2209.03003; Lipman et al. 2023, arXiv:2210.02747).

Straight paths x_t = (1 - t) x0 + t noise; the network predicts v = noise - x0. In the variance-exploding form of the
samplers, x = x_t / (1 - t) = x0 + sigma noise with sigma = t / (1 - t), so that t = sigma / (1 + sigma),
x_t = x / (1 + sigma) and x0 = x_t - t v. Every sigma is finite because t stops at ``t_max`` < 1.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medgen.diffusion.process import drawn, row_means
from medgen.errors import InputError
from medgen.models.condition import Condition
from medgen.models.seam import Model, Network, Noise, Prediction, Sampler, expand


@dataclass(frozen=True)
class Flow:
    """The process.

    Attributes:
        time_mean: mean of logit(t) in training (Esser et al. 2024, arXiv:2403.03206, logit-normal times).
        time_std: its standard deviation.
        shift: t -> shift t / (1 + (shift - 1) t), in training and sampling; above 1 spends more on high noise, which
            larger latents need (ibid., equation 23); sqrt(latents / 256) is about right, 3 at some thousands.
        t_max: where sampling starts.
    """

    time_mean: float
    time_std: float
    shift: float
    t_max: float

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Least and largest noise level: t from 1 - t_max to t_max."""
        return (1 - self.t_max) / self.t_max, self.t_max / (1 - self.t_max)

    def time(self, uniform_B: torch.Tensor) -> torch.Tensor:
        """Training times (B,) in (0, 1) from uniform numbers (B,)."""
        normal = torch.special.ndtri(uniform_B.double().clamp(1e-6, 1 - 1e-6))
        return self._shifted(torch.sigmoid(self.time_mean + self.time_std * normal)).float()

    def _shifted(self, t: torch.Tensor) -> torch.Tensor:
        return self.shift * t / (1 + (self.shift - 1) * t)

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
        """Flow-matching loss of each row, (B,); see :class:`medgen.diffusion.process.Process`."""
        t_B = self.time(uniform_B).to(x0.device)
        t = expand(t_B, x0)
        v = net((1 - t) * x0 + t * noise, t_B, cond)
        return row_means((v.float() - (noise - x0)).square(), weight)

    def as_model(self, net: Network) -> Model:
        """The network as a denoiser of x = x0 + sigma noise."""

        def model(x: torch.Tensor, sigma: torch.Tensor, cond: Condition, *, taps: Sequence[str] = ()) -> Prediction:
            t_B = sigma / (1 + sigma)
            x_t = x / expand(1 + sigma, x)
            return Prediction(x_t - expand(t_B, x) * net(x_t, t_B, cond).float())

        return model

    def sigmas(self, steps: int) -> torch.Tensor:
        """Noise levels (steps + 1,), falling from t_max's to 0: uniform times, shifted."""
        t = self._shifted(torch.linspace(1.0, 0.0, steps + 1, dtype=torch.float64)).clamp(max=self.t_max)
        return (t / (1 - t)).float()

    def sample(
        self, model: Model, shape: Sequence[int], cond: Condition, sampler: Sampler, noise: Noise, *, steps: int
    ) -> torch.Tensor:
        """Draw latents of ``shape`` (B, C, X, Y, Z) from noise."""
        # At t_max the path is (1 - t_max) x0 + t_max noise; its mean is unknown and small, so only the noise starts.
        return drawn(model, shape, cond, sampler, noise, self.sigmas(steps))


def build(*, time_mean: float = 0.0, time_std: float = 1.0, shift: float = 3.0, t_max: float = 0.998) -> Flow:
    """Build the process; see :class:`Flow`.

    Raises:
        InputError: a value that makes no process.
    """
    if not 0.5 < t_max < 1:
        raise InputError(f"option 't_max' of diffusion 'flow' lies between 0.5 and 1, not at {t_max}")
    if min(time_std, shift) <= 0:
        raise InputError("diffusion 'flow' needs time_std and shift above 0")
    return Flow(time_mean, time_std, shift, t_max)
