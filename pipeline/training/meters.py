"""What the generator's log says of its losses and its speed."""

from typing import Any

import torch
from torch import Tensor

from pipeline.training.ranks import sum_over_ranks

# Dense bfloat16 FLOP/s by what CUDA calls the device, from the vendor's data sheets.
_PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}


class StepLossMeter:
    """Cross-entropy by step t since the last look, over all ranks."""

    def __init__(self, num_steps: int, device: torch.device) -> None:
        self._sums = torch.zeros(2, num_steps, dtype=torch.float64, device=device)

    def add(self, steps: Tensor, losses: Tensor) -> None:
        """Count the losses (b,) of steps (b,)."""
        values = torch.stack([losses.detach().double(), torch.ones_like(losses, dtype=torch.float64)])
        self._sums.index_add_(1, steps - 1, values)

    def take(self) -> dict[str, Any]:
        """loss, and loss_by_step with None where no image had that step; then start anew. Every rank calls it."""
        sums, counts = sum_over_ranks(self._sums).tolist()
        self._sums.zero_()
        by_step = [s / n if n else None for s, n in zip(sums, counts, strict=True)]
        return {"loss": sum(sums) / sum(counts), "loss_by_step": by_step}


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s that the device could do in bfloat16; None where that is not known, as for a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for key, flops in _PEAK_FLOPS.items() if key in name), None)
