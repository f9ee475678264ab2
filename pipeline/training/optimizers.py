"""The optimizers of both trainings, their learning rate, and the average of the weights.

The average is part of the optimizer's state: there it is float32, follows the master weights, and is sharded and saved
with the rest.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn


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

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "warmup_steps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name):g}; use 0 or more")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas is {list(self.betas)}; use shares from 0 to below 1")
        if not 0 <= self.final_share <= 1:
            raise ValueError(f"final_share is {self.final_share:g}; use a share from 0 to 1")

    def lr_at(self, step: int, steps: int) -> float:
        """Learning rate of 0-based `step` out of `steps`."""
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return self.lr
        progress = (step - self.warmup_steps) / max(1, steps - self.warmup_steps)
        cosine = (1 + torch.cos(torch.tensor(progress * torch.pi)).item()) / 2
        return self.lr * (self.final_share + (1 - self.final_share) * cosine)


_STATE = ("exp_avg", "exp_avg_sq", "ema")
_PIECE = 1 << 20
"""Numbers of each tensor that a CPU updates at a time. Five tensors of so many fit the last cache of a server."""


class AdamWithEMA(torch.optim.AdamW):
    """AdamW plus state["ema"] <- decay ema + (1 - decay) weight, which starts as a copy of the initial weight.

    One pass over memory: a CPU updates a piece of the weights that fits its caches, and then the average of that piece.
    A GPU updates all weights of a group in one kernel, and all averages in another one.
    """

    def __init__(self, params, *, ema_decay: float, **options) -> None:
        super().__init__(params, fused=True, **options)
        self.ema_decay = ema_decay

    @torch.no_grad()
    def step(self, closure: Callable | None = None):
        """Update every weight that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for weights, grads, means, squares, averages, steps in self._pieces(group["params"]):
                torch._fused_adamw_(
                    weights, grads, means, squares, [], steps, lr=group["lr"], beta1=beta1, beta2=beta2,
                    weight_decay=group["weight_decay"], eps=group["eps"], amsgrad=False, maximize=False,
                )  # fmt: skip
                torch._foreach_lerp_(averages, [weight.float() for weight in weights], 1 - self.ema_decay)
        return loss

    def _pieces(self, params: list[nn.Parameter]) -> Iterator[list[list[Tensor]]]:
        """Parts of weights, their gradients, both moments, the averages and the number of steps, in lists of each."""
        piece: list[tuple[Tensor, ...]] = []
        for weight in params:
            if weight.grad is None:
                continue
            state = self._state_of(weight)
            state["step"] += 1
            size = _PIECE if weight.device.type == "cpu" else max(1, weight.numel())
            tensors = weight.view(-1), weight.grad.reshape(-1), *(state[key].view(-1) for key in _STATE)
            for parts in zip(*(tensor.split(size) for tensor in tensors), strict=True):
                piece.append((*parts, state["step"]))
                if weight.device.type == "cpu" and sum(len(part[0]) for part in piece) >= _PIECE:
                    yield [list(column) for column in zip(*piece, strict=True)]
                    piece = []
        if piece:
            yield [list(column) for column in zip(*piece, strict=True)]

    def _state_of(self, weight: nn.Parameter) -> dict[str, Tensor]:
        """The state of a weight, which begins before its first update."""
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros((), device=weight.device)  # where the fused kernel wants it
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
            state["ema"] = weight.detach().clone().float()
        return state


def adamw(model: nn.Module, config: OptimizerConfig, ema_decay: float) -> AdamWithEMA:
    """The generator's optimizer: no weight decay on norms, biases and embeddings."""
    embeddings = {id(p) for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()}
    shapes = {p: getattr(p, "ds_shape", p.shape) for p in model.parameters()}  # ZeRO-3 may have flattened it
    decayed = [p for p, shape in shapes.items() if len(shape) >= 2 and id(p) not in embeddings]
    plain = [p for p, shape in shapes.items() if len(shape) < 2 or id(p) in embeddings]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return AdamWithEMA(groups, lr=config.lr, betas=config.betas, ema_decay=ema_decay)


def adam(model: nn.Module, config: OptimizerConfig) -> torch.optim.Adam:
    """The tokenizer's optimizer, and its discriminator's: plain Adam for what is trained."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.Adam(trained, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
