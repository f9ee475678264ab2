"""The LLaMA-style transformer with AdaLN-Zero (Section 4.2): RMSNorm, 2-D RoPE, SwiGLU, no biases."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rdpm.models.attention import Backend, attend
from rdpm.models.initial import xavier, zero

_EPS = 1e-6


def modulate(
    x: Float[Tensor, "b s d"], shift: Float[Tensor, "b d"], scale: Float[Tensor, "b d"]
) -> Float[Tensor, "b s d"]:
    """AdaLN: x (1 + scale) + shift, after an RMSNorm without weights, in the type of x."""
    normed = F.rms_norm(x, x.shape[-1:], eps=_EPS).to(x.dtype)  # CUDA's autocast makes float32 of it
    return torch.addcmul(shift.unsqueeze(1), normed, 1 + scale.unsqueeze(1))


def rotary_angles(grid: int, head_dim: int) -> Float[Tensor, "s half"]:
    """Angles of 2-D rotary positions: the first half of the pairs rotates with the row, the second with the column."""
    quarter = head_dim // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    index = torch.arange(grid, dtype=torch.float64)
    rows = index.repeat_interleave(grid).unsqueeze(1) * frequency
    columns = index.repeat(grid).unsqueeze(1) * frequency
    return torch.cat([rows, columns], dim=1).float()


def position_embedding(grid: int, width: int) -> Float[Tensor, "s width"]:
    """Fixed 2-D sine and cosine embedding (as in DiT): a quarter of the width each for sin and cos of row and column.

    Rotary positions are relative, and without a causal mask attention learns little about absolute positions from them.
    """
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    index = torch.arange(grid, dtype=torch.float64)
    rows = index.repeat_interleave(grid).unsqueeze(1) * frequency
    columns = index.repeat(grid).unsqueeze(1) * frequency
    return torch.cat([rows.sin(), rows.cos(), columns.sin(), columns.cos()], dim=1).float()


def rotate(
    x: Float[Tensor, "b n s k"], cos: Float[Tensor, "s half"], sin: Float[Tensor, "s half"]
) -> Float[Tensor, "b n s k"]:
    """Rotate the pairs (x_i, x_{i + k/2}) by the angles of their position, in float32."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


class Block(nn.Module):
    """Attention and SwiGLU, each gated by AdaLN-Zero."""

    def __init__(self, width: int, heads: int, hidden: int, backend: Backend) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def attention(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        b, s, d = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, self.backend, mask)
        return self.out(mixed.transpose(1, 2).reshape(b, s, d))

    def feed_forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        modulations: Float[Tensor, "b 6 d"],
        cos: Float[Tensor, "s half"],
        sin: Float[Tensor, "s half"],
        mask: Bool[Tensor, "s s"] | None = None,
    ) -> Float[Tensor, "b s d"]:
        """modulations: shift, scale and gate of the attention, then those of the SwiGLU. mask: see `attend`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulations.unbind(1)
        x = torch.addcmul(x, gate1.unsqueeze(1), self.attention(modulate(x, shift1, scale1), cos, sin, mask))
        return torch.addcmul(x, gate2.unsqueeze(1), self.feed_forward(modulate(x, shift2, scale2)))


class Transformer(nn.Module):
    """`depth` blocks over grid x grid positions; the width is 64 x depth, with `depth` heads (Table 1)."""

    cos: Tensor
    sin: Tensor
    positions: Tensor

    def __init__(self, depth: int, hidden: int, grid: int, backend: Backend, activation_checkpointing: bool) -> None:
        super().__init__()
        self.activation_checkpointing = activation_checkpointing
        self.width = 64 * depth
        self.blocks = nn.ModuleList(Block(self.width, depth, hidden, backend) for _ in range(depth))
        self.adaln = nn.Linear(self.width, (6 * depth + 2) * self.width)
        angles = rotary_angles(grid, 64)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        self.register_buffer("positions", position_embedding(grid, self.width), persistent=False)
        self._init()

    def _init(self) -> None:
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                module.apply(xavier)
        self.adaln.apply(self._closed)

    @torch.no_grad()
    def _closed(self, layer: nn.Module) -> None:
        """AdaLN-Zero: every block starts as the identity. The last scale starts at -1, so that the output is zero."""
        zero(layer)
        layer.get_parameter("bias")[-self.width :] = -1

    def modulations(self, condition: Float[Tensor, "b d"]) -> Float[Tensor, "b n d"]:
        """Six vectors for each block, and shift and scale of the last norm, in one product.

        They depend on the condition alone, so a sampler computes those of all steps before the first one.
        """
        return self.adaln(F.silu(condition)).unflatten(1, (-1, self.width))

    def forward(
        self,
        x: Float[Tensor, "b s d"],
        modulations: Float[Tensor, "b n d"],
        mask: Bool[Tensor, "s s"] | None = None,
    ) -> Float[Tensor, "b s d"]:
        """The residual stream has the type of x: bfloat16 under autocast, where x is the result of a product.

        mask: which positions see which; None where all see all, as in RDPM.
        """
        x = x + self.positions.to(x.dtype)
        for block, mine in zip(self.blocks, modulations[:, :-2].split(6, dim=1), strict=True):
            if self.activation_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, mine, self.cos, self.sin, mask, use_reentrant=False)
            else:
                x = block(x, mine, self.cos, self.sin, mask)
        return modulate(x, modulations[:, -2], modulations[:, -1])
