"""Encoder and decoder of VQGAN (Esser et al. 2021); RDPM's encoder ends in a LayerNorm (Section 4.2)."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rdpm.models.attention import attend
from rdpm.models.fields import EXECUTION


@dataclass(frozen=True)
class AutoencoderConfig:
    """Size of encoder and decoder. The defaults are VQGAN f16."""

    RENAMED: ClassVar[dict[str, str]] = {"checkpoint": "activation_checkpointing"}

    in_channels: int = 3
    """Channels of the images: 1 or 3."""
    channels: int = 128
    """Base number of channels. Each resolution has this many, times its multiplier."""
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Channels per resolution, as multiples of `channels`. Each entry after the first halves the map once."""
    num_res_blocks: int = 2
    """Residual blocks per resolution; the decoder has one more."""
    attention_factors: tuple[int, ...] = (16,)
    """Downsampling factors at which self-attention follows every residual block."""
    groups: int = 32
    """Groups of every GroupNorm; divides `channels`."""
    activation_checkpointing: bool = field(default=False, metadata=EXECUTION)
    """Recompute residual blocks in the backward pass instead of keeping activations: less memory, but slower."""

    def __post_init__(self) -> None:
        if self.in_channels not in (1, 3):
            raise ValueError(f"in_channels is {self.in_channels}; use 1 or 3")
        for name in ("channels", "groups", "num_res_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use 1 or more")
        if not self.multipliers:
            raise ValueError("multipliers is empty; give one number per resolution")
        if self.channels % self.groups:
            raise ValueError(f"channels {self.channels} must be a multiple of groups {self.groups}")

    @property
    def factor(self) -> int:
        """H / h, the downsampling factor."""
        return 2 ** (len(self.multipliers) - 1)


class ResidualBlock(nn.Module):
    """Twice GroupNorm, SiLU and a 3x3 convolution, with a skip connection."""

    def __init__(self, in_channels: int, out_channels: int, groups: int, activation_checkpointing: bool) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def _body(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.skip(x) + h

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k h w"]:
        if self.activation_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(self._body, x, use_reentrant=False)
        return self._body(x)


class AttentionBlock(nn.Module):
    """Single-head self-attention over positions, with a skip connection."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).view(b, 3, 1, c, h * w).transpose(-1, -2).unbind(1)
        attended = attend(q, k, v).transpose(-1, -2).reshape(b, c, h, w)
        return x + self.out(attended)


class Downsample(nn.Module):
    """Stride-2 convolution, padded at the right and the bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour upsampling by 2, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _level(config: AutoencoderConfig, in_channels: int, out_channels: int, factor: int, depth: int) -> list[nn.Module]:
    """Residual blocks of one resolution, each followed by attention where the config asks for it."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers.append(ResidualBlock(in_channels, out_channels, config.groups, config.activation_checkpointing))
        if factor in config.attention_factors:
            layers.append(AttentionBlock(out_channels, config.groups))
        in_channels = out_channels
    return layers


def _middle(config: AutoencoderConfig, channels: int) -> list[nn.Module]:
    return [
        ResidualBlock(channels, channels, config.groups, config.activation_checkpointing),
        *([AttentionBlock(channels, config.groups)] if config.attention_factors else []),
        ResidualBlock(channels, channels, config.groups, config.activation_checkpointing),
    ]


class Encoder(nn.Module):
    """E of Eq. 1: images in [-1, 1] to latents, layer-normalized over channels at each position."""

    def __init__(self, config: AutoencoderConfig, code_dim: int) -> None:
        super().__init__()
        width = config.channels * config.multipliers[0]
        layers: list[nn.Module] = [nn.Conv2d(config.in_channels, width, 3, padding=1)]
        for level, multiplier in enumerate(config.multipliers):
            if level:
                layers.append(Downsample(width))
            layers += _level(config, width, config.channels * multiplier, 2**level, config.num_res_blocks)
            width = config.channels * multiplier
        layers += _middle(config, width)
        layers += [nn.GroupNorm(config.groups, width, eps=1e-6), nn.SiLU(), nn.Conv2d(width, code_dim, 3, padding=1)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(code_dim)

    def forward(self, images: Float[Tensor, "b c H W"]) -> Float[Tensor, "b d h w"]:
        return self.norm(self.layers(images).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Decoder(nn.Module):
    """D: accumulated latents to images. `features` stops before the last convolution."""

    def __init__(self, config: AutoencoderConfig, code_dim: int) -> None:
        super().__init__()
        width = config.channels * config.multipliers[-1]
        layers: list[nn.Module] = [nn.Conv2d(code_dim, width, 3, padding=1), *_middle(config, width)]
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            layers += _level(config, width, config.channels * multiplier, 2**level, config.num_res_blocks + 1)
            width = config.channels * multiplier
            if level:
                layers.append(Upsample(width))
        self.layers = nn.Sequential(*layers, nn.GroupNorm(config.groups, width, eps=1e-6), nn.SiLU())
        self.last = nn.Conv2d(width, config.in_channels, 3, padding=1)

    def features(self, latents: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        return self.layers(latents)

    def forward(self, latents: Float[Tensor, "b d h w"]) -> Float[Tensor, "b c H W"]:
        return self.last(self.features(latents))
