"""Images for the training of the tokenizer: global batch k is a pure function of k, on any rank and worker."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rdpm.models.noise import Stream, child_seeds, uniform
from rdpm.pipeline.foundation.permutation import batch_positions, rows_at
from rdpm.pipeline.images.decode import Reject, random_view
from rdpm.pipeline.images.listing import Listing

_MOST_NEIGHBOURS = 100


@dataclass(frozen=True)
class ImageBatch:
    """b images of a stream."""

    pixels: Tensor
    """(b, C, S, S) uint8, channels-last in memory."""
    seeds: Tensor
    """Noise seeds, (b,) int64."""
    position: int
    """Position of the first image in the stream."""
    rejects: dict[str, str]
    """Reason by key for each image that could not be used; the next usable image of the source replaced it."""
    enlarged: dict[str, str]
    """Size by key for each image that is smaller than the crop."""

    def pin_memory(self) -> "ImageBatch":
        """The batch in pinned memory, which a GPU reads while the CPU goes on. The loader calls it."""
        return replace(self, pixels=self.pixels.pin_memory(), seeds=self.seeds.pin_memory())


class ImageStream(Dataset):
    """Item k is this rank's part of batch k."""

    def __init__(
        self,
        source: Listing,
        *,
        image_size: int,
        channels: int,
        flips: bool,
        batch: int,
        seed: int,
        rank: int,
        ranks: int,
    ) -> None:
        self.source, self.image_size, self.channels, self.flips = source, image_size, channels, flips
        self.batch, self.seed, self.rank, self.ranks = batch, seed, rank, ranks

    def __getitem__(self, batch_number: int) -> ImageBatch | Reject:
        positions = batch_positions(batch_number, self.batch, self.rank, self.ranks)
        rows = rows_at(positions, len(self.source), self.seed)
        seeds = child_seeds(self.seed, torch.from_numpy(positions))
        draws = uniform(seeds, 0, (3,), Stream.AUGMENTATION).numpy()
        rejects: dict[str, str] = {}
        enlarged: dict[str, str] = {}
        try:
            views = [self._view(int(row), draw, rejects, enlarged) for row, draw in zip(rows, draws, strict=True)]
        except Reject as nothing_usable:
            return nothing_usable  # `batches` raises it, because a worker would wrap it in its traceback
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
        return ImageBatch(pixels, seeds, int(positions[0]), rejects, enlarged)

    def _view(self, row: int, draw: np.ndarray, rejects: dict[str, str], enlarged: dict[str, str]) -> np.ndarray:
        """The drawn view of a row, or of the next usable row. Adds to `rejects` and `enlarged`."""
        for step in range(_MOST_NEIGHBOURS):
            index = (row + step) % len(self.source)
            try:
                view = random_view(self.source.read(index), self.image_size, self.channels, draw, self.flips)
                if min(view.width, view.height) < self.image_size:
                    enlarged[self.source.key(index)] = f"{view.width} x {view.height}"
                return view.pixels[0]
            except Reject as reason:
                rejects[self.source.key(index)] = str(reason)
        raise Reject(
            f"{_MOST_NEIGHBOURS} successive images of {self.source.url!r} cannot be used, the last one because: "
            f"{rejects[self.source.key(index)]}; repair or remove them"
        )

    def batches(self, start: int, stop: int, workers: int) -> Iterator[ImageBatch]:
        """Batches start ... stop - 1, decoded in advance by `workers` processes; with 0, in this process.

        They are in pinned memory where there is a GPU to copy them to.
        """
        pinned = torch.cuda.is_available()
        for item in DataLoader(
            self, batch_size=None, sampler=range(start, stop), num_workers=workers, pin_memory=pinned
        ):
            if isinstance(item, Reject):
                raise item
            yield item
