"""Maps that grow from step to step: the scales of scale-wise quantization (Tian et al. 2024, "VAR")."""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def sides(grid: int, num_steps: int) -> list[int]:
    """Codes per side at t = 1 ... T: 1, 2, 4 and so on, and `grid` for all steps after it is reached."""
    return [min(2**step, grid) for step in range(num_steps)]


def check_sides(grid: int, num_steps: int) -> None:
    """Raise ValueError unless the maps grow by whole blocks up to `grid`."""
    if grid & (grid - 1) or sides(grid, num_steps)[-1] != grid:
        raise ValueError(
            f"quantizer.growing needs a grid that is a power of 2 and that the maps reach; the grid is {grid}, and "
            f"they have {', '.join(map(str, sides(grid, num_steps)))} codes per side"
        )


def block_means(values: Float[Tensor, "b d h w"], side: int) -> Float[Tensor, "b d side side"]:
    """The mean of every block of a map that is cut into side x side blocks."""
    return F.avg_pool2d(values, values.shape[-1] // side)


def repeated(codes: Int[Tensor, "b side side"], grid: int) -> Int[Tensor, "b h w"]:
    """A small map of codes, each repeated over its block of a grid x grid map."""
    block = grid // codes.shape[-1]
    return codes.repeat_interleave(block, 1).repeat_interleave(block, 2)
