"""A trained segmenter: label ids, soft volumes and features of an image. A folder of two files on disk."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from monai.inferers.utils import sliding_window_inference
from monai.networks.nets import UNet
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from medgen import __version__
from medgen.errors import InputError, reason
from medgen.files import atomic, read_json, sha256_file, write_json
from medgen.measure.overlap import dice
from medgen.segment.network import Architecture, bottleneck, build, padding
from medgen.training.precision import device_of

FORMAT = 1
INDEX = "segmenter.json"
WEIGHTS = "segmenter.safetensors"


@dataclass(frozen=True, eq=False)
class Segmenter:
    """A network with what it needs to be used.

    Attributes:
        architecture: what the network is built from.
        net: the network.
        window: extents of the patches it was trained on. What fits into them is segmented in one go, and what does
            not by overlapping windows of that size, since instance norm depends on the extent.
        training: how it was trained, JSON-able, no case named.
        grid: what it was trained on: ``channels``, ``label_names`` and ``spacing_mm``; empty where that is not known.
    """

    architecture: Architecture
    net: UNet
    window: tuple[int, ...]
    training: Mapping[str, Any]
    grid: Mapping[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.net.parameters()).device

    def with_network(self, net: UNet) -> "Segmenter":
        """The same with another network, in evaluation mode."""
        return replace(self, net=net.eval().requires_grad_(False))

    @torch.no_grad()
    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Probability (L, X, Y, Z) float32 of each label id for an image (C, X, Y, Z) in [-1, 1]."""
        x = self._batch(image)
        if all(n <= w for n, w in zip(image.shape[1:], self.window, strict=True)):
            logits = self._logits(x)
        else:
            logits = torch.as_tensor(
                sliding_window_inference(x, self.window, 2, self._logits, overlap=0.5, mode="gaussian", cval=-1.0)
            )
        return logits[0].float().softmax(dim=0).cpu().numpy()

    def predict(self, image: np.ndarray) -> np.ndarray:
        """Label ids (X, Y, Z) uint8 or uint16 for an image (C, X, Y, Z) in [-1, 1]."""
        smallest = np.uint8 if self.architecture.labels <= 256 else np.uint16
        return self.probabilities(image).argmax(axis=0).astype(smallest)

    def volumes_ml(self, image: np.ndarray, voxel_ml: float) -> np.ndarray:
        """Soft volume (L - 1,) in ml of each label but the background: sums of probabilities.

        Args:
            image: (C, X, Y, Z) in [-1, 1].
            voxel_ml: volume of a voxel, in the space in which the volumes are wanted.
        """
        return self.probabilities(image)[1:].sum(axis=(1, 2, 3), dtype=np.float64) * voxel_ml

    @torch.no_grad()
    def features(self, image: np.ndarray, inside: np.ndarray | None = None) -> np.ndarray:
        """Features (W,) float32: means over space of the W activations at the bottleneck.

        Args:
            image: (C, X, Y, Z) in [-1, 1], taken whole.
            inside: (X, Y, Z) bool, voxels that count; padding is best left out. None counts all.
        """
        x = self._batch(image)
        amounts = padding(image.shape[1:], self.architecture.factor)
        deep = bottleneck(self.net, F.pad(x, amounts, value=-1.0))[0].float().flatten(1)
        counted = np.ones(image.shape[1:], np.float32) if inside is None else inside.astype(np.float32)
        mask = F.pad(torch.from_numpy(counted)[None, None].to(x.device), amounts)
        weight = F.avg_pool3d(mask, self.architecture.factor).flatten()
        return ((deep * weight).sum(dim=1) / weight.sum()).cpu().numpy()

    def dice(self, image: np.ndarray, label: np.ndarray) -> list[float]:
        """Dice of each label but the background between what is found and a label (X, Y, Z); NaN where in neither."""
        return dice(self.predict(image), label, range(1, self.architecture.labels))

    def save(self, folder: str | Path) -> None:
        """Write ``segmenter.safetensors``, then ``segmenter.json`` with its SHA-256."""
        folder = Path(folder)
        with atomic(folder / WEIGHTS) as temporary:
            save_file({key: t.detach().cpu().contiguous() for key, t in self.net.state_dict().items()}, temporary)
        write_json(
            folder / INDEX,
            {
                "format": FORMAT,
                "medgen": __version__,
                "architecture": asdict(self.architecture),
                "window": list(self.window),
                "training": dict(self.training),
                "grid": dict(self.grid),
                "sha256": sha256_file(folder / WEIGHTS),
            },
        )

    @staticmethod
    def load(folder: str | Path, *, device: str | torch.device = "auto") -> "Segmenter":
        """Load a segmenter's folder, weights strictly.

        Raises:
            InputError: not one, not finished, damaged, or the device is not there.
        """
        folder = Path(folder)
        if not (folder / INDEX).is_file():
            raise InputError(f"{folder} holds no {INDEX}, so it is not a finished segmenter; train it (again)")
        raw = read_json(folder / INDEX)
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise InputError(f"{folder / INDEX} is of another version of medgen; train the segmenter again")
        if not (folder / WEIGHTS).is_file() or sha256_file(folder / WEIGHTS) != raw.get("sha256"):
            raise InputError(f"{folder / WEIGHTS} is missing or not the file that {INDEX} describes; train it again")
        try:
            fields = raw["architecture"]
            architecture = Architecture(**{**fields, "widths": tuple(fields["widths"])})
            net = build(architecture)
            net.load_state_dict(load_file(folder / WEIGHTS), strict=True)
            window = tuple(int(n) for n in raw["window"])
            fresh = Segmenter(architecture, net, window, raw["training"], raw.get("grid", {}))
        except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise InputError(f"{folder / INDEX} is damaged ({reason(error)}); train the segmenter again") from None
        return fresh.with_network(net.to(device_of(device) if isinstance(device, str) else device))

    def _batch(self, image: np.ndarray) -> torch.Tensor:
        channels = self.architecture.image_channels
        if image.ndim != 4 or image.shape[0] != channels:
            raise InputError(f"the segmenter takes images ({channels}, X, Y, Z), not of shape {image.shape}")
        return torch.from_numpy(np.array(image, dtype=np.float32))[None].to(self.device)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        extent = x.shape[2:]
        logits: torch.Tensor = self.net(F.pad(x, padding(extent, self.architecture.factor), value=-1.0))
        return logits[:, :, : extent[0], : extent[1], : extent[2]]
