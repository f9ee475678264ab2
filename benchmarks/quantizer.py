"""Our T-step quantizer against the residual quantizer of vector-quantize-pytorch, at the same K, d, T and input.

    python -m benchmarks.quantizer [--batch 16] [--repeats 5] [--no-step]

Prints throughput_ratio and peak_memory_ratio (ours over the peer's, forward and forward with backward) and
share_of_training_step: the quantizer's part of one step of the ImageNet tokenizer (plain torch, without discriminator
and LPIPS, which would only make the share smaller). Each side runs in a separate process, because peak memory is
measured per process. Needs `pip install vector-quantize-pytorch`.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import torch
from torch import Tensor

from rdpm.models.codebook import QuantizerConfig
from rdpm.models.noise import Stream, normal
from rdpm.models.quantizer import Quantizer, straight_through
from rdpm.models.schedule import Schedule
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig

K, D, T, GRID = 4096, 32, 10, 16


def device() -> str:
    """cuda where there is a GPU, else cpu."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def timed(work: Callable[[], object], repeats: int) -> float:
    """Median seconds per call, after one call that is not counted."""
    times = []
    for repeat in range(repeats + 1):
        start = time.perf_counter()
        work()
        if device() == "cuda":
            torch.cuda.synchronize()
        if repeat:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_bytes() -> int:
    """Peak memory so far: of the device on CUDA, of the process on a CPU."""
    if device() == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ours(latents: Tensor, backward: bool) -> Callable[[], object]:
    """Algorithm 1 with its noise, and with its losses and the straight-through estimator for a backward pass."""
    quantizer = Quantizer(QuantizerConfig(K, D), Schedule(num_steps=T)).to(latents.device)
    seeds = torch.arange(len(latents), device=latents.device)

    def noise_at(t: int) -> Tensor:
        return normal(seeds, t, (D, GRID, GRID), Stream.TOKENIZER)

    def run() -> None:
        if not backward:
            quantizer.quantize(latents, noise_at)
            return
        accumulated, commitment, codebook, _ = quantizer(latents, noise_at)
        (straight_through(latents, accumulated).sum() + commitment + codebook).backward()

    return run


def peer(latents: Tensor, backward: bool) -> Callable[[], object]:
    """ResidualVQ with T quantizers and otherwise its own defaults (moving-average codebooks, commitment loss)."""
    from vector_quantize_pytorch import ResidualVQ

    quantizer = ResidualVQ(dim=D, codebook_size=K, num_quantizers=T).to(latents.device)
    points = latents.detach().flatten(2).transpose(1, 2).contiguous().requires_grad_(backward)

    def run() -> None:
        if not backward:
            with torch.no_grad():
                quantizer.eval()(points)
            return
        quantized, _, losses = quantizer.train()(points)
        (quantized.sum() + losses.sum()).backward()

    return run


def measure(side: str, backward: bool, batch: int, repeats: int) -> dict[str, float]:
    """Measure images per second, and peak bytes beyond those before the first call. Runs in a separate process."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    latents = torch.randn(batch, D, GRID, GRID, device=device()).requires_grad_(backward)
    work = {"ours": ours, "peer": peer}[side](latents, backward)
    before = peak_bytes()
    seconds = timed(work, repeats)
    return {"images_per_s": batch / seconds, "peak_bytes": peak_bytes() - before}


def share_of_step(batch: int, repeats: int) -> float:
    """Seconds of the quantizer over seconds of a whole step of the ImageNet tokenizer without its discriminator."""
    torch.set_num_threads(2)
    model = Tokenizer(TokenizerConfig()).to(device())
    images = torch.rand(batch, 3, 256, 256, device=device()) * 2 - 1
    seeds = torch.arange(batch, device=device())

    def step() -> None:
        out = model(images, seeds)
        (out["reconstruction"].square().mean() + out["commitment"] + out["codebook"]).backward()

    latents = torch.randn(batch, D, GRID, GRID, device=device()).requires_grad_()
    return timed(ours(latents, True), repeats) / timed(step, repeats)


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-step", action="store_true", help="leave out the whole training step")
    options = parser.parse_args()

    result: dict[str, float | str] = {"device": device(), "batch": options.batch}
    for name, backward in (("forward", False), ("forward_backward", True)):
        measured = {}
        for side in ("ours", "peer"):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                measured[side] = process.submit(measure, side, backward, options.batch, options.repeats).result()
            memory = measured[side]["peak_bytes"] / 2**20
            print(f"{name} {side}: {measured[side]['images_per_s']:.1f} images/s, {memory:.0f} MiB")
        for key, ratio in (("images_per_s", "throughput_ratio"), ("peak_bytes", "peak_memory_ratio")):
            result[f"{ratio}_{name}"] = measured["ours"][key] / measured["peer"][key]
    result["throughput_ratio"] = result["throughput_ratio_forward_backward"]
    result["peak_memory_ratio"] = result["peak_memory_ratio_forward_backward"]
    if not options.no_step:
        result["share_of_training_step"] = share_of_step(1 if device() == "cpu" else options.batch, 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
