"""The sampling job against the bare sampler loop, and that loop against the forward passes of its models.

    python -m benchmarks.sample [--depth 12] [--images 40] [--batch 4] [--precision fp32] [--compile]
    python -m benchmarks.sample --sizes   # one GPU: d12, d16 and d20 at several batch sizes, plain torch

Prints one line of JSON. `job_ratio`: images per second of `rdpm sample` between its first and last committed shard,
over those of the loop on one thread in this process; the start of Ray and the writing of the .npz are separate, as
`startup_s` and `files_s`. `sampler_ratio`: seconds of 2 T bare forward passes of the generator and one decoding, over
those of the loop with guidance and Gumbel noise. The ramp is constant, because with a linear ramp the first step has no
guidance. `shares`: where the loop's time beyond the forward passes goes. Weights are random, because no result depends
on them.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.untrained import export_generator, export_tokenizer
from rdpm.models.generator import Generator, GeneratorConfig
from rdpm.models.noise import Stream, gumbel, normal
from rdpm.models.sampler import SamplerConfig, choose_codes, step_settings
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
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


@torch.no_grad()
def parts(model: RDPM, compile: bool, repeats: int) -> dict[str, float]:
    """Seconds per batch of the loop, of 2 T forward passes and a decoding, and of each other part of the T steps."""
    batch, device, T = model.batch, model.device, model.generator.config.num_steps
    labels, seeds = np.arange(batch) % 1000, np.arange(batch)
    latent = torch.randn(batch, *model.tokenizer.config.latent_shape, device=device)
    both, classes = latent.repeat(2, 1, 1, 1), torch.zeros(2 * batch, dtype=torch.long, device=device)
    autocast = model.codec.autocast()
    forward = torch.compile(model.generator, fullgraph=True, dynamic=False) if compile else model.generator

    def bare() -> None:
        with autocast:
            for t in range(1, T + 1):
                forward(both, classes, torch.full_like(classes, t), both)
            model.tokenizer.decode(latent)

    with autocast:
        logits = model.generator(latent, classes[:batch], classes[:batch] + 1, latent)
    on_device = torch.from_numpy(seeds).to(device)
    settings = step_settings([SAMPLER] * batch, T, device)[0]
    grid, codebook = tuple(logits.shape[1:]), model.tokenizer.quantizer.codebook
    codes = logits.argmax(-1)
    steps = torch.ones_like(on_device)
    loop, forwards = timed_together([lambda: model.draw(labels, seeds, [SAMPLER] * batch), bare], repeats)
    return {
        "loop": loop,
        "bare": forwards,
        "noise": T * timed(lambda: normal(on_device, steps, tuple(latent.shape[1:]), Stream.SAMPLER)),
        "gumbel": T * timed(lambda: gumbel(on_device, steps, grid, Stream.GUMBEL)),
        "choose, with gumbel": T * timed(lambda: choose_codes(logits, settings, on_device, steps)),
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
        precision=options.precision, compile=options.compile, resources=resources,
    )  # fmt: skip
    start = time.time()
    sample_set(config)
    end = time.time()
    commits = sorted(path.stat().st_mtime for path in Path(folder, "samples", "commits").glob("*.json"))
    rate = (options.images - shard) / (commits[-1] - commits[0])
    first = commits[0] - shard / rate
    return {"images_per_s": rate, "startup_s": first - start, "files_s": end - commits[-1]}


def sizes() -> dict[str, dict[str, float]]:
    """Images per second of the loop at each depth and batch size, eager and compiled, in bf16."""
    rates: dict[str, dict[str, float]] = {}
    for name, (depth, batches) in SIZES.items():
        for compile in (False, True):
            for batch in batches:
                generator, tokenizer = Generator(GeneratorConfig(depth=depth)), Tokenizer(TokenizerConfig())
                model = RDPM(generator.eval(), tokenizer.eval(), batch=batch, precision="bf16", compile=compile)
                seconds = timed(lambda m=model, b=batch: m.draw(np.arange(b), np.arange(b), [SAMPLER] * b))
                rates.setdefault(f"{name} {'compiled' if compile else 'eager'}", {})[str(batch)] = batch / seconds
    return rates


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--sizes", action="store_true", help="depths and batch sizes on one GPU")
    options = parser.parse_args()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    if options.sizes:
        print(json.dumps({"device": device, "images_per_s": sizes()}))
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        export(folder, options.depth)
        model = RDPM.from_pretrained(folder, batch=options.batch, precision=options.precision, compile=options.compile)
        seconds = parts(model, options.compile, repeats=3)
        timings = job(folder, options, shard=2 * options.batch)
    loop = options.batch / seconds["loop"]
    result = {
        "device": device,
        **vars(options),
        "sampler_ratio": seconds["bare"] / seconds["loop"],
        "job_ratio": timings["images_per_s"] / loop,
        "loop_images_per_s": loop,
        "shares": {name: seconds[name] / seconds["loop"] for name in seconds if name not in ("loop", "bare")},
        **{name: timings[name] for name in ("startup_s", "files_s")},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
