"""The codebook: K code vectors, the shared bias convolution on them, and their moving-average update."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from rdpm.models.initial import zero
from rdpm.models.precision import without_autocast

_CPU_DISTANCES, _GPU_DISTANCES = 1 << 19, 1 << 24  # held at once: 2 MiB stay in a core's cache, 64 MiB fill a GPU
_FEWEST_ROWS = 128  # of a product on a CPU, whose kernels round otherwise for a few rows
_GROUP = 64
MAX_CODEBOOK_SIZE = 1 << 16  # stores keep codes as uint16


def check_codebook_size(size: int) -> None:
    """Raise ValueError unless the codes of a codebook of this size fit into uint16."""
    if not 2 <= size <= MAX_CODEBOOK_SIZE:
        raise ValueError(f"codebook_size is {size}; use 2 to {MAX_CODEBOOK_SIZE}, since stores keep codes as uint16")


@dataclass(frozen=True)
class QuantizerConfig:
    """The codebook and how it learns."""

    codebook_size: int = 4096
    """K, number of code vectors."""
    code_dim: int = 32
    """d, size of a code vector."""
    bias: bool = True
    """Add the shared convolution on quantized vectors (Table 2, "bias")."""
    update: Literal["gradient", "ema"] = "gradient"
    """gradient: the codebook term of Eq. 4 moves the vectors. ema: each vector is the moving average of the noisy
    latents that chose it (van den Oord et al. 2017, appendix A.1)."""
    decay: float = 0.99
    """Decay of the moving averages, with ema."""
    dead_below: float = 1.0
    """With ema, a code vector restarts from the data when the moving average of its uses falls below this."""
    growing: bool = False
    """Whether maps of codes grow from step to step, as a scale-wise rival needs it: step t quantizes means of blocks,
    1, 2, 4 and so on per side, up to the grid, and a block has one code. The paper's maps do not grow."""

    def __post_init__(self) -> None:
        check_codebook_size(self.codebook_size)
        if not 0 < self.decay < 1:
            raise ValueError(f"decay is {self.decay}; use a number between 0 and 1")


