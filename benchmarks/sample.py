"""The sampler against the speed of plain products and of its forward passes, and the sampling job against the sampler.

    python -m benchmarks.sample [--depth 12] [--batch 4] [--precision fp32] [--attention sdpa] [--compile]
                                [--threads 2] [--rounds 3] [--limits] [--images 40]
    python -m benchmarks.sample --sizes   # one GPU: d12, d16 and d20 at several batch sizes, plain torch

Prints one line of JSON. `gemm_share`: floating-point operations per second over those of plain products of the same
shapes and precisions (`benchmarks.products`), of the whole sampler, of its T steps (forward passes, guidance, noise,
choice of codes and sums) and of the decoder; `tflops` and `product_tflops` are both sides of it. `job_ratio`: images
per second of `rdpm sample` between its first and last committed shard, over those of the sampler with as many threads
in this process; the start of Ray and the writing of the .npz are separate, as `startup_s` and `files_s`.
`sampler_ratio`: seconds of 2 T bare forward passes of the generator and one decoding, over those of the sampler with
guidance and Gumbel noise. The ramp is constant, because with a linear ramp the first step has no guidance. `shares`:
where the sampler's time beyond the forward passes goes. Weights are random, because no result depends on them.
`--limits` prints the first three alone.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.products import gemm_share, recorded
from benchmarks.untrained import export_generator, export_tokenizer
from rdpm.models.choice import choose_codes
from rdpm.models.generator import Generator, GeneratorConfig
from rdpm.models.noise import Stream, gumbel, normal
from rdpm.models.sampler import SamplerConfig, modulations_of, sample, step_settings
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.pipeline.exports.weights import load_generator, load_tokenizer
from rdpm.pipeline.inference.batches import full_precision
from rdpm.pipeline.inference.precision import Precision
from rdpm.pipeline.inference.rdpm import RDPM

SAMPLER = SamplerConfig(guidance=2.0, ramp="constant", temperature=1.0)
SIZES = {"d12": (12, (8, 32, 64)), "d16": (16, (8, 32, 64)), "d20": (20, (8, 32))}


def timed(work: Callable[[], object], repeats: int = 3) -> float:
    """Median seconds per call, after one call that is not counted."""
    return timed_together([work], repeats)[0]


def timed_together(works: list[Callable[[], object]], repeats: int) -> list[float]:
    """`timed` for several functions, called in turn so that slow moments of the machine affect all of them."""
    times: list[list[float]] = [[] for _ in works]
    for repeat in range(repeats + 1):
        for work, seconds in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if repeat:
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def export(folder: str, depth: int) -> None:
    """An untrained tokenizer of the paper's shape and a generator of its codes."""
    torch.manual_seed(0)
    card = export_tokenizer(f"{folder}/tokenizer", TokenizerConfig(), 1000)
    export_generator(f"{folder}/generator", GeneratorConfig(depth=depth), card)


@dataclass(frozen=True)
class Sampler:
    """The two models, and what draws with them."""

    model: RDPM
    """Compiled or not."""
    plain: RDPM
    """The same, not compiled: its products can be recorded."""
    compile: bool
    """Whether `model` is compiled."""

    @classmethod
    def of(
        cls, generator: Generator, tokenizer: Tokenizer, batch: int, precision: Precision, compile: bool
    ) -> "Sampler":
        """Both from models in memory."""
        model = RDPM(generator, tokenizer, batch=batch, precision=precision, compile=compile)
        return cls(model, RDPM(generator, tokenizer, batch=batch, precision=precision), compile)

    def draw(self, model: RDPM) -> None:
        """One batch of images."""
        count = np.arange(model.batch)
        model.draw(count % 1000, count, [SAMPLER] * model.batch)

    @torch.no_grad()
    @full_precision()
    def steps(self, model: RDPM) -> None:
        """The codes of one batch."""
        numbers = torch.arange(model.batch, device=model.device)
        book = model.tokenizer.quantizer.codebook
        sample(model.generator, book, numbers % 1000, numbers, SAMPLER, run=model.run_steps)

    @torch.no_grad()
    @full_precision()
    def decode(self, model: RDPM) -> None:
        """The pixels of one batch."""
        model.codec.pixels(torch.zeros(model.batch, *model.tokenizer.config.latent_shape, device=model.device))


def limits(sampler: Sampler, rounds: int) -> dict[str, dict[str, float]]:
    """gemm_share, tflops, product_tflops and seconds, each of the whole sampler, of its T steps and of the decoder."""
    works: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "sampler": (lambda: sampler.draw(sampler.model), lambda: sampler.draw(sampler.plain)),
        "steps": (lambda: sampler.steps(sampler.model), lambda: sampler.steps(sampler.plain)),
        "decoder": (lambda: sampler.decode(sampler.model), lambda: sampler.decode(sampler.plain)),
    }
    found: dict[str, dict[str, float]] = {}
    for name, (work, plain) in works.items():
        with recorded() as products:
            plain()
        for key, value in gemm_share(work, products, sampler.model.device, rounds).items():
            found.setdefault(key, {})[name] = value
    return found


