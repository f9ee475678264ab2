"""Noise as a pure function of (seed, stream, step, element), bit-identical on every device.

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011; known answers in Random123)
turns a 64-bit key and a 128-bit counter into four 32-bit words. The key is the seed. The counter is
(element // 4, step, stream, 0), and word `element % 4` belongs to `element`, the flat index into (d, h, w).

A normal number is the scaled sum of two quantiles, which are looked up by the two halves of one word. That takes a
gather, one addition and one multiplication that no compiler can fuse, so IEEE 754 fixes every bit of the result. Seeds
are uint64, carried as int64 bit patterns.
"""

import functools
import hashlib
import math
from enum import IntEnum
from statistics import NormalDist

import torch
from jaxtyping import Float, Int
from torch import Tensor

NOISE_VERSION = 1

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_QUANTILES_SHA256 = "1cfbba1e07e34386a57626f82aeb43e6ed54ba70a3ea6b7d964dc66a841074a8"


class Stream(IntEnum):
    """Independent families of random numbers under one seed."""

    TOKENIZER = 0
    """eps_t that the tokenizer mixes into latents."""
    SAMPLER = 1
    """eps_t that the generator starts from when it samples."""
    GUMBEL = 2
    """Gumbel noise on logits."""
    LABEL_DROPOUT = 3
    """Which labels training drops."""
    STEP = 4
    """Which steps of an image are trained on, and initial weights of the classifier."""
    AUGMENTATION = 5
    """Crops and flips."""
    CHILD = 6
    """Seeds made from a seed."""


Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[Tensor, ...]) -> Words:
    """Philox4x32-10. All tensors are int64 holding 32-bit words and broadcast together.

    The 64-bit product may wrap to a negative int64, but the shift and the mask still give its correct halves.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def word_blocks(
    seeds: Int[Tensor, " b"], step: int | Int[Tensor, " b"], stream: Stream, blocks: Int[Tensor, "#b n"]
) -> Words:
    """The words of each seed's stream at `step` for elements 4 i, 4 i + 1, 4 i + 2 and 4 i + 3, where i is in `blocks`.

    Four tensors (b, n), as int64.
    """
    seeds = seeds.view(-1, 1)
    # Filled on the device: a copy from the host would wait for it.
    steps = torch.full((1,), step, device=seeds.device) if isinstance(step, int) else step
    steps = steps.to(seeds.device, torch.int64).view(-1, 1)
    # A zero from memory: else inductor multiplies the bare index in 32 bits, which Triton refuses.
    blocks = blocks ^ (seeds & 0)
    streams = torch.full_like(steps, int(stream))
    return philox((blocks, steps, streams, torch.zeros_like(steps)), (seeds & _MASK, (seeds >> 32) & _MASK))


def random_words(
    seeds: Int[Tensor, " b"], step: int | Int[Tensor, " b"], stream: Stream, count: int, first: int = 0
) -> Int[Tensor, "b count"]:
    """`count` 32-bit words of each seed's stream at `step`, from element `first` on, as int64."""
    blocks = torch.arange(first // 4, -(-(first + count) // 4), dtype=torch.int64, device=seeds.device).view(1, -1)
    words = torch.stack(torch.broadcast_tensors(*word_blocks(seeds, step, stream, blocks)), dim=-1).flatten(1)
    return words[:, first % 4 : first % 4 + count]


def child_seeds(seed: int, indices: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
    """One seed per index (of an image, a position): two Philox words at the counter (index, CHILD)."""
    key = tuple(torch.full((), word & _MASK, device=indices.device) for word in (seed, seed >> 32))
    zero = torch.zeros_like(indices)
    low, high, _, _ = philox((indices & _MASK, (indices >> 32) & _MASK, zero + int(Stream.CHILD), zero), key)
    return low | (high << 32)


def normal_quantiles(device: torch.device | str = "cpu") -> Float[Tensor, "65536"]:
    """Mid-point quantiles of the standard normal distribution: entry i is the quantile of (i + 1/2) / 65536."""
    return _normal_quantiles(device)


# What torch.compiler.assume_constant_result does, without its import of torch._dynamo: 1.2 s at every start.
normal_quantiles._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _normal_quantiles(device: torch.device | str) -> Float[Tensor, "65536"]:
    upper = [NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(32768, 65536)]
    table = torch.tensor([-x for x in reversed(upper)] + upper, dtype=torch.float64, device="cpu").float()
    digest = hashlib.sha256(table.numpy().astype("<f4").tobytes()).hexdigest()
    if digest != _QUANTILES_SHA256:
        raise RuntimeError(
            f"the table of normal quantiles has digest {digest}, not {_QUANTILES_SHA256}; this platform's log differs, "
            "so run on another one"
        )
    return table.to(device)


def normal(
    seeds: Int[Tensor, " b"], step: int | Int[Tensor, " b"], shape: tuple[int, ...], stream: Stream
) -> Float[Tensor, "b ..."]:
    """Standard normal noise, float32 of shape (b, *shape); variance 1, |x| < 6.2."""
    words = random_words(seeds, step, stream, math.prod(shape))
    table = normal_quantiles(seeds.device)
    # Created on the device, because a CUDA graph cannot capture a copy from the host.
    root = torch.full((), math.sqrt(0.5), device=table.device)
    values = (table[words & 0xFFFF] + table[words >> 16]) * root
    return values.view(-1, *shape)


def uniform(
    seeds: Int[Tensor, " b"], step: int | Int[Tensor, " b"], shape: tuple[int, ...], stream: Stream
) -> Float[Tensor, "b ..."]:
    """Uniform noise in the open interval (0, 1), float32 of shape (b, *shape), on a grid of 2^-24."""
    words = random_words(seeds, step, stream, math.prod(shape))
    return (((words >> 9).float() + 0.5) * 2.0**-23).view(-1, *shape)


def gumbel(
    seeds: Int[Tensor, " b"], step: int | Int[Tensor, " b"], shape: tuple[int, ...], stream: Stream, first: int = 0
) -> Float[Tensor, "b ..."]:
    """Gumbel noise -log(-log u) (Eq. 8), float32 of shape (b, *shape), from element `first` on."""
    return gumbel_of(random_words(seeds, step, stream, math.prod(shape), first)).view(-1, *shape)


def gumbel_of(words: Int[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Gumbel noise from words.

    u is 1 - x, where x is uniform and keeps all 32 bits near 0, so that the upper tail is not truncated.
    """
    x = ((words.float() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)
    return -torch.log(-torch.log1p(-x))
