"""Which models and batches suit some pictures, a machine and a time. docs/your-images.md has the rules as tables."""

from dataclasses import dataclass

from rdpm.models.discriminator import DiscriminatorConfig
from rdpm.pipeline.projects.machine import Machine
from rdpm.pipeline.projects.pictures import Pictures

_SIZES = (16, 32, 64, 128, 256)
_FEWEST_VALUES, _FEWEST_MATCHED = 4, 100  # pictures per matched value, and in all, below which none is matched
_LEAST_SHARE = 0.2  # of its own covariance, below which a class gets none
HOLD_OUT, MOST_HELD_OUT, FEWEST_HELD_OUT = 0.1, 2000, 4


@dataclass(frozen=True)
class _Space:
    """The token space of images up to some size, and the tokenizer's shape on a CPU and on a GPU."""

    largest: int
    codebook_size: int
    code_dim: int
    multipliers: tuple[int, ...]
    gpu_channels: int


_SPACES = (
    _Space(24, 128, 6, (1, 3, 4), 64),
    _Space(48, 256, 8, (1, 3, 4), 64),
    _Space(96, 512, 8, (1, 2, 3, 4), 64),
    _Space(192, 1024, 16, (1, 2, 2, 4), 96),
    _Space(1 << 30, 4096, 32, (1, 1, 2, 2, 4), 128),
)


@dataclass(frozen=True)
class Choice:
    """What `rdpm init` chooses, except the lengths of the trainings."""

    size: int
    """Pixels per side."""
    channels: int
    """1 for grey, 3 for colour."""
    codebook_size: int
    """K."""
    code_dim: int
    """d."""
    multipliers: tuple[int, ...]
    """Of the autoencoder's channels, per resolution."""
    width: int
    """The autoencoder's base channels."""
    depth: int
    """The generator's depth."""
    ranks: int
    """Ranks of both trainings."""
    tokenizer_batch: int
    """Pictures per step of the tokenizer's training."""
    tokenizer_micro_batch: int
    """Pictures per forward pass of a rank of the tokenizer's training."""
    generator_batch: int
    """Pictures per step of the generator's training."""
    generator_micro_batch: int
    """Most pictures per forward pass of a rank of the generator's training."""
    precision: str
    """bf16 where the machine computes fast in it, else fp32."""
    boxes: int
    """Boxes per side in which latents are matched; 0 where there are too few pictures for that."""

    @property
    def grid(self) -> int:
        """Codes per side."""
        return self.size // 2 ** (len(self.multipliers) - 1)

    @property
    def discriminates(self) -> bool:
        """Whether the pictures are large enough for a discriminator."""
        return self.size >= DiscriminatorConfig().smallest

    @property
    def tokenizer_lr(self) -> float:
        """Peak learning rate of the tokenizer: that of the demos for 16 channels, lower for wider ones."""
        return 2e-3 * 16 / self.width

    @property
    def generator_lr(self) -> float:
        """Peak learning rate of the generator: that of the demos for depth 3, lower for deeper ones."""
        return 3e-3 * 3 / max(3, self.depth)


def choose(pictures: Pictures, machine: Machine, size: int, hours: float, training: int) -> Choice:
    """The choice by the rules. size: pixels per side, 0 to choose it. training: pictures that are not held out.

    Raises ValueError for a size that no tokenizer of ours has.
    """
    size = size or _size(pictures, machine, hours)
    space = next(space for space in _SPACES if size <= space.largest)
    factor = 2 ** (len(space.multipliers) - 1)
    if size < 8 or size % factor:
        near = max(8, factor * round(size / factor))
        raise ValueError(f"size is {size}; use a multiple of {factor} pixels from 8 on, for example {near}")
    ranks = machine.gpus or _power_of_two(min(machine.cores, 16))
    grid = size // factor
    batch = 64 * ranks if machine.gpus else max(64, 8 * ranks)
    tokenizer_batch = 16 * ranks if machine.gpus else max(32, 4 * ranks)
    return Choice(
        size=size,
        channels=1 if pictures.grey else 3,
        codebook_size=space.codebook_size,
        code_dim=space.code_dim,
        multipliers=space.multipliers,
        width=space.gpu_channels if machine.gpus else 16,
        depth=_depth(machine, hours),
        ranks=ranks,
        tokenizer_batch=tokenizer_batch,
        tokenizer_micro_batch=tokenizer_batch // ranks,
        generator_batch=batch,
        generator_micro_batch=min(64, batch // ranks),
        precision="bf16" if machine.bf16 else "fp32",
        boxes=_boxes(grid, space.code_dim, training),
    )


def _boxes(grid: int, code_dim: int, training: int) -> int:
    """The most boxes per side whose covariance so many pictures tell, up to 4; 0 where they tell none."""
    if training < _FEWEST_MATCHED:
        return 0
    sides = [side for side in (1, 2, 3, 4) if grid % side == 0]
    return max((side for side in sides if training >= _FEWEST_VALUES * side**2 * code_dim), default=0)


def own_share(rows: int, values: int) -> float:
    """How far the covariance of a class is told by so many pictures of that many values; 0 where that is little.

    It is the rule of a shrunk estimate, rows / (rows + values), and gives the digits' share of .6.
    """
    share = round(rows / (rows + values), 2)
    return share if share >= _LEAST_SHARE else 0.0


def _size(pictures: Pictures, machine: Machine, hours: float) -> int:
    """The largest size that nine in ten pictures have, and that the machine can train in the time."""
    if machine.gpus:
        most = 64 if hours * machine.gpus < 4 else 128 if hours * machine.gpus < 24 else 256
    else:
        most = 32 if hours < 6 else 64
    return max([size for size in _SIZES if size <= min(most, pictures.short_sides[0])], default=_SIZES[0])


def _depth(machine: Machine, hours: float) -> int:
    if machine.gpus:
        return 6 if hours * machine.gpus < 4 else 8 if hours * machine.gpus < 24 else 12
    return 3 if hours < 3 else 4 if hours < 12 else 6


def _power_of_two(most: int) -> int:
    return 1 << (most.bit_length() - 1)


def held_out(pictures: Pictures) -> dict[str, int]:
    """Pictures of each class to hold out: one in ten, at least one of a class of two, about MOST_HELD_OUT in all.

    At least FEWEST_HELD_OUT in all, because metrics compare a picture with its nearest neighbours.
    """
    share = min(HOLD_OUT, MOST_HELD_OUT / pictures.total)
    held = {name: max(1, round(share * count)) if count > 1 else 0 for name, count in pictures.counts.items()}
    largest = max(pictures.counts, key=pictures.counts.__getitem__)
    held[largest] += max(0, FEWEST_HELD_OUT - sum(held.values()))
    return held
