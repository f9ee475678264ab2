"""Matched latents: samples get the means and the covariance that latents of real images have.

Codes of a step are drawn independently at all positions, and errors of a step shrink what later ones draw. So z'_T of
samples varies too little along the directions in which real images vary most. The optimal transport between two normal
distributions of covariances C (drawn) and R (real) is linear (Dowson and Landau 1982):

    A = C^(-1/2) (C^(1/2) R C^(1/2))^(1/2) C^(-1/2)

Each class is moved to its real mean. One A serves all classes, or each class has its own, for a covariance between the
pooled one and that of the class. This is ours, not the paper's: docs/decisions.md. Large maps are matched in box means,
because what samples lack is smooth.
"""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from rdpm.models.precision import full_precision


def boxes(maps: Float[Tensor, "b d h w"], side: int) -> Float[Tensor, "b n"]:
    """Sums over side x side equal boxes of each map, over the root of a box's positions; n = d side^2."""
    size = maps.shape[-1] // side
    return maps.unflatten(3, (side, size)).unflatten(2, (side, size)).sum((3, 5)).flatten(1) / size


class Matching(nn.Module):
    """x -> x A + offset, of the class, on the box means of z'_T. What varies inside a box stays."""

    matrix: Tensor
    offsets: Tensor

    def __init__(
        self,
        matrix: Float[Tensor, "n n"] | Float[Tensor, "classes n n"],
        offsets: Float[Tensor, "classes n"],
    ) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("offsets", offsets)

    @property
    def table(self) -> Float[Tensor, "classes m"]:
        """What differs between classes, a row per class: the offset and, if each has its own, the matrix."""
        return self.offsets if self.matrix.ndim == 2 else torch.cat([self.offsets, self.matrix.flatten(1)], dim=1)

    @full_precision()
    def forward(self, accumulated: Float[Tensor, "b d h w"], rows: Float[Tensor, "b m"]) -> Float[Tensor, "b d h w"]:
        """z'_T to matched z'_T. rows: of `table`, one per image, or mixes of them."""
        d, grid, n = accumulated.shape[1], accumulated.shape[-1], self.offsets.shape[1]
        side = math.isqrt(n // d)
        means, size = boxes(accumulated, side), grid // side
        offsets, own = rows[:, :n], rows[:, n:]
        moved = torch.einsum("bi,bij->bj", means, own.unflatten(1, (n, n))) if own.shape[1] else means @ self.matrix
        change = (moved + offsets - means).unflatten(1, (d, side, side))
        return accumulated + change.repeat_interleave(size, 2).repeat_interleave(size, 3) / size


def matching_of(
    drawn: Float[Tensor, "n f"],
    drawn_labels: Int[Tensor, " n"],
    real: Float[Tensor, "m f"],
    real_labels: Int[Tensor, " m"],
    num_classes: int,
    own_share: float = 0.0,
) -> Matching:
    """The matching of box means of samples to those of real images, computed in float64.

    The covariance of a class is own_share of its own and the rest of the pooled one within classes; 0 gives one matrix
    for all. A class that lacks rows in either set is moved like the average class. Raises ValueError unless both sets
    hold at least twice as many rows as a row has values, not counting one row per class, which its mean takes: else no
    covariance can be told.
    """
    for name, rows, labels in (("samples", drawn, drawn_labels), ("rows of the store", real, real_labels)):
        classes = len(labels.unique())
        if len(rows) - classes < 2 * rows.shape[1]:
            raise ValueError(
                f"there are {len(rows)} {name} of {classes} classes for {rows.shape[1]} values each; raise per_class, "
                "or lower boxes"
            )
    drawn, real = drawn.double(), real.double()
    from_means, from_pooled = _moments(drawn, drawn_labels, num_classes)
    to_means, to_pooled = _moments(real, real_labels, num_classes)
    if own_share:
        from_own = _own(drawn, drawn_labels, from_means, from_pooled, own_share)
        to_own = _own(real, real_labels, to_means, to_pooled, own_share)
        matrix = torch.stack([_transport(*pair) for pair in zip(from_own, to_own, strict=True)])
    else:
        matrix = _transport(from_pooled, to_pooled)
    offsets = to_means - torch.einsum("cf,cfg->cg", from_means, matrix.expand(num_classes, -1, -1))
    return Matching(matrix.float(), torch.where(offsets.isnan(), offsets.nanmean(0), offsets).float())


def _moments(rows: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """The mean of each class (NaN where there is no row), and the pooled unbiased covariance within classes."""
    counts = torch.bincount(labels, minlength=num_classes).unsqueeze(1)
    means = torch.zeros(num_classes, rows.shape[1], dtype=rows.dtype).index_add_(0, labels, rows) / counts
    centred = rows - means[labels]
    return means, centred.T @ centred / (len(rows) - int((counts > 0).sum()))


def _own(rows: Tensor, labels: Tensor, means: Tensor, pooled: Tensor, share: float) -> Iterator[Tensor]:
    """The covariance of each class, shrunk to the pooled one, which stands for a class of fewer than two rows."""
    for label, mean in enumerate(means):
        centred = rows[labels == label] - mean
        if len(centred) < 2:
            yield pooled
        else:
            yield torch.lerp(pooled, centred.T @ centred / (len(centred) - 1), share)


def _transport(drawn: Tensor, real: Tensor) -> Tensor:
    """The symmetric matrix that takes one covariance to the other."""
    root, back = _power(drawn, 0.5), _power(drawn, -0.5)
    return back @ _power(root @ real @ root, 0.5) @ back


def _power(covariance: Tensor, exponent: float) -> Tensor:
    """A power of a symmetric positive matrix. Values below a millionth of the largest count as that."""
    values, directions = torch.linalg.eigh(covariance)
    return (directions * values.clamp(min=1e-6 * values[-1].item()) ** exponent) @ directions.T
