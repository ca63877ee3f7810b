"""Variance-preserving diffusion in discrete time: DDPM (Ho et al. 2020, arXiv:2006.11239), as published models are.

Timestep n = 0 ... T - 1 keeps abar_n = prod(1 - beta) of the signal's variance,

    x_t = sqrt(abar) x0 + sqrt(1 - abar) noise,    sigma = sqrt((1 - abar) / abar),    x_t = x / sqrt(1 + sigma^2)

with x = x0 + sigma noise the samplers' variance-exploding form. What the network predicts gives the denoised estimate:

    eps:  x0 = x - sigma eps
    v:    x0 = x / (1 + sigma^2) - sigma / sqrt(1 + sigma^2) v,    v = sqrt(abar) noise - sqrt(1 - abar) x0
    x0:   itself

The network gets the time n / 1000, so that one which multiplies by 1000 sees the timestep that it was trained with
(to the last bit of a float32). At a sigma between two timesteps, log sigma is interpolated.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from medgen.diffusion.process import drawn, rho_levels, row_means
from medgen.errors import InputError
from medgen.models.condition import Condition
from medgen.models.seam import Model, Network, Noise, Prediction, Sampler, expand

_OWN_BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.0015, 0.0195), "cosine": (0.0, 0.0)}
_PREDICTIONS = ("eps", "v", "x0")
_SPACINGS = ("leading", "trailing", "linspace", "karras")
# abar at the last timestep where it should be 0: sigma 4096 stands for infinity, as in diffusers.
_ZERO_ABAR = 2.0**-24
_NO_SNR = 1e-6
_RHO = 7.0
# How near to its place the first of the steps "leading" has to be, which rounds their distance down.
_NEAR = 0.9


@dataclass(frozen=True, eq=False)
class Vp:
    """The process.

    Attributes:
        levels: (T,) float32 sigma of each timestep, rising.
        prediction: what the network predicts: "eps", "v" or "x0".
        min_snr: gamma of the min-SNR weights (Hang et al. 2023, arXiv:2303.09556); 0 weighs all timesteps alike.
        spacing: which timesteps sampling visits. "leading": 0, T/N, 2T/N, ... (980, 960, ..., 0 for 50 of 1000), as
            published models were sampled. "trailing": T - 1, T - 1 - T/N, ... (Lin et al. 2024, arXiv:2305.08891,
            table 2), which leaves its last step much to do. "linspace": from T - 1 to 0. "karras": sigmas by the
            rho-schedule of Karras et al. 2022, arXiv:2206.00364, equation 5, between the first and the last
            timestep's.
        offset: added to the timesteps of "leading" (1 in Stable Diffusion).
    """

    levels: torch.Tensor
    prediction: str
    min_snr: float
    spacing: str
    offset: int

    @property
    def timesteps(self) -> int:
        """T."""
        return len(self.levels)

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Least and largest noise level."""
        return float(self.levels[0]), float(self.levels[-1])

    def time(self, sigma: torch.Tensor) -> torch.Tensor:
        """What the network is told of noise levels (B,): timestep / 1000, clamped to the trained ones.

        Chains of more than 1000 timesteps are brought to [0, 1) (Nichol & Dhariwal 2021, arXiv:2102.09672).
        """
        levels = self.levels.to(sigma)
        low = (torch.searchsorted(levels, sigma.contiguous(), right=True) - 1).clamp(0, self.timesteps - 2)
        # The ratio is exactly 1 at a timestep's own sigma, so that its time is exact too.
        between = (sigma / levels[low]).log() / (levels[low + 1] / levels[low]).log()
        return (low + between.clamp(0.0, 1.0)) / max(1000, self.timesteps)

    def weight(self, level_B: torch.Tensor) -> torch.Tensor:
        """Weight (B,) of the squared error in what the network predicts, at sigmas (B,)."""
        if self.min_snr == 0:
            return torch.ones_like(level_B)
        snr = level_B**-2
        clipped = snr.clamp(max=self.min_snr)
        weight = {"eps": clipped / snr, "v": clipped / (snr + 1), "x0": clipped}[self.prediction]
        # Where nothing of the data is left the weight would be 0 and the start of sampling never be trained.
        return torch.where(snr <= _NO_SNR, torch.ones_like(weight), weight)

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
        """Weighted squared error of each row's prediction, (B,); see :class:`medgen.diffusion.process.Process`."""
        n_B = (uniform_B.double() * self.timesteps).long().clamp(0, self.timesteps - 1)
        level_B = self.levels[n_B.cpu()].to(x0.device)
        level = expand(level_B, x0)
        keep, spread = (1 + level**2).rsqrt(), level * (1 + level**2).rsqrt()
        out = net(keep * x0 + spread * noise, self.time(level_B), cond).float()
        target = {"eps": noise, "v": keep * noise - spread * x0, "x0": x0}[self.prediction]
        return self.weight(level_B) * row_means((out - target).square(), weight)

    def as_model(self, net: Network) -> Model:
        """The network as a denoiser of x = x0 + sigma noise."""

        def model(x: torch.Tensor, sigma: torch.Tensor, cond: Condition, *, taps: Sequence[str] = ()) -> Prediction:
            level = expand(sigma, x)
            keep = (1 + level**2).rsqrt()
            out = net(keep * x, self.time(sigma), cond).float()
            if self.prediction == "eps":
                return Prediction(x - level * out)
            return Prediction(out if self.prediction == "x0" else keep * (keep * x - level * out))

        return model

    def visited(self, steps: int) -> torch.Tensor:
        """Timesteps (steps,) that sampling visits, falling; "karras" visits none exactly.

        Raises:
            InputError: more steps than there are timesteps, or as many as "leading" cannot spread over them.
        """
        T = self.timesteps
        if steps > T:
            raise InputError(f"sampling in {steps} steps asks for more than the {T} timesteps of the vp process")
        first = (steps - 1) * (T // steps)
        if self.spacing == "leading" and first < _NEAR * (T - T / steps):
            raise InputError(
                f"sampling in {steps} steps of spacing 'leading' would start at timestep {first} of {T}, where little "
                f"of the noise is left; take a number that divides {T}, such as {T // (T // steps + 1)}"
            )
        if self.spacing == "trailing":
            n = (T - torch.arange(steps, dtype=torch.float64) * (T / steps)).round() - 1
        elif self.spacing == "leading":
            n = torch.arange(steps - 1, -1, -1, dtype=torch.float64) * (T // steps) + self.offset
        else:
            n = torch.linspace(T - 1, 0, steps, dtype=torch.float64)
        return n.round().long().clamp(0, T - 1)

    def sigmas(self, steps: int) -> torch.Tensor:
        """Noise levels (steps + 1,): those of the visited timesteps, then 0."""
        if self.spacing == "karras":
            levels = rho_levels(float(self.levels[-1]), float(self.levels[0]), steps, _RHO).float()
        else:
            levels = self.levels[self.visited(steps)]
        return torch.cat([levels, torch.zeros(1)])

    def sample(
        self, model: Model, shape: Sequence[int], cond: Condition, sampler: Sampler, noise: Noise, *, steps: int
    ) -> torch.Tensor:
        """Draw latents of ``shape`` (B, C, X, Y, Z); the start has unit variance in x_t, as the forward chain's end."""
        return drawn(model, shape, cond, sampler, noise, self.sigmas(steps), unit=True)


def of_few_steps(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options with which a student of few steps draws: "leading" would start it from half of the noise or less."""
    if options.get("spacing") != "leading":
        return options
    return {name: value for name, value in options.items() if name != "offset"} | {"spacing": "linspace"}


def signal(schedule: str, timesteps: int, start: float, end: float, *, zero_terminal: bool = False) -> torch.Tensor:
    """Share of the data's variance left at each timestep, abar (T,) float64, of a beta schedule.

    Args:
        schedule: "linear" (Ho et al. 2020), "scaled_linear" (linear in sqrt(beta); Rombach et al. 2022,
            arXiv:2112.10752) or "cosine" (Nichol & Dhariwal 2021, equation 17), which takes no betas.
        timesteps: T.
        start: first beta.
        end: last beta.
        zero_terminal: rescale so that nothing is left of the data at the last timestep (Lin et al. 2024, algorithm 1).
    """
    if schedule == "cosine":
        u = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64)
        curve = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
        betas = (1 - curve[1:] / curve[:-1]).clamp(max=0.999)
    elif schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, timesteps, dtype=torch.float64) ** 2
    else:
        betas = torch.linspace(start, end, timesteps, dtype=torch.float64)
    abar = torch.cumprod(1 - betas, dim=0)
    if zero_terminal:
        root = abar.sqrt()
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        abar[-1] = min(_ZERO_ABAR, float(abar[-2]) / 4)  # every sigma is finite, and the last one the largest
    return abar


def build(
    *,
    schedule: str = "scaled_linear",
    beta_start: float = 0.0,
    beta_end: float = 0.0,
    timesteps: int = 1000,
    prediction: str = "v",
    min_snr: float = 5.0,
    zero_terminal: bool = False,
    spacing: str = "linspace",
    offset: int = 0,
) -> Vp:
    """Build the process; see :class:`Vp` and :func:`signal`.

    Args:
        schedule: "linear", "scaled_linear" or "cosine".
        beta_start: first beta; 0 takes the schedule's own (1e-4 linear, 0.0015 scaled_linear).
        beta_end: last beta; 0 takes the schedule's own (0.02 linear, 0.0195 scaled_linear).
        timesteps: T.
        prediction: "eps", "v" or "x0".
        min_snr: gamma of the min-SNR weights, 0 for none.
        zero_terminal: end the chain in pure noise; not with "eps", which says nothing of the data there.
        spacing: "leading", "trailing", "linspace" or "karras".
        offset: added to the timesteps of "leading".

    Raises:
        InputError: a value that the process does not know, or a pair that does not go together.
    """
    for name, value, known in (
        ("schedule", schedule, tuple(_OWN_BETAS)),
        ("prediction", prediction, _PREDICTIONS),
        ("spacing", spacing, _SPACINGS),
    ):
        if value not in known:
            raise InputError(f"option '{name}' of diffusion 'vp' is one of {', '.join(known)}, not '{value}'")
    if schedule == "cosine" and (beta_start or beta_end):
        raise InputError("diffusion 'vp' with schedule cosine has no beta_start and beta_end; leave them out")
    start, end = beta_start or _OWN_BETAS[schedule][0], beta_end or _OWN_BETAS[schedule][1]
    if schedule != "cosine" and not 0 < start <= end < 1:
        raise InputError(f"diffusion 'vp' needs 0 < beta_start <= beta_end < 1, not {start} and {end}")
    if timesteps < 10 or min_snr < 0 or offset < 0:
        raise InputError("diffusion 'vp' needs at least 10 timesteps, and neither min_snr nor offset below 0")
    if offset and spacing != "leading":
        raise InputError(f"option 'offset' of diffusion 'vp' belongs to spacing leading, not {spacing}")
    if zero_terminal and prediction == "eps":
        raise InputError("diffusion 'vp' with zero_terminal needs prediction v or x0: in pure noise eps says nothing")
    abar = signal(schedule, timesteps, start, end, zero_terminal=zero_terminal)
    return Vp(((1 - abar) / abar).sqrt().float(), prediction, min_snr, spacing, offset)
