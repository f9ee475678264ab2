"""AdamW that keeps the exponential moving average of the weights in its own state.

There the average is float32, follows the master weights, and is sharded and saved by ZeRO with the rest.
"""

from collections.abc import Callable

import torch


class AdamWithEMA(torch.optim.AdamW):
    """AdamW plus state["ema"] <- decay ema + (1 - decay) weight, started as a copy of the first weights."""

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
