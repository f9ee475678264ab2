"""Positions of a stream to blocks and rows.

A block is some shards side by side. `WholeOrder` shuffles all rows together. `WindowOrder` shuffles the shards, and
then the rows of a few shards at a time. `mix_at` interleaves several streams.
"""

import functools
from collections.abc import Sequence

import numpy as np

from rdpm.pipeline.foundation.permutation import order_seed, permute, rows_at


def mix_at(positions: np.ndarray, weights: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The stream of each position, among several streams, and the position within that stream.

    The positions are cut into blocks of sum(weights), and exactly weights[i] positions of every block belong to stream
    i.
    """
    block = sum(weights)
    slots = permute(positions % block, block, seed, positions // block)
    ends = np.cumsum(weights)
    which = np.searchsorted(ends, slots, side="right")
    share = np.asarray(weights, dtype=np.int64)[which]
    return which, positions // block * share + slots - (ends[which] - share)


class WholeOrder:
    """A shuffle of all rows of all stores together. Block g is all of store g.

    sizes: for each store, the number of rows of each shard.
    """

    def __init__(self, sizes: Sequence[np.ndarray], seed: int) -> None:
        self.seed = seed
        self._ends = np.cumsum([shards.sum() for shards in sizes])
        self._shards = np.cumsum([0, *(len(shards) for shards in sizes)])

    def __len__(self) -> int:
        """Rows per epoch."""
        return int(self._ends[-1])

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The block of each position and the row in that block, int64 each."""
        rows = rows_at(positions, len(self), self.seed)
        if len(self._ends) == 1:
            return np.zeros_like(rows), rows
        blocks = np.searchsorted(self._ends, rows, side="right")
        return blocks, rows - np.append(0, self._ends)[blocks]

    def shards(self, block: int) -> np.ndarray:
        """Numbers of the shards of a block, counted through all stores."""
        return np.arange(self._shards[block], self._shards[block + 1])

    def near(self, block: int) -> range:
        """The blocks to keep open while this one is used."""
        return range(len(self._ends))


class WindowOrder:
    """A shuffle of the shards, then of the rows of `window` shards at a time, so only a few shards are open at once.

    Every row occurs exactly once per epoch. Block e W + w is window w (of W) of epoch e. sizes: rows of each shard.
    """

    def __init__(self, sizes: np.ndarray, window: int, seed: int) -> None:
        self.sizes, self.window, self.seed = sizes, window, seed
        self._rows, self._windows = int(sizes.sum()), -(-len(sizes) // window)
        self._epoch = functools.lru_cache(maxsize=2)(self._plan)

    def __reduce__(self):
        return WindowOrder, (self.sizes, self.window, self.seed)

    def __len__(self) -> int:
        """Rows per epoch."""
        return self._rows

    def _plan(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in the order of an epoch, and the number of rows before each window and after the last one."""
        shards = permute(np.arange(len(self.sizes)), len(self.sizes), self.seed, np.full(len(self.sizes), epoch))
        before = np.append(0, np.cumsum(self.sizes[shards]))
        edges = np.minimum(np.arange(self._windows + 1) * self.window, len(shards))
        return shards, before[edges]

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The block of each position and the row in that block, int64 each."""
        epochs, places = positions // self._rows, positions % self._rows
        blocks, starts, sizes = (np.empty_like(positions) for _ in range(3))
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            edges = self._epoch(int(epoch))[1]
            windows = np.searchsorted(edges, places[in_epoch], side="right") - 1
            blocks[in_epoch] = epoch * self._windows + windows
            starts[in_epoch], sizes[in_epoch] = edges[windows], edges[windows + 1] - edges[windows]
        rows = places - starts
        inner = order_seed(self.seed, 0)
        for block in np.unique(blocks):
            in_block = blocks == block
            rows[in_block] = permute(rows[in_block], int(sizes[in_block][0]), inner, blocks[in_block])
        return blocks, rows

    def shards(self, block: int) -> np.ndarray:
        """Numbers of the shards of a block."""
        epoch, window = divmod(block, self._windows)
        return self._epoch(epoch)[0][window * self.window : (window + 1) * self.window]

    def near(self, block: int) -> range:
        """The blocks to keep open while this one is used: itself and the next one."""
        return range(block, block + 2)
