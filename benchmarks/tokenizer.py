"""A training step of the ImageNet tokenizer, against plain matrix products of the same shapes and precision.

    python -m benchmarks.tokenizer [--precision bf16] [--batch 1] [--rounds 3] [--threads 2] [--compile] [--parts]

The step is that of the training: encoder, quantizer, decoder, LPIPS (with random weights), discriminator, clipping and
both optimizers, on images in memory. It is plain torch, so it runs where DeepSpeed does not.

`gemm_share` is explained in `benchmarks/products.py`. All products count in the step's precision, also those that a
version of the code computes in another one, so that shares can be compared. What is no product counts as no operation,
but takes its time. `parts` has each part of the step alone, forward and backward: its seconds, its share of the sum of
all parts, and its own gemm_share. With `--compile`, what is compiled is what the training's `compile` compiles.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.products import Product, gemm_share, recorded, total_flops
from rdpm.models.losses import PerceptualLoss
from rdpm.models.quantizer import straight_through
from rdpm.pipeline.training.engine import EngineConfig
from rdpm.pipeline.training.meters import peak_flops
from rdpm.pipeline.training.optimizers import adam
from rdpm.pipeline.training.ranks import Ranks
from rdpm.pipeline.training.tokenizer.config import LossConfig, TrainTokenizerConfig
from rdpm.pipeline.training.tokenizer.step import TokenizerStep


class PlainEngine:
    """What a step needs of an engine, in plain torch."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, config: EngineConfig) -> None:
        self.module, self.optimizer, self.config = module, optimizer, config
        self.device = next(module.parameters()).device.type

    def __call__(self, *inputs: Any) -> Any:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.module(*inputs)

    def backward(self, loss: Tensor, where: str) -> None:
        """Backward pass. where: not used."""
        loss.backward()

    def update(self) -> None:
        """Clip, update, forget the gradients."""
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.module.parameters(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


class PlainStep(TokenizerStep):
    """The step of the training on plain engines."""

    def _engine(self, name: str, model: nn.Module, whole: tuple[type[nn.Module], ...] = ()) -> Any:
        model.to(self.ranks.device).train()
        return PlainEngine(model, adam(model, self.config.optimizer), self.config.engine)


class Bench:
    """The step, and each of its parts alone, on made images."""

    def __init__(self, config: TrainTokenizerConfig, device: torch.device) -> None:
        torch.manual_seed(0)
        self.step = PlainStep(config, Ranks(0, 1, device), 1)
        self.step.use_perceptual(PerceptualLoss(None))
        self.tokenizer: Any = self.step.engines["tokenizer"].module
        size = config.model.image_size
        images = torch.rand(config.batch, 3, size, size, device=device) * 2 - 1
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.picture = self.images.clone().requires_grad_()
        self.seeds = torch.arange(config.batch, device=device)
        latents = torch.randn(config.batch, *config.model.latent_shape, device=device)
        form = torch.channels_last if device.type == "cuda" else torch.contiguous_format  # as in the training
        self.latents = latents.contiguous(memory_format=form).requires_grad_()
        with self.step.autocast(), torch.no_grad():
            self.features = self.tokenizer.decoder.features(self.latents)

    def __call__(self) -> None:
        """One step with its update."""
        self.step(self.images, self.seeds, 0, "")
        self.step.end_iteration()
        self.update()

    def update(self) -> None:
        """Clipping and both optimizers."""
        for engine in self.step.engines.values():
            engine.update()

    def encoder(self) -> None:
        """Forward and backward pass of the encoder."""
        with self.step.autocast():
            latents = self.tokenizer.encoder(self.images)
        latents.backward(latents.detach())

    def quantizer(self) -> None:
        """The T steps, their losses and their gradients."""
        accumulated, *losses, _ = self.tokenizer.quantizer(self.latents, self.tokenizer.noise(self.seeds))
        (straight_through(self.latents, accumulated).sum() + losses[0] + losses[1]).backward()

    def decoder(self) -> None:
        """Forward and backward pass of the decoder."""
        with self.step.autocast():
            images = self.tokenizer.decoder(self.latents)
        images.backward(images.detach())

    def lpips(self) -> None:
        """Reconstruction loss and LPIPS, and their gradient at the reconstruction."""
        self.step._nll_gradient(self.images, self.picture, {})

    def critic(self) -> None:
        """The gradient of the adversarial loss with its weight, and the discriminator's own passes."""
        self.step._adversarial_gradient(self.picture, self.features, self.images, {})
        self.step._criticize(self.images, self.picture.detach(), "", {})

    @property
    def parts(self) -> dict[str, Callable[[], None]]:
        """The parts of the step, by name."""
        return {
            "encoder": self.encoder,
            "quantizer": self.quantizer,
            "decoder": self.decoder,
            "lpips": self.lpips,
            "critic": self.critic,
            "optimizer": self.update,
        }


def products_of(work: Callable[[], None], precision: str) -> Counter[Product]:
    """The products of one call, all in one precision."""
    with recorded() as found:
        work()
    products: Counter[Product] = Counter()
    for product, count in found.items():
        products[replace(product, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)] += count
    return products


def config_of(options: argparse.Namespace, compile: bool) -> TrainTokenizerConfig:
    """The ImageNet tokenizer's training, one micro-batch per step. LPIPS is added by `Bench`, with random weights."""
    return TrainTokenizerConfig(
        images="",
        out="",
        batch=options.batch,
        micro_batch=options.batch,
        loss=LossConfig(perceptual="none"),
        engine=EngineConfig(precision=options.precision),
        compile=compile,
    )


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The whole step and, if asked for, its parts."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.batch = options.batch or (16 if device.type == "cuda" else 1)
    torch.set_num_threads(options.threads)
    eager = Bench(config_of(options, compile=False), device)
    products = products_of(eager, options.precision)
    parts = {name: products_of(part, options.precision) for name, part in eager.parts.items()} if options.parts else {}
    bench = Bench(config_of(options, compile=True), device) if options.compile else eager
    bench()
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "threads": options.threads,
        "precision": options.precision,
        "batch": options.batch,
        "compile": options.compile,
        **gemm_share(bench, products, device, options.rounds),
    }
    result["images_per_s"] = options.batch / result["seconds"]
    peak = peak_flops(device)
    if peak:
        result["mfu"] = total_flops(products) / result["seconds"] / peak
        result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    if options.parts:
        measured = {name: gemm_share(bench.parts[name], parts[name], device, options.rounds) for name in parts}
        total = sum(each["seconds"] for each in measured.values())
        result["parts"] = {
            name: {"seconds": each["seconds"], "share": each["seconds"] / total, "gemm_share": each["gemm_share"]}
            for name, each in measured.items()
        }
    return result


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--batch", type=int, help="images per step; 16 on a GPU and 1 on a CPU if it is not given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--parts", action="store_true", help="measure each part alone, too")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
