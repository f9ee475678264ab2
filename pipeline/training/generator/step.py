"""One step of the generator's training, and the loss of held-out rows."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from rdpm.models.generator import GeneratorConfig
from rdpm.models.methods import new_generator
from rdpm.models.quantizer import Quantizer
from rdpm.models.transformer import Block
from rdpm.pipeline.stream.token_stream import TokenBatch, TokenStream
from rdpm.pipeline.training.engine import Engine
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.draws import Draws, batch_maker
from rdpm.pipeline.training.meters import StepLossMeter
from rdpm.pipeline.training.ranks import Ranks

PREFIX = "generator."  # of the generator's weights in GeneratorLoss


class GeneratorLoss(nn.Module):
    """The loss of each image (RDPM's is Eq. 7), as one module for an engine."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.generator = new_generator(config)

    def forward(self, *arguments: Tensor) -> Tensor:
        return self.generator.loss(*arguments)


def compile_loss(loss: GeneratorLoss, zero_stage: int) -> tuple[type[nn.Module], ...]:
    """Compile the loss into one graph without breaks; under ZeRO-3, the blocks, which share one graph.

    Only `forward` is compiled: DeepSpeed hangs its hooks on calls of modules, and in a graph they would break it. Under
    ZeRO-3 every layer has such hooks, unless the block is gathered as a whole. Returns the classes to gather so.
    """
    split = zero_stage == 3
    for module in loss.generator.transformer.blocks if split else [loss]:
        module.forward = torch.compile(module.forward, fullgraph=True)  # type: ignore[method-assign]
    return (Block,) if split else ()


class GeneratorStep:
    """Runs batches of streams through the engine, to train or to validate."""

    def __init__(
        self, config: TrainGeneratorConfig, ranks: Ranks, engine: Engine, quantizer: Quantizer, micro_batch: int
    ) -> None:
        self.config, self.ranks, self.engine, self.quantizer = config, ranks, engine, quantizer
        self.micro_batch = micro_batch
        self.batch_of = batch_maker(config.model.method)
        self.meter = StepLossMeter(config.model.num_steps, ranks.device)
        self.draws = Draws(
            config.noise, config.steps_per_image, config.label_dropout, config.model.num_classes, config.seed
        )

    def train(self, batch: TokenBatch, step: int) -> None:
        """Forward and backward pass of one micro-batch of the 0-based step."""
        inputs = self.batch_of(self.quantizer, batch, self.draws, self.ranks.device)
        losses = self.engine(*inputs.arguments)
        where = f"step {step + 1}, positions {batch.positions[0]} to {batch.positions[-1]} of the stream"
        self.engine.backward(losses.mean(), where)
        self.meter.add(inputs.steps, losses)

    def held_out_loss(self, stream: TokenStream) -> float:
        """Mean loss of the first `validation_images` of a stream. Labels are not dropped; draws are always the same."""
        config, draws = self.config, replace(self.draws, label_dropout=0.0)
        meter = StepLossMeter(config.model.num_steps, self.ranks.device)
        together = self.micro_batch * self.ranks.count
        groups = config.validation_images // together or 1
        for batch in stream.batches(
            0,
            groups,
            batch=together,
            micro_batch=self.micro_batch,
            rank=self.ranks.rank,
            ranks=self.ranks.count,
        ):
            inputs = self.batch_of(self.quantizer, batch, draws, self.ranks.device)
            meter.add(inputs.steps, self.engine.evaluate(*inputs.arguments))
        return meter.take()["loss"]
