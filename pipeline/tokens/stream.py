"""Token stores as one endless, ordered stream of batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.order import ORDER_VERSION, rows_at
from pipeline.tokens.reader import Store


@dataclass(frozen=True)
class TokenBatch:
    """positions: places in the stream (b,). codes (b, T, h, w) uint16; seeds (b,) uint64; labels (b,) int32;
    latents (b, d, h, w) float16 where the stream was asked for them."""

    positions: np.ndarray
    codes: np.ndarray
    seeds: np.ndarray
    labels: np.ndarray
    latents: np.ndarray | None


class TokenStream:
    """Rows of several stores, rejects passed over, in the order of `pipeline.order`.

    Which rows a position means depends on the stores and the seed alone. Columns are held in memory.
    """

    def __init__(self, stores: Sequence[Store], *, seed: int, latents: bool) -> None:
        self.stores, self.seed = stores, seed
        self._codes = np.concatenate([store.read_all("codes") for store in stores])
        self._seeds = np.concatenate([store.read_all("noise_seed") for store in stores])
        self._labels = np.concatenate([store.read_all("label") for store in stores])
        self._latents = np.concatenate([store.read_all("latents") for store in stores]) if latents else None
        keep = np.ones(len(self._labels), dtype=bool)
        start = 0
        for store in stores:
            keep[[start + row for row in store.manifest.rejected]] = False
            start += len(store)
        self._valid = np.flatnonzero(keep)

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self._valid)

    @property
    def identity(self) -> dict:
        """What a checkpoint records, and must find again, to continue this stream."""
        return {"stores": [store.id for store in self.stores], "seed": self.seed, "order": ORDER_VERSION}

    def batch(self, positions: np.ndarray) -> TokenBatch:
        """The rows at these positions of the stream."""
        rows = self._valid[rows_at(positions, len(self), self.seed)]
        latents = None if self._latents is None else self._latents[rows]
        return TokenBatch(positions, self._codes[rows], self._seeds[rows], self._labels[rows], latents)
