"""Images for the tokenizer's training: global batch k is a pure function of k, whoever reads it."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.noise import Stream, child_seeds, uniform
from models.tokenizer import from_pixels
from pipeline import files
from pipeline.images.decode import Reject, random_view
from pipeline.images.sources import Source
from pipeline.order import batch_positions, rows_at


class ImageStream(Dataset):
    """Item k is this rank's slice of micro-batch k: images (b, C, S, S) in [-1, 1] and noise seeds (b,) int64."""

    def __init__(
        self,
        source: Source,
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

    def __getitem__(self, batch_number: int) -> tuple[Tensor, Tensor] | Reject:
        positions = batch_positions(batch_number, self.batch, self.rank, self.ranks)
        rows = rows_at(positions, len(self.source), self.seed)
        seeds = child_seeds(self.seed, torch.from_numpy(positions))
        draws = uniform(seeds, 0, (3,), Stream.AUGMENTATION).numpy()
        views = []
        for row, draw in zip(rows, draws, strict=True):
            url = self.source.url(row)
            try:
                views.append(random_view(files.read_bytes(url), self.image_size, self.channels, draw, self.flips))
            except Reject as reason:
                return Reject(f"image {url} cannot be used: {reason}; mend or remove it")
        pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)
        return from_pixels(pixels), seeds

    def batches(self, start: int, stop: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Micro-batches start ... stop - 1, decoded ahead by `workers` processes (0: in this one)."""
        for item in DataLoader(self, batch_size=None, sampler=range(start, stop), num_workers=workers):
            if isinstance(item, Reject):
                raise item  # here, since a worker would wrap it in its traceback
            yield item
