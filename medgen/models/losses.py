"""What a codec is trained on."""

import torch
import torch.nn.functional as F

from medgen.models.codec import Decoded, Gaussian


def kl_to_standard_normal(posterior: Gaussian) -> torch.Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, averaged over latent scalars (Kingma & Welling 2014, appendix B)."""
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


def image_l1(decoded: Decoded, image: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the image."""
    return (decoded.image.float() - image.float()).abs().mean()


def label_loss(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus soft Dice over the voxels that carry a label.

    Args:
        logits: (B, L, X, Y, Z).
        label: (B, X, Y, Z) ids; -1 marks voxels without a label, which count for nothing.

    Returns:
        A scalar; 0 where no voxel is labelled.
    """
    logits = logits.float()
    known = label >= 0
    target = label.clamp(min=0).long()
    entropy = F.cross_entropy(logits, target, reduction="none")
    count = known.sum().clamp(min=1)
    probability = logits.softmax(dim=1) * known[:, None]
    onehot = F.one_hot(target, logits.shape[1]).movedim(-1, 1).to(logits.dtype) * known[:, None]
    axes = (0, 2, 3, 4)
    overlap = (probability * onehot).sum(axes)
    total = probability.sum(axes) + onehot.sum(axes)
    there = onehot.sum(axes) > 0
    # Over the labels present in the batch only (batch Dice): an absent rare label would teach nothing but noise.
    dice = (1 - 2 * overlap / total.clamp(min=1e-6)) * there
    return (entropy * known).sum() / count + dice.sum() / there.sum().clamp(min=1)
