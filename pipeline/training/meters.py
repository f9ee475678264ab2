"""What the logs say of losses, codes and speed."""

from typing import Any

import torch
from torch import Tensor

from rdpm.models.tokenizer import TokenizerConfig
from rdpm.pipeline.training.ranks import mean_over_ranks, sum_over_ranks

# Dense bfloat16 FLOP/s by what CUDA calls the device, from the vendor's data sheets.
_PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}


class TermMeter:
    """Means of the loss terms, and how often each code was used at each step, since the last look."""

    def __init__(self, config: TokenizerConfig, device: torch.device) -> None:
        self._sums: dict[str, Tensor] = {}
        self._calls = 0
        self._counts = torch.zeros(config.schedule.num_steps, config.quantizer.codebook_size, device=device)

    def add(self, terms: dict[str, Tensor]) -> None:
        """Count one micro-batch."""
        codes = terms.pop("codes")
        steps = torch.arange(codes.shape[1], device=codes.device).view(1, -1, 1, 1).expand_as(codes)
        ones = torch.ones((), device=codes.device).expand(codes.numel())
        self._counts.index_put_((steps.flatten(), codes.flatten()), ones, accumulate=True)
        self._calls += 1
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().double()

    def take(self) -> dict[str, Any]:
        """Means over calls and ranks, `usage_by_step`, `perplexity_by_step`; then start anew. Every rank calls it."""
        means = {name: mean_over_ranks(value / self._calls).item() for name, value in sorted(self._sums.items())}
        counts = sum_over_ranks(self._counts)
        share = counts / counts.sum(1, keepdim=True)
        perplexity = torch.exp(-(share * share.clamp_min(1e-30).log()).sum(1))
        usage = (counts > 0).float().mean(1)
        self._sums, self._calls = {}, 0
        self._counts.zero_()
        return {**means, "usage_by_step": usage.tolist(), "perplexity_by_step": perplexity.tolist()}


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
