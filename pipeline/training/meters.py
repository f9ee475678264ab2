"""Metrics of losses and codes for the log, over all ranks, and the peak speed of devices."""

from typing import Any

import torch
from torch import Tensor

from rdpm.models.tokenizer import TokenizerConfig
from rdpm.pipeline.training.ranks import mean_over_ranks, sum_over_ranks

# Dense bfloat16 FLOP/s by part of the device's name, from the vendor's data sheets; the first match counts.
_PEAK_FLOPS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}


class TermMeter:
    """Metrics of the tokenizer's micro-batches since the last `take`: mean loss terms, and the use of codes by step."""

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
        """Means over micro-batches and ranks, `usage_by_step` and `perplexity_by_step`. Every rank calls it."""
        means = {name: mean_over_ranks(value / self._calls).item() for name, value in sorted(self._sums.items())}
        counts = sum_over_ranks(self._counts)
        share = counts / counts.sum(1, keepdim=True)
        perplexity = torch.exp(-(share * share.clamp_min(1e-30).log()).sum(1))
        usage = (counts > 0).float().mean(1)
        self._sums, self._calls = {}, 0
        self._counts.zero_()
        return {**means, "usage_by_step": usage.tolist(), "perplexity_by_step": perplexity.tolist()}


class StepLossMeter:
    """Metrics of the generator's micro-batches since the last `take`: cross-entropy, also by step t."""

    def __init__(self, num_steps: int, device: torch.device) -> None:
        self._sums = torch.zeros(2, num_steps, dtype=torch.float64, device=device)

    def add(self, steps: Tensor, losses: Tensor) -> None:
        """Count the losses (b,) at steps t (b,)."""
        values = torch.stack([losses.detach().double(), torch.ones_like(losses, dtype=torch.float64)])
        self._sums.index_add_(1, steps - 1, values)

    def take(self) -> dict[str, Any]:
        """`loss`, and `loss_by_step` with None where no image had that step. Every rank calls it."""
        sums, counts = sum_over_ranks(self._sums).tolist()
        self._sums.zero_()
        by_step = [s / n if n else None for s, n in zip(sums, counts, strict=True)]
        return {"loss": sum(sums) / sum(counts), "loss_by_step": by_step}


def peak_flops(device: torch.device) -> float | None:
    """Peak bfloat16 FLOP/s of a device; None where it is not known, as for a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for key, flops in _PEAK_FLOPS.items() if key in name), None)
