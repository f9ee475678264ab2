"""The settings that both trainings share."""

from dataclasses import dataclass, field

from rdpm.models.fields import EXECUTION
from rdpm.pipeline.training.engine import EngineConfig
from rdpm.pipeline.training.optimizers import OptimizerConfig


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
    init: str = field(default="", metadata=EXECUTION)
    """Export of the same kind whose weights this training starts from: folder or URL; empty for new weights. The model
    must have the export's settings; other classes get new label embeddings, and images may have another size."""
    seed: int = 0
    """Seed of the initial weights, of the order and of every draw."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimizer and its learning rate."""
    engine: EngineConfig = field(default_factory=EngineConfig)
    """Precision, clipping and sharding."""
    ranks: int = field(default=1, metadata=EXECUTION)
    """Processes to start on this machine; under your own launcher, the number of processes that it starts."""
    max_restarts: int = field(default=2, metadata=EXECUTION)
    """How often the ranks that this job starts are started again after one of them died: from the last checkpoint, on
    as many of the ranks that are left as divide the batch. 0 for never. Your own launcher has its own option for it."""
    threads: int = field(default=1, metadata=EXECUTION)
    """CPU threads of each rank."""
    deterministic: bool = field(default=False, metadata=EXECUTION)
    """Use only operations that give the same bits in every run: on the same GPUs, ranks and versions, a training that
    was stopped and continued ends with the bits of one that was not. It costs time on a GPU and nothing on a CPU."""
    validate_every: int = field(default=1000, metadata=EXECUTION)
    """Steps between validations; a multiple of log_every."""
    log_every: int = field(default=50, metadata=EXECUTION)
    """Steps between lines of the log."""
    checkpoint_every: int = field(default=1000, metadata=EXECUTION)
    """Steps between checkpoints; a multiple of log_every, so that a continued run logs the same lines."""
    keep_checkpoints: int = field(default=2, metadata=EXECUTION)
    """How many of the newest checkpoints to keep. The one with the best validation score is kept too."""

    def __post_init__(self) -> None:
        for name in ("batch", "micro_batch", "ranks", "steps", "threads", "log_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use 1 or more")
        if self.max_restarts < 0:
            raise ValueError(f"max_restarts is {self.max_restarts}; use 0 or more")
        if self.checkpoint_every < 1 or self.checkpoint_every % self.log_every:
            raise ValueError(
                f"checkpoint_every is {self.checkpoint_every}; use a multiple of log_every {self.log_every}"
            )
        self.micro_batch_on(self.ranks)

    def micro_batch_on(self, ranks: int) -> int:
        """Images per forward pass of each of so many ranks. Raises ValueError when they do not divide the batch."""
        if self.batch % self.micro_batch:
            raise ValueError(f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch}; change one")
        if self.batch % (self.micro_batch * ranks):
            fitting = ranks_that_fit(self.batch // self.micro_batch, ranks)
            raise ValueError(
                f"batch {self.batch} is not a multiple of micro_batch {self.micro_batch} x {ranks} ranks; use "
                f"{fitting}, or another micro_batch, which changes what is learned"
            )
        return self.micro_batch


def ranks_that_fit(parts: int, ranks: int) -> str:
    """The numbers of ranks next to `ranks` among which `parts` can be shared equally, for a message."""
    fitting = [number for number in range(1, parts + 1) if parts % number == 0]
    nearest = [number for number in fitting if number < ranks][-1:] + [number for number in fitting if number > ranks][
        :1
    ]
    return f"ranks={' or ranks='.join(map(str, nearest))}"
