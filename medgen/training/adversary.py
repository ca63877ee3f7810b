"""The adversary in a codec's training: when it starts, and how hard it may pull."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from medgen.models.discriminator import BandDiscriminator, feature_matching, hinge_made, hinge_real


@dataclass(frozen=True)
class AdversaryOptions:
    """The adversary's part of a codec's losses.

    Attributes:
        weight: its pull on the reconstruction in units of the pull of the other losses on the image; 0 for none.
        feature_matching: weight of feature matching beside the judgement.
        start: share of the training after which it begins; before, there is nothing worth judging.
        ramp: share of the training over which its pull rises to ``weight``.
        width: channels of the discriminator's first layer.
        layers: strided layers of the discriminator.
        rate: its learning rate in units of the codec's.
    """

    weight: float = 0.0
    feature_matching: float = 1.0
    start: float = 0.3
    ramp: float = 0.1
    width: int = 32
    layers: int = 1
    rate: float = 1.0


class Adversary:
    """A discriminator with its optimiser.

    The pull of an adversary has no scale of its own, and in a fixed sum it vanishes or takes over: here the gradient
    that it sends into the image is brought to ``weight`` times the length of the other losses' gradient. That is the
    adaptive weight of Esser et al. 2021 (arXiv:2012.09841, equation 7), taken at the image and not at the last layer,
    so that it needs to know nothing of the codec, and the discriminator is passed backward once.

    Args:
        options: how it works.
        image_channels: C.
        learning_rate: of the codec.
        device: where the images are.
    """

    def __init__(
        self, options: AdversaryOptions, image_channels: int, learning_rate: float, device: torch.device
    ) -> None:
        self.options = options
        self.net: nn.Module = BandDiscriminator(image_channels, options.width, options.layers).to(device)
        self.optimiser = torch.optim.AdamW(
            self.net.parameters(), lr=options.rate * learning_rate, betas=(0.5, 0.99), weight_decay=0.0
        )

    def strength(self, share: float) -> float:
        """Its weight after ``share`` of the training: 0 at first, then a ramp."""
        o = self.options
        risen = (share - o.start) / max(o.ramp, 1e-9)
        return o.weight * min(1.0, max(0.0, risen))

    def pull(
        self, made: torch.Tensor, real: torch.Tensor, others: torch.Tensor, strength: float
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """A term whose gradient in ``made`` is the adversary's, brought to scale.

        Args:
            made: reconstruction (B, C, X, Y, Z), with its graph.
            real: the image.
            others: the other losses of ``made``, a scalar with graph.
            strength: see :meth:`strength`.

        Returns:
            The term and figures to log. Its value means nothing; its gradient counts.
        """
        (others_gradient,) = torch.autograd.grad(others, made, retain_graph=True)
        self.net.requires_grad_(False)
        leaf = made.detach().requires_grad_()
        logits, features = self.net(leaf)
        with torch.no_grad():
            real_logits, real_features = self.net(real)
        matching = feature_matching(features, real_features)
        judgement = -logits.float().mean()
        (gradient,) = torch.autograd.grad(judgement + self.options.feature_matching * matching, leaf)
        self.net.requires_grad_(True)
        scale = strength * others_gradient.float().norm() / gradient.float().norm().clamp(min=1e-12)
        figures = {"matching": matching, "made": logits.float().mean(), "real": real_logits.float().mean()}
        return (made.float() * (scale * gradient.float())).sum(), figures

    def loss(self, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """What the discriminator itself minimises: the hinge loss on real and made patches."""
        logits, _ = self.net(torch.cat([real, made.detach().to(real.dtype)]))
        for_real, for_made = logits.chunk(2)
        return hinge_real(for_real) + hinge_made(for_made)
