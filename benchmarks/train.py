"""A generator's training step that is fed by the stream, against the same step on tensors in memory.

    python -m benchmarks.train [--depth 2] [--batch 64] [--steps 30] [--precision bf16] [--threads 2] [--compile]
                               [--attention sdpa] [--activation-checkpointing]

Prints step_ratio (fed step over step in memory), data_wait (share of the fed steps' time), noise_share (drawing noise
and rebuilding z'_{t-1}, over the step), images_per_s and, on a known GPU, mfu. It is plain torch with the training's
optimizer (AdamW and the average of the weights) and bfloat16 autocast, so it runs where DeepSpeed does not. Codes are
random, at the paper's shape: 10 maps of 16 x 16 codes out of 4,096.

Shares of the speed of plain products (`benchmarks.products` says of which), and both speeds in 10^12 operations per
second: gemm_share of the whole step with its optimizer, gradient_share of the step without it, forward_share of a
forward pass without gradients, with weights that are held in the precision, as the sampler holds them.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.products import Product, gemm_share, recorded
from benchmarks.untrained import token_identity
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.flops import generator_training_flops
from rdpm.models.generator import Generator, GeneratorConfig, code_loss
from rdpm.models.quantizer import Quantizer
from rdpm.models.schedule import Schedule
from rdpm.pipeline.stores.reader import Store
from rdpm.pipeline.stores.writer import publish, start_store, write_shard
from rdpm.pipeline.stream.token_stream import StreamConfig, TokenBatch, TokenStream
from rdpm.pipeline.training.generator.draws import Draws, TrainingBatch, training_batch
from rdpm.pipeline.training.meters import peak_flops
from rdpm.pipeline.training.optimizers import OptimizerConfig, adamw
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.tokens import token_arrays

ROWS, SHARD = 16_384, 4_096


def random_store(folder: str) -> Store:
    """A published store of random codes at the paper's shape."""
    arrays = token_arrays(10, (32, 16, 16), with_accumulated=False, with_latents=False)
    plan = Plan("tokens", ROWS, SHARD, 256, arrays, token_identity(1000))
    start_store(folder, plan)
    draw = np.random.default_rng(0)
    for shard in range(plan.num_shards):
        columns = {
            "codes": draw.integers(0, 4096, (SHARD, 10, 16, 16)).astype(np.uint16),
            "noise_seed": draw.integers(0, 2**63, SHARD).astype(np.uint64),
            "label": draw.integers(0, 1000, SHARD).astype(np.int32),
        }
        write_shard(folder, plan, shard, columns, {"key": [f"{shard}-{row}" for row in range(SHARD)]})
    return Store(folder, publish(folder, plan))


class Step:
    """One update of a generator."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        torch.manual_seed(0)
        space = GeneratorConfig(
            depth=options.depth,
            attention=options.attention,
            activation_checkpointing=options.activation_checkpointing,
        )
        self.device, self.model = device, Generator(space).to(device)
        torch.nn.init.normal_(self.model.head.weight, std=0.02)
        self.bf16 = options.precision == "bf16"
        self.optimizer = adamw(self.model, OptimizerConfig(), ema_decay=0.9999)
        self.quantizer = Quantizer(QuantizerConfig(4096, 32), Schedule()).to(device)
        self.draws = Draws("stored", 1, 0.1, space.num_classes, 0)

    def inputs(self, batch: TokenBatch) -> TrainingBatch:
        """Noise and accumulated latents of a batch."""
        return training_batch(self.quantizer, batch, self.draws, self.device)

    def autocast(self) -> torch.autocast:
        """The precision of the products."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def gradient(self, inputs: TrainingBatch) -> None:
        """Forward and backward pass."""
        *given, codes = inputs.arguments
        self.optimizer.zero_grad()
        with self.autocast():
            logits = self.model(*given)
        code_loss(logits, codes).mean().backward()

    def update(self, inputs: TrainingBatch) -> None:
        """Forward, backward, optimizer and average."""
        self.gradient(inputs)
        self.optimizer.step()

    def forward(self, inputs: TrainingBatch, compile: bool) -> Callable[[], object]:
        """A forward pass without gradients, as a sampler runs it, of a copy of the model."""
        held = copy.deepcopy(self.model).to(torch.bfloat16 if self.bf16 else torch.float32)
        if compile:  # a copy does not keep the compiled call
            held.compile()

        @torch.no_grad()
        def run() -> None:
            with self.autocast():
                held(*inputs.arguments[:-1])

        return run


def shares(step: Step, inputs: TrainingBatch, compile: bool) -> dict[str, float]:
    """The speed of the step and of its parts over that of their products, and both speeds. Compiles the model."""
    works = {
        "gemm": lambda: step.update(inputs),
        "gradient": lambda: step.gradient(inputs),
        "forward": step.forward(inputs, compile=False),
    }
    products: dict[str, Counter[Product]] = {}
    for name, work in works.items():
        with recorded() as products[name]:
            work()
    if compile:
        step.model.compile()
        works["forward"] = step.forward(inputs, compile=True)
    result = {}
    for name, work in works.items():
        found = gemm_share(work, products[name], step.device)
        result[f"{name}_share"] = found["gemm_share"]
        result[f"{name}_tflops"], result[f"{name}_product_tflops"] = found["tflops"], found["product_tflops"]
    return result


def seconds_each(work: Callable[[], object], count: int, device: torch.device, warmup: int = 3) -> list[float]:
    """Seconds of each of `count` calls, after a few calls that do not count."""
    times = []
    for call in range(count + warmup):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if call >= warmup:
            times.append(time.perf_counter() - start)
    return times


def measure(options: argparse.Namespace, folder: str) -> dict[str, float | str]:
    """Measure fed steps and steps in memory in turn, so that a noisy machine disturbs both."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    step = Step(options, device)
    cache = StreamConfig(cache=f"{folder}/cache", workers=1)
    stream = TokenStream([random_store(f"{folder}/store")], seed=0, latents=False, config=cache)
    rounds, part = 5, max(1, options.steps // 5)
    total = rounds * (part + 3)
    batches: Iterator[TokenBatch] = stream.batches(0, total + 1, batch=options.batch, micro_batch=options.batch)
    resident = next(batches)
    found = shares(step, step.inputs(resident), options.compile)
    waited, fed, alone = stream.wait_seconds, [], []
    for _ in range(rounds):
        fed += seconds_each(lambda: step.update(step.inputs(next(batches))), part, device)
        alone += seconds_each(lambda: step.update(step.inputs(resident)), part, device)
    batch = stream.batch(np.arange(options.batch))
    inputs = seconds_each(lambda: step.inputs(batch), part, device)
    median = statistics.median(fed)
    result: dict[str, float | str] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "depth": options.depth,
        "batch": options.batch,
        "attention": options.attention,
        "precision": options.precision,
        "threads": torch.get_num_threads(),
        **found,
        "step_ratio": median / statistics.median(alone),
        "data_wait": (stream.wait_seconds - waited) / (total * statistics.mean(fed)),
        "noise_share": statistics.median(inputs) / median,
        "images_per_s": options.batch / median,
    }
    peak = peak_flops(device)
    if peak:
        flops = generator_training_flops(step.model.config)
        result["mfu"] = flops * options.batch / statistics.median(alone) / peak
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return result


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--attention", default="sdpa", help="sdpa, math or flash_attn")
    parser.add_argument("--activation-checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 for PyTorch's own choice")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        print(json.dumps(measure(options, folder)))


if __name__ == "__main__":
    main()
