"""What a codec is trained on."""

import torch
import torch.nn.functional as F

from medgen.models import haar
from medgen.models.codec import Decoded, Encoded


def kl_to_standard_normal(posterior: Encoded) -> torch.Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, averaged over latent scalars (Kingma & Welling 2014, appendix B)."""
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()


def image_l1(decoded: Decoded, image: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of the image."""
    return (decoded.image.float() - image.float()).abs().mean()


def image_l2(decoded: Decoded, image: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the image."""
    return (decoded.image.float() - image.float()).square().mean()


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


def spectral(decoded: Decoded, image: torch.Tensor) -> torch.Tensor:
    """How far the local strength of detail lies from the image's, wherever that detail exactly is.

    The seven detail bands of two Haar levels stand for the spectrum's octaves, and their root mean square over cubes
    of two bands' voxels for its local amplitude. Amplitudes are compared, not values, as spectral losses on Fourier
    transforms do (Dhariwal et al. 2020, arXiv:2005.00341, section 3.2; Jiang et al. 2021, arXiv:2012.12821), but
    locally: a smooth wall does not pay for a sharp one.

    Returns:
        Mean absolute difference of amplitudes, a scalar.
    """
    low = torch.stack([decoded.image.float(), image.float()])
    total = low.new_zeros(())
    channels = image.shape[1]
    for _ in range(2):
        x, y, z = (n // 2 * 2 for n in low.shape[3:])  # an odd extent's last voxel has no partner
        if min(x, y, z) < 2:
            break
        bands = haar.analyse(low[..., :x, :y, :z].flatten(0, 1))
        low = bands[:, :channels].unflatten(0, (2, -1))
        if min(bands.shape[2:]) < 2:
            break
        power = F.avg_pool3d(bands[:, channels:].square(), 2)
        # The offset keeps the root's slope finite where there is nothing, as in a background.
        made, real = (power + 1e-6).sqrt().unflatten(0, (2, -1))
        total = total + (made - real).abs().mean()
    return total
