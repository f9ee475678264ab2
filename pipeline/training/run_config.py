"""The settings that both trainings share."""

from dataclasses import dataclass, field

from rdpm.models.fields import EXECUTION
from rdpm.pipeline.training.engine import EngineConfig
from rdpm.pipeline.training.optimizers import OptimizerConfig
from rdpm.pipeline.training.ranks import accumulation_steps


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """How long, how fast and on what a training runs, and what it writes."""

    out: str = field(metadata=EXECUTION)
    """Folder that gets the export, the log and the checkpoints."""
    batch: int
    """Images per optimizer step, over all ranks."""
    micro_batch: int
    """Images per forward pass of a rank; batch must be a multiple of micro_batch times ranks."""
    steps: int
    """Optimizer steps."""
    seed: int = 0
    """Seed of the initial weights, of the order and of every draw."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer and its learning rate."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Precision, clipping and sharding."""
    ranks: int = field(default=1, metadata=EXECUTION)
    """Processes to start on this machine; under your own launcher, the number of processes that it starts."""
    threads: int = field(default=1, metadata=EXECUTION)
    """CPU threads of each rank."""
    validate_every: int = field(default=1000, metadata=EXECUTION)
    """Steps between validations; a multiple of log_every."""
    log_every: int = field(default=50, metadata=EXECUTION)
    """Steps between lines of the log."""
    checkpoint_every: int = field(default=1000, metadata=EXECUTION)
    """Steps between checkpoints; a multiple of log_every, so that a continued run logs the same lines."""
    keep_checkpoints: int = field(default=1, metadata=EXECUTION)
    """How many of the newest checkpoints to keep. The one with the best validation score is kept too."""

    def __post_init__(self) -> None:
        for name in ("steps", "threads", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use 1 or more")
        if self.checkpoint_every < 1 or self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every is {self.checkpoint_every}; use a multiple of log_every {self.log_every}"
            )
        accumulation_steps(self.batch, self.micro_batch, self.ranks)
