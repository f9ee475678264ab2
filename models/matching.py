"""Matched latents: samples get the means and the covariance that latents of real images have.

Codes of a step are drawn independently at all positions, and errors of a step shrink what later ones draw. So z'_T of
samples varies too little along the directions in which real images vary most. The optimal transport between two normal
distributions of covariances C (drawn) and R (real) is linear (Dowson and Landau 1982):

    A = C^(-1/2) (C^(1/2) R C^(1/2))^(1/2) C^(-1/2)

One A serves all classes, and each class is moved to its real mean. This is ours, not the paper's: docs/decisions.md.
Large maps are matched in box means, because what samples lack is smooth.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rdpm.models.precision import full_precision


def boxes(maps: Float[Tensor, "b d h w"], side: int) -> Float[Tensor, "b n"]:
    """Sums over side x side equal boxes of each map, over the root of a box's positions; n = d side^2."""
    size = maps.shape[-1] // side
    return maps.unflatten(3, (side, size)).unflatten(2, (side, size)).sum((3, 5)).flatten(1) / size


class Matching(nn.Module):
    """x -> x A + offset of the class, on the box means of z'_T. What varies inside a box stays."""

    matrix: Tensor
    offsets: Tensor

    def __init__(self, matrix: Float[Tensor, "n n"], offsets: Float[Tensor, "classes n"]) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("offsets", offsets)

    @full_precision()
    def forward(self, accumulated: Float[Tensor, "b d h w"], offsets: Float[Tensor, "b n"]) -> Float[Tensor, "b d h w"]:
        """z'_T to matched z'_T. offsets: rows of `self.offsets`, or a mix of them."""
        d, grid = accumulated.shape[1], accumulated.shape[-1]
        side = math.isqrt(self.matrix.shape[0] // d)
        rows, size = boxes(accumulated, side), grid // side
        change = (rows @ self.matrix + offsets - rows).unflatten(1, (d, side, side))
        return accumulated + change.repeat_interleave(size, 2).repeat_interleave(size, 3) / size


def matching_of(
    drawn: Float[Tensor, "n f"],
    drawn_labels: Int[Tensor, " n"],
    real: Float[Tensor, "m f"],
    real_labels: Int[Tensor, " m"],
    num_classes: int,
) -> Matching:
    """The matching of box means of samples to those of real images, computed in float64.

    Covariances are within classes and pooled. A class without rows in both sets is moved like the average class. Raises
    ValueError unless both sets hold at least twice as many rows as a row has values: else no covariance can be told.
    """
    for name, rows in (("samples", drawn), ("rows of the store", real)):
        if len(rows) < 2 * rows.shape[1]:
            raise ValueError(
                f"there are {len(rows)} {name} for {rows.shape[1]} values each; raise per_class, or lower boxes"
            )
    from_means, from_covariance = _moments(drawn.double(), drawn_labels, num_classes)
    to_means, to_covariance = _moments(real.double(), real_labels, num_classes)
    root, back = _power(from_covariance, 0.5), _power(from_covariance, -0.5)
    matrix = back @ _power(root @ to_covariance @ root, 0.5) @ back
    offsets = to_means - from_means @ matrix
    return Matching(matrix.float(), torch.where(offsets.isnan(), offsets.nanmean(0), offsets).float())


def _moments(rows: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The mean of each class (NaN where there is no row), and the pooled unbiased covariance within classes."""
    counts = torch.bincount(labels, minlength=num_classes).unsqueeze(1)
    means = torch.zeros(num_classes, rows.shape[1], dtype=rows.dtype).index_add_(0, labels, rows) / counts
    centred = rows - means[labels]
    return means, centred.T @ centred / (len(rows) - int((counts > 0).sum()))


def _power(covariance: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric positive matrix. Values below a millionth of the largest count as that."""
    values, directions = torch.linalg.eigh(covariance)
    return (directions * values.clamp(min=1e-6 * values[-1].item()) ** exponent) @ directions.T