@torch.no_grad()
@full_precision()
def parts(sampler: Sampler, repeats: int) -> dict[str, float]:
    """Seconds per batch of the sampler, of 2 T forward passes and a decoding, and of each other part of the T steps."""
    model = sampler.model
    batch, device, T = model.batch, model.device, model.generator.config.num_steps
    latent = torch.randn(batch, *model.tokenizer.config.latent_shape, device=device)
    both = latent.repeat(2, 1, 1, 1)
    classes = torch.zeros(2 * batch, dtype=torch.long, device=device)
    modulations = modulations_of(model.generator, classes)[:, :-1]
    forward = model.generator.from_modulations
    if sampler.compile:
        forward = torch.compile(forward, fullgraph=True, dynamic=False)

    def bare() -> None:
        for of_step in modulations:
            forward(both, both, of_step)
        model.codec.pixels(latent)

    logits = model.generator.from_modulations(latent, latent, modulations[0, :batch])
    seeds = torch.arange(batch, device=device)
    settings = step_settings([SAMPLER] * batch, T, device)[0]
    grid, codebook = tuple(logits.shape[1:]), model.tokenizer.quantizer.codebook
    codes, steps = logits.argmax(-1), torch.ones_like(seeds)
    loop, forwards = timed_together([lambda: sampler.draw(model), bare], repeats)
    return {
        "loop": loop,
        "bare": forwards,
        "modulations": timed(lambda: modulations_of(model.generator, classes[:batch])),
        "noise": T * timed(lambda: normal(seeds, steps, tuple(latent.shape[1:]), Stream.SAMPLER)),
        "gumbel, in one tensor": T * timed(lambda: gumbel(seeds, steps, grid, Stream.GUMBEL)),
        "choose, with gumbel": T * timed(lambda: choose_codes(logits, settings, seeds, steps)),
        "accumulate": T * timed(lambda: codebook.phi(codebook.accumulate_step(latent, codes))),
    }


def job(folder: str, options: argparse.Namespace, shard: int) -> dict[str, float]:
    """images/s of the job between its first and last commit, seconds before the first shard, and after the last."""
    from rdpm.pipeline.cluster.session import Resources  # with Ray, which --sizes does without
    from rdpm.pipeline.sampling.plan import SampleConfig
    from rdpm.pipeline.sampling.stage import sample_set

    resources = Resources(cpus=4, object_store_mb=256, actors=1)
    config = SampleConfig(
        f"{folder}/generator", f"{folder}/tokenizer", f"{folder}/samples", SAMPLER,
        labels=tuple(range(options.images)), per_class=1, shard_rows=shard, batch=options.batch,
        precision=options.precision, attention=options.attention, compile=options.compile, threads=options.threads,
        resources=resources,
    )  # fmt: skip
    start = time.time()
    sample_set(config)
    end = time.time()
    commits = sorted(path.stat().st_mtime for path in Path(folder, "samples", "commits").glob("*.json"))
    rate = (options.images - shard) / (commits[-1] - commits[0])
    first = commits[0] - shard / rate
    return {"images_per_s": rate, "startup_s": first - start, "files_s": end - commits[-1]}


def sizes() -> dict[str, dict[str, dict[str, float]]]:
    """images_per_s, gemm_share and peak_gib in bf16 at each depth and batch size, eager and compiled."""
    found: dict[str, dict[str, dict[str, float]]] = {"images_per_s": {}, "gemm_share": {}, "peak_gib": {}}
    for name, (depth, batches) in SIZES.items():
        for compile in (False, True):
            row = f"{name} {'compiled' if compile else 'eager'}"
            for batch in batches:
                torch.cuda.reset_peak_memory_stats()
                models = Generator(GeneratorConfig(depth=depth)).eval(), Tokenizer(TokenizerConfig()).eval()
                sampler = Sampler.of(*models, batch, "bf16", compile)
                with recorded() as products:
                    sampler.draw(sampler.plain)
                result = gemm_share(lambda s=sampler: s.draw(s.model), products, sampler.model.device)
                found["images_per_s"].setdefault(row, {})[str(batch)] = batch / result["seconds"]
                found["gemm_share"].setdefault(row, {})[str(batch)] = result["gemm_share"]
                found["peak_gib"].setdefault(row, {})[str(batch)] = torch.cuda.max_memory_allocated() / 2**30
    return found


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--attention", default="sdpa", help="sdpa, math or flash_attn")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limits", action="store_true", help="only the shares of the speed of plain products")
    parser.add_argument("--sizes", action="store_true", help="depths and batch sizes on one GPU")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    if options.sizes:
        print(json.dumps({"device": device, **sizes()}))
        return
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        export(folder, options.depth)
        models = load_generator(f"{folder}/generator", options.attention)[0], load_tokenizer(f"{folder}/tokenizer")[0]
        sampler = Sampler.of(*models, options.batch, options.precision, options.compile)
        result = {"device": device, **vars(options), **limits(sampler, options.rounds)}
        result["images_per_s"] = options.batch / result["seconds"]["sampler"]
        if torch.cuda.is_available():
            result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        if not options.limits:
            seconds = parts(sampler, options.rounds)
            result["sampler_ratio"] = seconds["bare"] / seconds["loop"]
            result["images_per_s"] = options.batch / seconds["loop"]
            others = [name for name in seconds if name not in ("loop", "bare")]
            result["shares"] = {name: seconds[name] / seconds["loop"] for name in others}
            timings = job(folder, options, shard=2 * options.batch)
            result["job_ratio"] = timings["images_per_s"] / result["images_per_s"]
            result |= {name: timings[name] for name in ("startup_s", "files_s")}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
