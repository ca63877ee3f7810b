"""Training a codec on patches cropped on the device."""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy

import numpy as np
import torch

from medgen.measure.image import psnr_db
from medgen.measure.overlap import dice
from medgen.models import losses
from medgen.models.codec import Codec
from medgen.store.patches import PatchSampler
from medgen.training.ema import Ema
from medgen.training.pictures import rows_of_slices


class AutoencoderTask:
    """L1 + KL + label cross-entropy and Dice.

    Args:
        codec: on the device.
        images: training images (N, C, X, Y, Z) on the device.
        labels: their labels (N, 1, X, Y, Z), -1 where a case has none; None where no case has any.
        held_out: (image (C, X, Y, Z), label (X, Y, Z) or None) of validation cases, on the CPU.
        patch: extents of a training patch.
        batch: patches a step.
        learning_rate: of AdamW.
        kl_weight: weight of the KL term.
        label_weight: weight of the label term.
        seed: of the experiment.
    """

    def __init__(
        self,
        codec: Codec,
        images: torch.Tensor,
        labels: torch.Tensor | None,
        held_out: Sequence[tuple[np.ndarray, np.ndarray | None]],
        *,
        patch: Sequence[int],
        batch: int,
        learning_rate: float,
        kl_weight: float,
        label_weight: float,
        seed: int,
    ) -> None:
        self.codec, self.device, self.held_out = codec, images.device, held_out
        self.kl_weight, self.label_weight, self.seed = kl_weight, label_weight, seed
        self.sampler = PatchSampler([images] if labels is None else [images, labels], patch, batch, seed=seed)
        self.modules: Mapping[str, torch.nn.Module] = {"codec": codec}
        self.optimisers: Mapping[str, torch.optim.Optimizer] = {
            "codec": torch.optim.AdamW(codec.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
        }

    def step(self, step: int) -> Iterator[tuple[torch.Tensor, str, Mapping[str, torch.Tensor]]]:
        """One batch of patches."""
        image, *label = self.sampler(step).arrays
        ids = label[0][:, 0] if label else None
        posterior = self.codec.encode(image, ids)
        # The draw is keyed by the step, so that a resumed training repeats it.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        noise = torch.randn(posterior.mean.shape, generator=generator).to(self.device)
        decoded = self.codec.decode(posterior.sample(noise))
        parts = {"l1": losses.image_l1(decoded, image), "kl": losses.kl_to_standard_normal(posterior)}
        loss = parts["l1"] + self.kl_weight * parts["kl"]
        if decoded.label_logits is not None and ids is not None:
            parts["label"] = losses.label_loss(decoded.label_logits, ids)
            loss = loss + self.label_weight * parts["label"]
        yield loss, "codec", {"loss": loss, **parts}

    def validate(self, averages: Mapping[str, Ema]) -> Mapping[str, float]:
        """PSNR (dB) and mean label Dice of whole held-out cases."""
        codec = self._averaged(averages)
        scores: dict[str, list[float]] = {"psnr": [], "dice": []}
        for image, label in self.held_out[:4]:
            out, ids = reconstruct(codec, image, label, self.device)
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
        codec = deepcopy(self.codec)
        codec.load_state_dict(averages["codec"].state(codec), strict=True)
        return codec.eval()


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
    decoded = codec.decode(codec.encode(x, ids).mean)
    out = decoded.image[0].float().clamp(-1, 1).cpu().numpy()
    logits = decoded.label_logits
    return out, None if logits is None else logits[0].argmax(dim=0).cpu().numpy()