class Codebook(nn.Module):
    """K code vectors and the shared bias convolution (Section 4.2)."""

    vectors: Tensor
    ema_counts: Tensor
    ema_sums: Tensor
    seen: Tensor
    recent: Tensor

    def __init__(self, config: QuantizerConfig) -> None:
        super().__init__()
        self.config = config
        vectors = torch.randn(config.codebook_size, config.code_dim) * 0.5
        if config.update == "gradient":
            self.vectors = nn.Parameter(vectors)
        else:
            self.register_buffer("vectors", vectors)
            self.register_buffer("ema_counts", torch.ones(config.codebook_size))
            self.register_buffer("ema_sums", vectors.clone())
            self.register_buffer("seen", torch.zeros(config.codebook_size, config.code_dim + 1), persistent=False)
            self.register_buffer("recent", vectors.clone(), persistent=False)
        self.bias = nn.Conv2d(config.code_dim, config.code_dim, 3, padding=1, bias=False) if config.bias else None
        if self.bias is not None:
            self.bias.apply(zero)

    def nearest(self, noisy: Float[Tensor, "b d h w"]) -> Int[Tensor, "b h w"]:
        """Index of the code vector nearest to each noisy latent (Euclidean), in float32 even under autocast."""
        b, d, h, w = noisy.shape
        with torch.no_grad(), without_autocast(noisy):
            points = noisy.float().permute(0, 2, 3, 1).reshape(-1, d)
            vectors = self.vectors.float()
            # |x - c|^2 = |x|^2 - 2 (x.c - |c|^2 / 2), and |x|^2 is the same for every code.
            half_norms = vectors.square().sum(1) / 2
            most = _CPU_DISTANCES if points.is_cpu else _GPU_DISTANCES
            rows = max(_FEWEST_ROWS, most // len(vectors))
            parts = points.tensor_split(-(-len(points) // rows))  # equal parts: none has only a few rows
            codes = [_first_largest(_closeness(part, vectors, half_norms)) for part in parts]
        return torch.cat(codes).view(b, h, w)

    def look_up(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """The code vectors of codes, before the bias convolution."""
        return F.embedding(codes, self.vectors).permute(0, 3, 1, 2)

    def phi(self, vectors: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """phi(x) = x + conv(x): code vectors, or sums of them, with their bias. Linear."""
        if self.bias is None:
            return vectors
        with without_autocast(vectors):
            vectors = vectors.float().contiguous()  # one memory format: one kernel, one rounding
            return vectors + F.conv2d(vectors, self.bias.weight.float(), padding=1)

    def accumulate_step(self, total: Float[Tensor, "b d h w"], codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """Add the code vectors of one step to their sum (Alg. 1, line 6, before phi)."""
        return total + self.look_up(codes)

    def accumulated(self, codes: Int[Tensor, "b T h w"], steps: Int[Tensor, " b"] | int) -> Float[Tensor, "b d h w"]:
        """z'_s, rebuilt from codes. steps: s, one for all images or one per image; 0 gives zeros."""
        steps = torch.as_tensor(steps, device=codes.device).expand(len(codes))
        total = self.start(codes[:, 0])
        for t in range(1, codes.shape[1] + 1):
            total = torch.where((steps >= t).view(-1, 1, 1, 1), self.accumulate_step(total, codes[:, t - 1]), total)
        return self.phi(total)

    def start(self, codes: Int[Tensor, "b h w"]) -> Float[Tensor, "b d h w"]:
        """The empty sum (z'_0 = 0) for maps of codes of this shape."""
        b, h, w = codes.shape
        return self.vectors.new_zeros(b, self.config.code_dim, h, w)

    @torch.no_grad()
    def observe(self, noisy: Float[Tensor, "n d"], codes: Int[Tensor, " n"], weights: Float[Tensor, " n"]) -> None:
        """Add one micro-batch to the sums that the next `follow` uses.

        noisy: the noisy latents v_t. codes: the code that each chose. weights: gamma_t of each one's step.
        """
        weighted = torch.cat([noisy * weights.unsqueeze(1), weights.unsqueeze(1)], dim=1)
        self.seen.index_add_(0, codes, weighted)
        spread = torch.arange(len(self.recent), device=codes.device) * len(noisy) // len(self.recent)
        self.recent.copy_(noisy[spread])

    @torch.no_grad()
    def follow(self, seen: Float[Tensor, "K d1"], recent: Float[Tensor, "K d"]) -> None:
        """Update the moving averages and the code vectors. Called once per iteration.

        seen: `self.seen` summed over all ranks. recent: noisy latents that replace dead code vectors, the same on every
        rank.
        """
        decay = self.config.decay
        self.ema_sums.mul_(decay).add_(seen[:, :-1], alpha=1 - decay)
        self.ema_counts.mul_(decay).add_(seen[:, -1], alpha=1 - decay)
        dead = self.ema_counts < self.config.dead_below
        self.ema_sums[dead] = recent[dead] * self.config.dead_below
        self.ema_counts[dead] = self.config.dead_below
        self.vectors.copy_(self.ema_sums / self.ema_counts.unsqueeze(1))
        self.seen.zero_()


def _closeness(points: Float[Tensor, "n d"], vectors: Float[Tensor, "K d"], half_norms: Float[Tensor, " K"]) -> Tensor:
    """x.c - |c|^2 / 2 of every point and code, (n, K)."""
    if points.is_cpu:
        return (points @ vectors.T).sub_(half_norms)  # in cache; with d above 128, addmm rounds otherwise
    return torch.addmm(-half_norms, points, vectors.T)  # the product adds it before it writes


def _first_largest(values: Float[Tensor, "n K"]) -> Int[Tensor, " n"]:
    """The index of the largest value of each row, the first one if there are several."""
    n, K = values.shape
    if not values.is_cpu or K % _GROUP or K < _GROUP**2 // 4:
        return values.argmax(1)
    # On a CPU argmax compares one by one, and amax many at once.
    groups = values.view(n, K // _GROUP, _GROUP)
    group = groups.amax(2).argmax(1)
    inside = groups[torch.arange(n), group].argmax(1)
    return group * _GROUP + inside
