"""Guidance by the gradient of any differentiable measure of the denoised estimate.

With p(y | x0) = exp(-loss(x0)), Tweedie's formula for the conditional score moves the estimate by

    x0' = x0 - C grad_x0 loss,    C = Cov(x0 | x) = sigma^2 (d x0 / d x)^T

once the measure is taken at the denoised estimate (Chung et al. 2023, DPS, arXiv:2209.14687). Through the denoiser C is
exact and costs a backward pass of the network; without, C is that of unit-variance data, sigma^2 / (1 + sigma^2)
(Song et al. 2023, PiGDM), and only the measure is differentiated (the cheap "backward" form of Bansal et al. 2023,
universal guidance, arXiv:2302.07121).
"""

from collections.abc import Callable, Sequence

import torch

from medgen.models.condition import Condition
from medgen.models.seam import Model, Prediction, expand
from medgen.steering.passes import within

Measure = Callable[[torch.Tensor, Condition], torch.Tensor]
"""(x0 (B, C, X, Y, Z) in standardised latents, condition) -> loss (B,), each row's its own."""


def guide(
    model: Model,
    measure: Measure,
    *,
    scale: float = 1.0,
    through: bool = True,
    newton: bool = False,
    repeats: int = 1,
    interval: Sequence[float] = (),
) -> Model:
    """Steer by a measure: a volume regressor, a classifier's cross-entropy, anything of x0.

    Give it to a generator as a function: ``gen.sample(steering=[lambda model: guide(model, measure)])``.

    Args:
        model: the model to steer.
        measure: the loss of each row, differentiable in x0. No row's loss may depend on another row.
        scale: of the move; with a true -log p(y | x0) and no ``newton``, 1 is Bayes' rule.
        through: differentiate through the denoiser.
        newton: for a loss of the form e^2 / 2, e in units of its tolerance (as -log p(y | x0) of a measurement with
            noise is): move by the Kalman gain, -C g (2 loss) / (g C g + 2 loss). It needs no tuned scale, cannot
            overshoot, and is the exact posterior mean where e is linear and C exact.
        repeats: moves a call, each at the estimate moved so far; with ``newton`` they are those of the iterated
            Kalman filter, for measures far from linear.
        interval: [low, high]: steer only where low < sigma <= high.
    """

    def steered(x: torch.Tensor, sigma: torch.Tensor, cond: Condition, *, taps: Sequence[str] = ()) -> Prediction:
        kept = torch.is_grad_enabled()
        variance = expand(sigma.square(), x)
        with torch.set_grad_enabled(kept or through):
            x = x if x.requires_grad or not through else x.detach().requires_grad_(True)
            out = model(x, sigma, cond, taps=taps)

        def spread(gradient: torch.Tensor) -> torch.Tensor:
            """C times a gradient."""
            if not through:
                return gradient * (variance / (1 + variance))
            (pulled,) = torch.autograd.grad(out.x0, x, gradient, retain_graph=True)
            return pulled * variance

        x0 = out.x0.detach()
        move = torch.zeros_like(x0)
        for _ in range(repeats):
            loss, gradient = _slope(measure, x0 + move, cond)
            step = spread(gradient)
            if newton:
                twice = 2 * loss
                length = (gradient * step).flatten(1).sum(1).clamp(min=0) + twice
                share = (twice - (gradient * move).flatten(1).sum(1)) / length.clamp(min=1e-20)
                # Where the loss is 0 there is no direction: what was moved so far stays.
                move = torch.where(expand(loss > 0, x0), -expand(share, x0) * step, move)
            else:
                move = move - step
        moved = (out.x0 if kept else x0) + scale * move
        features = out.features if kept or not out.features else {n: f.detach() for n, f in out.features.items()}
        return Prediction(moved, features=features)

    return within(interval, steered, model)


def _slope(measure: Measure, x0: torch.Tensor, cond: Condition) -> tuple[torch.Tensor, torch.Tensor]:
    """The measure's loss (B,) and its gradient, shaped as ``x0``."""
    with torch.enable_grad():
        point = x0.detach().requires_grad_(True)
        loss = measure(point, cond)
        assert loss.shape == (x0.shape[0],), f"a measure gives a loss a row, not {tuple(loss.shape)}"
        if not loss.requires_grad:  # nothing is measured of these rows
            return loss, torch.zeros_like(x0)
        (gradient,) = torch.autograd.grad(loss.sum(), point)
    return loss.detach(), gradient
