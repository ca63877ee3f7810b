"""Training a codec on patches cropped on the device."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medgen.measure.image import psnr_db
from medgen.measure.overlap import dice
from medgen.models import losses, tiling
from medgen.models.codec import Codec, Decoded
from medgen.store.patches import PatchSampler
from medgen.training.adversary import Adversary, AdversaryOptions
from medgen.training.ema import Ema
from medgen.training.optimiser import adamw
from medgen.training.pictures import rows_of_slices

VALIDATED = 4
"""Held-out cases that a validation measures; no more need be held in memory."""


@dataclass(frozen=True)
class LossWeights:
    """Weights of a codec's losses; 0 leaves one out. See :mod:`medgen.models.losses`.

    Attributes:
        l1: mean absolute error of the image.
        l2: mean squared error of the image.
        spectral: local strength of detail.
        perceptual: distance of a pretrained network's features, where there is one.
        kl: of a Gaussian codec, in nats a latent scalar.
        label: cross-entropy and Dice of the label.
    """

    l1: float = 1.0
    l2: float = 0.0
    spectral: float = 0.5
    perceptual: float = 0.0
    kl: float = 1e-5
    label: float = 1.0


class AutoencoderTask:
    """Reconstruction of image and label, with an adversary where one is asked for.

    Args:
        codec: on the device.
        sampler: patches of images and, where any case has one, labels (-1 where a voxel has none).
        held_out: (image (C, X, Y, Z), label (X, Y, Z) or None) of validation cases, on the CPU.
        weights: of the losses.
        adversary: how an adversary works; of weight 0 there is none.
        perceptual: the network of the perceptual loss, on the device.
        learning_rate: of AdamW.
        seed: of the experiment.
    """

    def __init__(
        self,
        codec: Codec,
        sampler: PatchSampler,
        held_out: Sequence[tuple[np.ndarray, np.ndarray | None]],
        *,
        weights: LossWeights,
        adversary: AdversaryOptions | None = None,
        perceptual: torch.nn.Module | None = None,
        learning_rate: float,
        seed: int,
    ) -> None:
        self.codec, self.sampler, self.device, self.held_out = codec, sampler, sampler.device, held_out
        self.weights, self.perceptual, self.seed = weights, perceptual, seed
        assert (weights.perceptual > 0) <= (perceptual is not None), "a perceptual loss needs its network"
        self.adversary = None
        self.modules: dict[str, torch.nn.Module] = {"codec": codec}
        self.optimisers: dict[str, torch.optim.Optimizer] = {
            "codec": adamw(codec.parameters(), learning_rate, weight_decay=1e-4, device=self.device)
        }
        if adversary is not None and adversary.weight > 0:
            self.adversary = Adversary(adversary, codec.image_channels, learning_rate, self.device)
            self.modules["adversary"] = self.adversary.net
            self.optimisers["adversary"] = self.adversary.optimiser

    def step(self, step: int, share: float) -> Iterator[tuple[torch.Tensor, str, Mapping[str, torch.Tensor]]]:
        """One batch of patches: the codec's turn, then the adversary's."""
        image, *label = self.sampler(step).arrays
        ids = label[0][:, 0] if label else None
        encoded = self.codec.encode(image, ids)
        # The draw is keyed by the step, so that a resumed training repeats it, and by the process.
        generator = torch.Generator().manual_seed((self.seed + 7919 * self.sampler.rank) * 1_000_003 + step)
        noise = torch.randn(encoded.mean.shape, generator=generator).to(self.device)
        decoded = self.codec.decode(encoded.sample(noise))
        loss, parts = self._reconstruction(decoded, image)
        strength = self.adversary.strength(share) if self.adversary else 0.0
        total = loss
        if self.adversary and strength > 0:
            pull, figures = self.adversary.pull(decoded.image, image, loss, strength)
            total, parts = total + pull - pull.detach(), {**parts, **figures}
        for name, term in self.codec.regulariser(encoded).items():
            parts[name] = term
            total = total + (self.weights.kl if name == "kl" else 1.0) * term
        if decoded.label_logits is not None and ids is not None and self.weights.label > 0:
            parts["label"] = losses.label_loss(decoded.label_logits, ids)
            total = total + self.weights.label * parts["label"]
        yield total, "codec", {"loss": total, **parts, **encoded.figures}
        if self.adversary and strength > 0:
            cost = self.adversary.loss(decoded.image, image)
            yield cost, "adversary", {"adversary": cost}

    def _reconstruction(self, decoded: Decoded, image: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The losses of the image, weighted and summed, and each by name; 0 for a codec of label maps alone."""
        w = self.weights
        parts: dict[str, torch.Tensor] = {}
        if not self.codec.image_channels:
            return image.new_zeros(()), parts
        if w.l1 > 0:
            parts["l1"] = losses.image_l1(decoded, image)
        if w.l2 > 0:
            parts["l2"] = losses.image_l2(decoded, image)
        if w.spectral > 0:
            parts["spectral"] = losses.spectral(decoded, image)
        if w.perceptual > 0 and self.perceptual is not None:
            parts["perceptual"] = self.perceptual(decoded.image, image)
        return torch.stack([getattr(w, name) * value.float() for name, value in parts.items()]).sum(), parts

    def validate(self, averages: Mapping[str, Ema]) -> Mapping[str, float]:
        """PSNR (dB) and mean label Dice of whole held-out cases."""
        codec = self._averaged(averages)
        scores: dict[str, list[float]] = {"psnr": [], "dice": []}
        for image, label in self.held_out[:VALIDATED]:
            out, ids = reconstruct(codec, image, label, self.device)
            if self.codec.image_channels:
                scores["psnr"].append(psnr_db(out, image))
            if ids is not None and label is not None:
                found = np.array(dice(ids, label, range(1, codec.labels)))
                if np.isfinite(found).any():
                    scores["dice"].append(float(np.nanmean(found)))
        return {name: float(np.mean(values)) for name, values in scores.items() if values}

    def panel(self, averages: Mapping[str, Ema]) -> np.ndarray | None:
        """Held-out cases above their reconstructions."""
        if not self.held_out:
            return None
        image, label = self.held_out[0]
        out, ids = reconstruct(self._averaged(averages), image, label, self.device)
        return rows_of_slices([(image, label), (out, ids)])

    def _averaged(self, averages: Mapping[str, Ema]) -> Codec:
        return averages["codec"].applied(self.codec)


@torch.no_grad()
def reconstruct(
    codec: Codec, image: np.ndarray, label: np.ndarray | None, device: torch.device
) -> tuple[np.ndarray, np.ndarray | None]:
    """Encode and decode one case through the posterior's mean.

    Args:
        codec: in evaluation mode.
        image: (C, X, Y, Z) in [-1, 1].
        label: (X, Y, Z) ids or None.
        device: where the codec is.

    Returns:
        The image clamped to [-1, 1] and the label ids, None for a codec without labels.
    """
    x = torch.from_numpy(np.array(image, dtype=np.float32))[None].to(device)
    ids = None if label is None else torch.from_numpy(np.array(label, dtype=np.int64))[None].to(device)
    decoded = tiling.decode(codec, tiling.encode(codec, x, ids).mean)
    out = decoded.image[0].float().clamp(-1, 1).cpu().numpy()
    logits = decoded.label_logits
    return out, None if logits is None else logits[0].argmax(dim=0).cpu().numpy()
