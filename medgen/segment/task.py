"""Training a segmenter on patches cropped on the device: a task of the one training loop."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from medgen.models.losses import label_loss
from medgen.segment.network import padding
from medgen.segment.pairs import Pair
from medgen.segment.randomise import Randomisation, randomise
from medgen.segment.segmenter import Segmenter
from medgen.store.patches import PatchSampler
from medgen.training.ema import Ema
from medgen.training.pictures import rows_of_slices


class SegmenterTask:
    """Cross-entropy and soft Dice.

    Args:
        segmenter: fresh, on the device; its network is trained in place.
        sampler: of patches of images in [-1, 1] and their labels, -1 where not known; their extents are the
            segmenter's window.
        held_out: cases to validate on.
        learning_rate: of AdamW.
        seed: of the images that are made from labels, keyed by (seed, step).
        randomisation: images are made from the labels, and those of the cases are not looked at; None for none.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        sampler: PatchSampler,
        held_out: Sequence[Pair],
        *,
        learning_rate: float,
        seed: int = 0,
        randomisation: Randomisation | None = None,
    ) -> None:
        self.segmenter, self.held_out = segmenter, held_out
        self.randomisation, self.seed = randomisation, seed
        self.sampler = sampler
        self.modules: Mapping[str, torch.nn.Module] = {"net": segmenter.net}
        self.optimisers: Mapping[str, torch.optim.Optimizer] = {
            "net": torch.optim.AdamW(segmenter.net.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4)
        }

    def step(self, step: int, share: float) -> Iterator[tuple[torch.Tensor, str, Mapping[str, torch.Tensor]]]:
        """One batch of patches."""
        image, label = self.sampler(step).arrays
        architecture = self.segmenter.architecture
        if self.randomisation is not None:
            ids, channels = architecture.labels, architecture.image_channels
            with torch.autocast(label.device.type, enabled=False):  # bfloat16 would add noise that nobody asked for
                image = randomise(label[:, 0], ids, channels, self.randomisation, seed=self.seed, step=step)
        amounts = padding(image.shape[2:], architecture.factor)
        logits = self.segmenter.net(F.pad(image, amounts, value=-1.0))
        loss = label_loss(logits, F.pad(label[:, 0], amounts, value=-1))
        yield loss, "net", {"loss": loss}

    def validate(self, averages: Mapping[str, Ema]) -> Mapping[str, float]:
        """Mean Dice of a few held-out cases."""
        averaged = self._averaged(averages)
        found = [averaged.dice(image, label) for image, label in self.held_out[:8]]
        return {"dice": float(np.nanmean(found))} if found else {}

    def panel(self, averages: Mapping[str, Ema]) -> np.ndarray | None:
        """A held-out case with its label, above the same with what was found."""
        if not self.held_out:
            return None
        image, label = self.held_out[0]
        return rows_of_slices([(image, label), (image, self._averaged(averages).predict(image))])

    def _averaged(self, averages: Mapping[str, Ema]) -> Segmenter:
        return self.segmenter.with_network(averages["net"].applied(self.segmenter.net))
