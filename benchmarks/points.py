"""What each choice for speed is worth by itself: the way it was done before and the way it is done now, in turn.

    python -m benchmarks.points [--threads 2] [--rounds 7]

Shapes are those of d12 (of d16 for the widths) at batch 4 in bf16, and of the ImageNet decoder at one image. Prints one
line of JSON per choice: the medians in milliseconds over rounds in which both sides alternate, and the median of their
ratios; above 1 the present way is faster. Both sides have the same result, or differ by rounding.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rdpm.models.generator import Generator, GeneratorConfig
from rdpm.models.sampler import guided_logits, modulations_of
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.models.transformer import Block, rotary_angles
from rdpm.pipeline.inference.precision import decoder_in, generator_in

BATCH, POSITIONS, K, T = 4, 256, 4096, 10
Sides = tuple[str, Callable[[], object], Callable[[], object]]
"""Name, before, now."""


def gradient(work: Callable[[], Tensor], module: nn.Module | None = None) -> Callable[[], None]:
    """A forward pass under autocast and its backward pass."""

    def run() -> None:
        if module is not None:
            module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            result = work()
        result.float().square().mean().backward()

    return run


def widths() -> Sides:
    """SwiGLU of d16, its hidden width not rounded and rounded to a multiple of 8."""
    x = torch.randn(BATCH, POSITIONS, 1024)
    blocks = [Block(1024, 16, hidden, "sdpa") for hidden in (2730, 2736)]
    before, now = (gradient(partial(block.feed_forward, x), block) for block in blocks)
    return "hidden width of SwiGLU, 2730 and 2736", before, now


def loss() -> Sides:
    """Cross-entropy with the codes in the second axis, and over flat rows."""
    logits = torch.randn(BATCH, 16, 16, K, requires_grad=True)
    codes = torch.randint(K, (BATCH, 16, 16))
    before = gradient(lambda: F.cross_entropy(logits.permute(0, 3, 1, 2), codes, reduction="none"))
    now = gradient(lambda: F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none"))
    return "cross-entropy on permuted and on flat logits", before, now


def modulations() -> Sides:
    """A linear layer per block, and one for all."""
    condition = torch.randn(BATCH, 768)
    layers = nn.ModuleList(nn.Linear(768, count * 768) for count in (*[6] * 12, 2))
    together = nn.Linear(768, 74 * 768)
    before = gradient(lambda: torch.cat([layer(F.silu(condition)) for layer in layers], 1), layers)
    return "modulations by 13 layers and by one", before, gradient(lambda: together(F.silu(condition)), together)


def residual() -> Sides:
    """A block whose residual stream is float32, and bfloat16."""
    block, angles = Block(768, 12, 2048, "sdpa"), rotary_angles(16, 64)
    given = torch.randn(BATCH, 6, 768), angles.cos(), angles.sin()
    x = torch.randn(BATCH, POSITIONS, 768)
    half = x.to(torch.bfloat16)
    before, now = gradient(lambda: block(x, *given), block), gradient(lambda: block(half, *given), block)
    return "residual stream of a block in float32 and bfloat16", before, now


def sampling() -> Iterator[Sides]:
    """Modulations of T steps in T products and in one; a forward with guidance of 0 and without."""
    generator = generator_in("bf16", Generator(GeneratorConfig(depth=12)))
    labels, steps = torch.zeros(BATCH, dtype=torch.int64), torch.ones(BATCH, dtype=torch.int64)
    rows = torch.randn(T * (BATCH + 1), 768)
    of = generator.transformer.modulations
    one = "modulations of 10 steps in 10 products and in one"
    yield one, lambda: [of(part) for part in rows.split(BATCH + 1)], lambda: of(rows)
    noise, mine, nothing = torch.randn(BATCH, 32, 16, 16), modulations_of(generator, labels)[0], torch.zeros(BATCH)
    yield (
        "a step with guidance of 0 computed and left out",
        lambda: guided_logits(generator, noise, noise, mine, steps, nothing),
        lambda: guided_logits(generator, noise, noise, mine, steps, None),
    )
    now = decoder_in("bf16", Tokenizer(TokenizerConfig()).decoder)
    before = copy.deepcopy(now).to(memory_format=torch.contiguous_format)
    latents = torch.randn(1, 32, 16, 16)
    yield "decoder in bf16, contiguous and channels-last", lambda: before(latents), lambda: now(latents)


def measured(before: Callable[[], object], now: Callable[[], object], rounds: int) -> dict[str, float]:
    """Milliseconds of both, in turn, after a call that does not count."""
    times: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for work, mine in zip((before, now), times, strict=True):
            start = time.perf_counter()
            work()
            mine.append(1000 * (time.perf_counter() - start))
    ratios = [first / second for first, second in zip(*(mine[1:] for mine in times), strict=True)]
    first, second = (statistics.median(mine[1:]) for mine in times)
    return {"before_ms": round(first, 1), "now_ms": round(second, 1), "ratio": round(statistics.median(ratios), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for made in (widths, loss, modulations, residual):
        name, before, now = made()
        print(json.dumps({"point": name, **measured(before, now, given.rounds)}), flush=True)
    with torch.no_grad():
        for name, before, now in sampling():
            print(json.dumps({"point": name, **measured(before, now, given.rounds)}), flush=True)


if __name__ == "__main__":
    main()
