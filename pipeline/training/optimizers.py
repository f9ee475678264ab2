"""The optimizers of both trainings and their learning rate."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from rdpm.pipeline.training.ema import AdamWithEMA


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warmup, then a constant rate or a half cosine down to `final_share` of it."""

    lr: float = 4e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.03
    warmup_steps: int = 1000
    decay: Literal["constant", "cosine"] = "constant"
    final_share: float = 0.0

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of 0-based `step` out of `steps`."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return self.lr
        progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        cosine = (1 + torch.cos(torch.tensor(progress * torch.pi)).item()) / 2
        return self.lr * (self.final_share + (1 - self.final_share) * cosine)


def adamw(model: nn.Module, config: OptimizerConfig, ema_decay: float) -> AdamWithEMA:
    """The generator's optimizer: no weight decay on norms, biases and embeddings."""
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    decayed = [p for p in model.parameters() if p.ndim >= 2 and id(p) not in embeddings]
    plain = [p for p in model.parameters() if p.ndim < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return AdamWithEMA(groups, lr=config.lr, betas=config.betas, ema_decay=ema_decay)


def adam(model: nn.Module, config: OptimizerConfig) -> torch.optim.Adam:
    """The tokenizer's optimizer, and its discriminator's: plain Adam."""
    return torch.optim.Adam(model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
