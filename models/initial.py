"""Initial weights: the same numbers wherever a parameter is. Layers are given to `nn.Module.apply`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def draw(init: Callable[..., Tensor], parameter: Tensor, *options: float) -> None:
    """Fill a parameter with one of `nn.init`'s distributions, drawn on the CPU, whatever the parameter's device."""
    device = "meta" if parameter.is_meta else "cpu"
    parameter.data.copy_(init(torch.empty(parameter.shape, device=device), *options))


def zero(layer: nn.Module) -> None:
    """Zeros for all of a layer's own parameters."""
    for parameter in layer.parameters(recurse=False):
        nn.init.zeros_(parameter)


def xavier(layer: nn.Module) -> None:
    """Xavier's uniform distribution for a layer's weight, and zeros for its bias."""
    for parameter in layer.parameters(recurse=False):
        if parameter.ndim < 2:
            nn.init.zeros_(parameter)
        else:
            draw(nn.init.xavier_uniform_, parameter)


def normal(layer: nn.Module) -> None:
    """A normal distribution of standard deviation 0.02 for a layer's weight, and zeros for its bias."""
    for parameter in layer.parameters(recurse=False):
        if parameter.ndim < 2:
            nn.init.zeros_(parameter)
        else:
            draw(nn.init.normal_, parameter, 0.0, 0.02)
