"""How much memory a network may take."""

import torch

from medgen.store import machine

GPU_SHARE = 0.8
CPU_SHARE = 0.25


def budget_bytes(device: torch.device) -> int:
    """Bytes that activations may take on a device.

    On a GPU a share of what is free. On a CPU a share of what the machine (or its container) has, free or not: the
    size of tiles follows from it, and a sample must not depend on what else runs at the time.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(GPU_SHARE * (free + idle))
    return int(CPU_SHARE * machine.memory_bytes())
