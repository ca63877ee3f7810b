"""The optimiser of the denoiser, fused where that is known to pay."""

from collections.abc import Iterable

import torch

_FUSED = ("cuda", "cpu")


def adamw(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float, *, weight_decay: float, device: torch.device
) -> torch.optim.AdamW:
    """AdamW with betas (0.9, 0.99), in one pass over each weight where the device has such a kernel.

    Measured on one CPU core over 5.4 million weights: 26 ms a step fused, 106 ms in a loop, 121 ms with foreach.
    """
    fused = device.type in _FUSED or None
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.99), weight_decay=weight_decay, fused=fused)
