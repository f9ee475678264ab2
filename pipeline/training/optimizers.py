"""The optimizers of both trainings, their learning rate, and the average of the weights.

The average is part of the optimizer's state: there it is float32, follows the master weights, and is sharded and saved
with the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of Adam and its learning rate, which rises linearly during the warmup."""

    lr: float = 4e-4
    """Learning rate after the warmup."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decays of Adam's two moving averages."""
    weight_decay: float = 0.03
    """Decoupled weight decay."""
    warmup_steps: int = 1000
    """Steps during which the learning rate rises from zero."""
    decay: Literal["constant", "cosine"] = "constant"
    """After the warmup: constant, or half a cosine down to final_share of lr."""
    final_share: float = 0.0
    """Share of lr at which the cosine ends."""

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of 0-based `step` out of `steps`."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return self.lr
        progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        cosine = (1 + torch.cos(torch.tensor(progress * torch.pi)).item()) / 2
        return self.lr * (self.final_share + (1 - self.final_share) * cosine)


class AdamWithEMA(torch.optim.AdamW):
    """AdamW plus state["ema"] <- decay ema + (1 - decay) weight, which starts as a copy of the initial weight."""

    def __init__(self, params, *, ema_decay: float, **options) -> None:
        super().__init__(params, **options)
        self.ema_decay = ema_decay

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        weights = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        first = {p: p.detach().float().clone() for p in weights if "ema" not in self.state[p]}
        loss = super().step(closure)
        for weight, start in first.items():
            self.state[weight]["ema"] = start
        for weight in weights:
            self.state[weight]["ema"].lerp_(weight.float(), 1 - self.ema_decay)
        return loss


def adamw(model: nn.Module, config: OptimizerConfig, ema_decay: float) -> AdamWithEMA:
    """The generator's optimizer: no weight decay on norms, biases and embeddings."""
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    shapes = {p: getattr(p, "ds_shape", p.shape) for p in model.parameters()}  # ZeRO-3 may have flattened it
    decayed = [p for p, shape in shapes.items() if len(shape) >= 2 and id(p) not in embeddings]
    plain = [p for p, shape in shapes.items() if len(shape) < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return AdamWithEMA(groups, lr=config.lr, betas=config.betas, ema_decay=ema_decay)


def adam(model: nn.Module, config: OptimizerConfig) -> torch.optim.Adam:
    """The tokenizer's optimizer, and its discriminator's: plain Adam."""
    return torch.optim.Adam(model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
