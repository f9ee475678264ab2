"""Eq. 8: which code each position gets, from logits, the settings of a step, and Gumbel noise."""

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rdpm.models.noise import Stream, gumbel, gumbel_of, word_blocks

_CACHED = 1 << 17  # logits that a CPU gives noise at a time


@dataclass(frozen=True)
class StepSettings:
    """The settings of every image of a batch at one step. None means that no image needs it, so it is not computed."""

    guidance: Float[Tensor, " b"] | None
    """lambda_t."""
    tau: Float[Tensor, " b"]
    """Factor of the logits (Eq. 8): 1 / temperature, or 1 for an image that takes the most likely code."""
    gumbel_scale: Float[Tensor, " b"] | None
    """Factor of the Gumbel noise: 1, or 0 for an image that takes the most likely code."""
    top_k: Int[Tensor, " b"] | None
    """Most likely codes to draw from."""
    top_p: Float[Tensor, " b"] | None
    """Probability to reach; infinity for an image that draws from all codes."""


def truncate(
    logits: Float[Tensor, "b *s K"], top_k: Int[Tensor, " b"], top_p: Float[Tensor, " b"]
) -> Float[Tensor, "b *s K"]:
    """Set logits to -inf except those of the top_k codes and, among them, of the top_p. The most likely code stays."""
    each = (-1, *(1 for _ in logits.shape[1:]))
    ordered = logits.sort(dim=-1, descending=True).values
    among_k = torch.arange(logits.shape[-1], device=logits.device) < top_k.view(each)
    shares = ordered.masked_fill(~among_k, -math.inf).softmax(-1)
    kept = among_k & (shares.cumsum(-1) - shares < top_p.view(each))
    last = kept.sum(-1, keepdim=True).clamp(min=1) - 1
    return logits.masked_fill(logits < ordered.gather(-1, last), -math.inf)


def choose_codes(
    logits: Float[Tensor, "b h w K"], settings: StepSettings, seeds: Int[Tensor, " b"], steps: Int[Tensor, " b"]
) -> Int[Tensor, "b h w"]:
    """Eq. 8: argmax(tau logits + Gumbel noise), in float32, over the codes that top-k and top-p keep.

    A graph makes the noise where it is added. Without one, a CPU takes a few positions at a time, so that their noise
    stays in its caches.
    """
    b, h, w, K = logits.shape
    together = h * w
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        together = max(1, _CACHED // (b * K))
    codes, first = [], 0
    for part in logits.flatten(1, 2).split(together, dim=1):
        part = part * settings.tau.view(-1, 1, 1)
        if settings.top_k is not None and settings.top_p is not None:
            part = truncate(part, settings.top_k, settings.top_p)
        if settings.gumbel_scale is None:
            codes.append(part.argmax(-1))
        elif torch.compiler.is_compiling() and K % 4 == 0:
            codes.append(_argmax_by_blocks(part, settings.gumbel_scale, seeds, steps))
        else:
            noise = gumbel(seeds, steps, tuple(part.shape[1:]), Stream.GUMBEL, first * K)
            codes.append((part + settings.gumbel_scale.view(-1, 1, 1) * noise).argmax(-1))
        first += part.shape[1]
    return torch.cat(codes, 1).view(b, h, w)


def _argmax_by_blocks(
    logits: Float[Tensor, "b s K"], scale: Float[Tensor, " b"], seeds: Int[Tensor, " b"], steps: Int[Tensor, " b"]
) -> Int[Tensor, "b s"]:
    """argmax(logits + scale * Gumbel noise), without ever holding the noise.

    Philox makes four words at a time. This looks for the best block of four codes first, then for the best code of that
    block, whose noise it makes again. Of equal values the first wins, as in argmax.
    """
    (b, s, K), scale = logits.shape, scale.view(-1, 1, 1)
    fours = logits.view(b, s, K // 4, 4)
    words = word_blocks(seeds, steps, Stream.GUMBEL, torch.arange(s * K // 4, device=logits.device).view(1, -1))
    values = [
        four + scale * gumbel_of(word).view(b, s, K // 4) for four, word in zip(fours.unbind(-1), words, strict=True)
    ]
    block = functools.reduce(torch.maximum, values).argmax(-1)
    best = fours.gather(2, block.view(b, s, 1, 1).expand(-1, -1, -1, 4)).squeeze(2)
    place = torch.arange(s, device=logits.device) * (K // 4) + block
    again = torch.stack(torch.broadcast_tensors(*word_blocks(seeds, steps, Stream.GUMBEL, place)), dim=-1)
    return 4 * block + (best + scale * gumbel_of(again)).argmax(-1)
