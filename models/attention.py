"""Attention by a choice of kernel: PyTorch's own, or flash-attn where it is installed."""

import importlib.util
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Backend = Literal["sdpa", "math", "flash_attn"]


def check_backend(backend: Backend) -> None:
    """Raise ValueError for an unknown kernel, and for flash_attn where flash-attn is not installed."""
    if backend not in ("sdpa", "math", "flash_attn"):
        raise ValueError(f"attention {backend!r} is unknown; use sdpa, math or flash_attn")
    if backend == "flash_attn" and importlib.util.find_spec("flash_attn") is None:
        raise ValueError("attention is flash_attn but flash-attn is not installed; install it or use sdpa")


def attend(
    q: Float[Tensor, "b n s k"],
    k: Float[Tensor, "b n s k"],
    v: Float[Tensor, "b n s k"],
    backend: Backend = "sdpa",
    mask: Bool[Tensor, "s s"] | None = None,
) -> Float[Tensor, "b n s k"]:
    """softmax(q k^T / sqrt(k)) v over the sequence axis. b images, n heads, s positions, k channels.

    mask: true where the position of the row sees that of the column; None where all see all, as flash_attn needs it.
    """
    if backend == "sdpa":
        return F.scaled_dot_product_attention(q, k, v, mask)
    if backend == "math":  # faster than the fused CPU kernel's backward pass on a few positions
        with sdpa_kernel(SDPBackend.MATH):
            return F.scaled_dot_product_attention(q, k, v, mask)
    assert mask is None
    from flash_attn import flash_attn_func

    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return flash_attn_func(q, k, v, deterministic=torch.are_deterministic_algorithms_enabled()).transpose(1, 2)
