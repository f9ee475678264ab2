"""The settings of the generator's training."""

from dataclasses import dataclass, field
from typing import Literal

from rdpm.models.fields import EXECUTION
from rdpm.models.generator import GeneratorConfig
from rdpm.models.methods import learns_codes
from rdpm.pipeline.stream.token_stream import StreamConfig
from rdpm.pipeline.training.run_config import RunConfig, ranks_that_fit


@dataclass(frozen=True, kw_only=True)
class TrainGeneratorConfig(RunConfig):
    """Train a generator on one or more token stores of one tokenizer."""

    stores: tuple[str, ...] = field(metadata=EXECUTION)
    """Token stores to train on: folders or URLs."""
    tokenizer: str = field(metadata=EXECUTION)
    """Export of the stores' tokenizer: folder or URL."""
    batch: int = 1024
    """Images per optimizer step, over all ranks."""
    micro_batch: int = field(default=64, metadata=EXECUTION)
    """Most images per forward pass of a rank. The ranks must divide the batch; a rank takes its share of it in equal
    parts of at most this size."""
    steps: int = 312_500
    """Optimizer steps; the default is 250 epochs of ImageNet."""
    model: GeneratorConfig = field(default_factory=GeneratorConfig)
    """The generator. Its token space must be the stores'."""
    stream: StreamConfig = field(default_factory=StreamConfig, metadata=EXECUTION)
    """How rows come from the stores to the training step."""
    weights: tuple[int, ...] = ()
    """One integer per store: of every sum(weights) rows of the stream, exactly weights[i] are of store i. If empty, the
    rows of all stores are shuffled as one set."""
    noise: Literal["stored", "fresh"] = "stored"
    """stored: train on the stores' codes and noise seeds. fresh: whenever a row comes, draw new noise and quantize its
    stored latents with that."""
    steps_per_image: int = 1
    """How many different steps t to train each image at, per optimizer step."""
    label_dropout: float = 0.1
    """Probability that an image gets the empty label, which guidance needs."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the weights; the average is exported."""
    compile: bool = field(default=False, metadata=EXECUTION)
    """Compile the model with torch.compile: into one graph, or into one of a block at engine.zero_stage 3."""
    validation: tuple[str, ...] = field(default=(), metadata=EXECUTION)
    """Token stores of held-out images: folders or URLs; empty for none."""
    validation_images: int = field(default=4096, metadata=EXECUTION)
    """Held-out images per validation; a multiple of micro_batch."""
    preview_every: int = field(default=0, metadata=EXECUTION)
    """Steps between pictures of samples by the averaged weights; 0 for none."""
    wandb: str = field(default="", metadata=EXECUTION)
    """A Weights & Biases project to log to as well; empty for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stores:
            raise ValueError("stores is empty; name at least one token store")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout is {self.label_dropout}; use a probability from 0 to below 1")
        if not 1 <= self.steps_per_image <= self.model.num_steps:
            raise ValueError(
                f"steps_per_image is {self.steps_per_image}; use 1 to model.num_steps, {self.model.num_steps}"
            )
        if self.model.method != "rdpm" and self.steps_per_image != 1:
            raise ValueError(f"steps_per_image is {self.steps_per_image}; method {self.model.method} needs 1")
        if self.noise == "stored" and not learns_codes(self.model):
            raise ValueError(
                f"noise is stored, and method {self.model.method} learns latents; use noise=fresh, and stores with them"
            )
        if self.validation and self.validate_every % self.log_every:
            raise ValueError(f"validate_every is {self.validate_every}; use a multiple of log_every {self.log_every}")
        if self.validation and self.validation_images % self.micro_batch:
            raise ValueError(
                f"validation_images is {self.validation_images}; use a multiple of micro_batch {self.micro_batch}"
            )
        if self.preview_every < 0 or self.preview_every % self.log_every:
            raise ValueError(
                f"preview_every is {self.preview_every}; use a multiple of log_every {self.log_every}, or 0"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; use a share from 0 to below 1")

    def micro_batch_on(self, ranks: int) -> int:
        """The largest equal parts of a rank's share of the batch that are not larger than micro_batch."""
        share, rest = divmod(self.batch, ranks)
        if rest or not share:
            raise ValueError(
                f"batch {self.batch} cannot be shared equally by {ranks} ranks; use {ranks_that_fit(self.batch, ranks)}"
            )
        return max(size for size in range(1, min(self.micro_batch, share) + 1) if share % size == 0)
