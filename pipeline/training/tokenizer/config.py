"""The settings of the tokenizer's training."""

from dataclasses import dataclass, field

from rdpm.models.discriminator import DiscriminatorConfig
from rdpm.models.fields import EXECUTION
from rdpm.models.losses import SMALLEST_PERCEPTUAL
from rdpm.models.tokenizer import TokenizerConfig
from rdpm.pipeline.training.engine import EngineConfig
from rdpm.pipeline.training.optimizers import OptimizerConfig
from rdpm.pipeline.training.run_config import RunConfig


@dataclass(frozen=True)
class LossConfig:
    """The losses of the tokenizer's training and their weights (Eq. 5)."""

    reconstruction: float = 1.0
    """Weight of the squared error (Eq. 3)."""
    quantization: float = 0.25
    """delta, weight of the quantization loss (Eq. 4)."""
    codebook: float = 4.0
    """Weight of the term of Eq. 4 that moves the codes; the commitment term has weight 1."""
    perceptual: str = "torchvision"
    """VGG16 for LPIPS: torchvision (which downloads it), the path of vgg16-397923af.pth, or none."""
    adversarial: float = 0.75
    """eta, weight of the adversarial loss; 0 trains without a discriminator."""
    adaptive: bool = True
    """Multiply eta by VQGAN's adaptive weight, computed at the decoder's last layer."""
    discriminator_start: int = 0
    """Step at which the adversarial loss starts."""


@dataclass(frozen=True, kw_only=True)
class TrainTokenizerConfig(RunConfig):
    """Train a tokenizer on labelled images."""

    images: str = field(metadata=EXECUTION)
    """Images to train on: path, URL or pattern of class folders, tar files or Parquet files."""
    batch: int = 128
    """Images per optimizer step, over all ranks."""
    micro_batch: int = 16
    """Images per forward pass of a rank; batch must be a multiple of micro_batch times ranks. It changes the result:
    the discriminator's BatchNorm sees one micro-batch at a time."""
    steps: int = 100_090
    """Optimizer steps; the default is 10 epochs of ImageNet."""
    model: TokenizerConfig = field(default_factory=TokenizerConfig)
    """The tokenizer."""
    encoder: str = field(default="", metadata=EXECUTION)
    """Export of a tokenizer whose encoder stays as it is, so that only codebook and decoder are trained; they start as
    that tokenizer's where their shapes are the same. Empty to train everything."""
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)
    """The discriminator of the adversarial loss."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Weights of the losses."""
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(lr=4e-5, betas=(0.5, 0.9), weight_decay=0.0, warmup_steps=5005)
    )
    """Adam and its learning rate, for tokenizer and discriminator."""
    engine: EngineConfig = field(default_factory=lambda: EngineConfig(precision="bf16", clip=1.0))
    """Precision, clipping and sharding of tokenizer and discriminator. The paper names no precision and no clipping of
    its tokenizer; docs/decisions.md has what was measured."""
    compile: bool = field(default=False, metadata=EXECUTION)
    """Compile encoder, decoder, discriminator and LPIPS with torch.compile."""
    flips: bool = True
    """Mirror each image with probability 1/2."""
    workers: int = field(default=4, metadata=EXECUTION)
    """Processes per rank that decode images in advance; 0 decodes in the rank itself."""
    validation: str = field(default="", metadata=EXECUTION)
    """Held-out images to reconstruct during the training, as for images; empty for none."""
    validation_images: int = field(default=1000, metadata=EXECUTION)
    """How many held-out images to use, evenly spread over all."""
    validation_extractor: str = field(default="none", metadata=EXECUTION)
    """Features for the rFID of held-out images: inception, the path of a TorchScript or torch.export file, or none."""
    inception_weights: str = field(default="", metadata=EXECUTION)
    """Path of Inception's weights; if empty, torch-fidelity downloads them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; use 0 or more")
        if self.validation and self.validate_every % self.log_every:
            raise ValueError(f"validate_every is {self.validate_every}; use a multiple of log_every {self.log_every}")
        if self.encoder and self.init:
            raise ValueError(
                "encoder and init are both given; use init to train all of a tokenizer on, or encoder alone"
            )
        if self.encoder and self.engine.zero_stage:
            raise ValueError(
                f"engine.zero_stage is {self.engine.zero_stage}, which shards what is trained, and the encoder is not; "
                "use engine.zero_stage 0"
            )
        size = self.model.image_size
        if self.loss.adversarial and size < self.discriminator.smallest:
            raise ValueError(
                f"model.image_size is {size}, and the discriminator needs {self.discriminator.smallest} or more; use "
                "loss.adversarial=0, or fewer discriminator.num_layers"
            )
        if self.loss.perceptual != "none" and size < SMALLEST_PERCEPTUAL:
            raise ValueError(
                f"model.image_size is {size}, and LPIPS needs {SMALLEST_PERCEPTUAL} or more; use loss.perceptual=none"
            )
        if self.compile and self.engine.zero_stage == 3:
            raise ValueError(
                "compile is true at engine.zero_stage 3, whose hooks break the graphs; use engine.zero_stage 0, 1 or "
                "2, or compile=false"
            )
