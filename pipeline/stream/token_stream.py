"""Token stores as one endless, ordered stream of batches."""

import contextlib
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from rdpm.pipeline.foundation.permutation import ORDER_VERSION, batch_positions, order_seed
from rdpm.pipeline.stores.reader import Store
from rdpm.pipeline.stream.blocks import Blocks, Shards
from rdpm.pipeline.stream.cache import Cache, default_folder
from rdpm.pipeline.stream.order import WholeOrder, WindowOrder, mix_at

_AHEAD = 8  # micro-batches that are gathered in advance
_RUN = 65_536  # positions whose rows are computed at once


@dataclass(frozen=True)
class StreamConfig:
    """How the rows of stores come to a training step.

    Rows that fit the cache together are shuffled as a whole; otherwise they are shuffled in windows of some shards.
    """

    cache: str = ""
    """Folder for decoded rows on the node's own disk, shared by its ranks. It must be this user's alone. Empty for
    $XDG_CACHE_HOME/rdpm or, without that variable, a folder under the system's temporary one."""
    cache_gib: float = 64.0
    """Size limit of the cache in GiB."""
    window: int = 64
    """Shards per window, where the rows do not fit the cache; two windows must fit."""
    workers: int = 1
    """Threads that gather batches before the training step needs them; 0 gathers on demand."""

    def __post_init__(self) -> None:
        if self.cache_gib <= 0:
            raise ValueError(f"cache_gib is {self.cache_gib}; use a size above 0")
        if self.window < 1:
            raise ValueError(f"window is {self.window}; use 1 shard or more")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}; use 0 or more threads")


@dataclass(frozen=True)
class TokenBatch:
    """b rows of a stream. The arrays are in pinned memory where there is a GPU to copy them to."""

    positions: np.ndarray
    """Positions of the rows in the stream, (b,) int64."""
    labels: np.ndarray
    """(b,) int32."""
    codes: np.ndarray | None = None
    """(b, T, h, w) uint16; None in a stream of latents."""
    seeds: np.ndarray | None = None
    """Noise seeds, (b,) uint64; None in a stream of latents."""
    latents: np.ndarray | None = None
    """(b, d, h, w) float16; None in a stream of codes."""


_FIELDS = {"label": "labels", "codes": "codes", "noise_seed": "seeds", "latents": "latents"}


class TokenStream:
    """Rows of several stores, without rejected ones, in the order of `rdpm.pipeline.foundation.permutation`.

    The row at a position depends on the stores, the weights, the seed and on whether all rows fit the size limit of the
    cache. It does not depend on ranks, on workers or on what the cache holds. weights: of every sum(weights) positions,
    exactly weights[i] belong to store i, and every store has its own epochs; without weights the stores are one set.
    latents: batches hold latents and labels instead of codes, seeds and labels.
    """

    def __init__(
        self,
        stores: Sequence[Store],
        *,
        seed: int,
        latents: bool,
        weights: Sequence[int] = (),
        config: StreamConfig | None = None,
    ) -> None:
        self.seed, self.weights, self.config = seed, tuple(weights), config or StreamConfig()
        self.wait_seconds = 0.0
        """Seconds that consumers of `batches` have waited so far."""
        self._ids = [store.id for store in stores]
        if self.weights and (len(self.weights) != len(stores) or min(self.weights) < 1):
            raise ValueError(
                f"weights are {list(weights)} for {len(stores)} stores; give every store an integer above 0"
            )
        columns = ("latents", "label") if latents else ("codes", "noise_seed", "label")
        groups = [[n] for n in range(len(stores))] if self.weights else [list(range(len(stores)))]
        shards = [Shards([stores[n] for n in group], [self._ids[n] for n in group], columns) for group in groups]
        for part in shards:
            if not len(part):
                raise ValueError(f"store {part.stores[0].url} holds no usable row; give another store")
        self.window = _window(shards, self.config)
        cache = Cache(self.config.cache or default_folder(), _bound(self.config))
        self._sets = [
            Blocks(part, self._order(part, order_seed(seed, number) if self.weights else seed), cache)
            for number, part in enumerate(shards, start=1)
        ]

    def _order(self, shards: Shards, seed: int) -> WholeOrder | WindowOrder:
        if self.window is None:
            return WholeOrder(shards.sizes, seed)
        return WindowOrder(np.concatenate(shards.sizes), self.window, seed)

    def __len__(self) -> int:
        """Usable rows of all stores; without weights, this is an epoch."""
        return sum(len(blocks.order) for blocks in self._sets)

    @property
    def identity(self) -> dict:
        """What a checkpoint records, and must find unchanged, to continue this stream."""
        identity = {"stores": self._ids, "seed": self.seed, "order": ORDER_VERSION}
        if self.weights:
            identity["weights"] = list(self.weights)
        if self.window is not None:
            identity["window"] = self.window
        return identity

    def fill(self, position: int = 0) -> None:
        """Wait until the cache holds, and this process has open, what is needed at this position and soon after it.

        Every process of a node may call it at the same time: one of them fills, the others wait for the kernel's lock
        on a file, without messages between ranks. So a rank calls it before it joins the others, and no time limit of
        their messages runs while a cache is filled. Raises DamagedStore, and ValueError when the cache has no room.
        """
        blocks, _ = self._locate(np.arange(position, position + 2 * sum(self.weights or (1,))))  # some of every set
        for number, part in enumerate(self._sets):
            part.fill(int(blocks[blocks % len(self._sets) == number].min()) // len(self._sets))

    def batch(self, positions: Sequence[int] | np.ndarray) -> TokenBatch:
        """The rows at these positions of the stream. Raises DamagedStore."""
        indices = np.asarray(positions, dtype=np.int64)
        return self._gather(indices, *self._locate(indices), pinned=False)

    def batches(
        self, start: int, stop: int, *, batch: int, micro_batch: int, rank: int = 0, ranks: int = 1
    ) -> Iterator[TokenBatch]:
        """This rank's micro-batches of the global batches start ... stop - 1, in their order. Raises DamagedStore.

        config.workers threads gather them in advance. The time that the caller still waits adds to `wait_seconds`.
        """
        parts = self._parts(start, stop, batch, micro_batch, rank, ranks)
        ahead = self._ahead(parts) if self.config.workers else (self._gather(*part) for part in parts)
        with contextlib.closing(ahead):
            while True:
                began = time.perf_counter()
                micro = next(ahead, None)
                self.wait_seconds += time.perf_counter() - began
                if micro is None:
                    return
                yield micro

    def _parts(self, start: int, stop: int, batch: int, micro_batch: int, rank: int, ranks: int) -> Iterator[tuple]:
        """Arguments of `_gather` for each micro-batch. Computing the order of many steps at once is cheaper."""
        share = batch // ranks
        assert share % micro_batch == 0
        pinned = torch.cuda.is_available()
        steps = max(1, _RUN // share)
        for first in range(start, stop, steps):
            run = range(first, min(stop, first + steps))
            positions = np.concatenate([batch_positions(step, batch, rank, ranks) for step in run])
            blocks, rows = self._locate(positions)
            for at in range(0, len(positions), micro_batch):
                part = slice(at, at + micro_batch)
                yield positions[part], blocks[part], rows[part], pinned

    def _ahead(self, parts: Iterator[tuple]) -> Generator[TokenBatch]:
        pending: deque[Future[TokenBatch]] = deque()
        with ThreadPoolExecutor(self.config.workers) as pool:
            try:
                for part in parts:
                    pending.append(pool.submit(self._gather, *part))
                    if len(pending) > _AHEAD:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _locate(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The block of each position and the row in that block. Block b of set i has the number b * sets + i."""
        if not self.weights:
            return self._sets[0].order.at(positions)
        which, places = mix_at(positions, self.weights, order_seed(self.seed, 0))
        blocks, rows = np.empty_like(positions), np.empty_like(positions)
        for number, part in enumerate(self._sets):
            in_set = which == number
            set_blocks, rows[in_set] = part.order.at(places[in_set])
            blocks[in_set] = set_blocks * len(self._sets) + number
        return blocks, rows

    def _gather(self, positions: np.ndarray, blocks: np.ndarray, rows: np.ndarray, pinned: bool) -> TokenBatch:
        layout = self._sets[0].shards.layout
        out = {name: _empty((len(positions), *shape), dtype, pinned) for name, (dtype, shape) in layout.items()}
        if (blocks == blocks[0]).all():
            columns = self._block(int(blocks[0]))
            for name, values in out.items():
                np.take(columns[name], rows, axis=0, out=values, mode="clip")  # mode "raise" would copy once more
        else:
            for number in np.unique(blocks).tolist():
                columns, in_block = self._block(number), blocks == number
                for name, values in out.items():
                    values[in_block] = columns[name][rows[in_block]]
        where = _empty(positions.shape, positions.dtype, pinned)
        where[:] = positions
        return TokenBatch(where, **{_FIELDS[name]: values for name, values in out.items()})

    def _block(self, number: int) -> dict[str, np.ndarray]:
        """The columns of a block, given its number among the blocks of all sets."""
        block, part = divmod(number, len(self._sets))
        return self._sets[part].rows(block)


def _bound(config: StreamConfig) -> int:
    return int(config.cache_gib * 2**30)


def _window(sets: list[Shards], config: StreamConfig) -> int | None:
    """Shards per window, or None where everything fits the cache. Raises ValueError when two windows do not fit.

    Only the plans and the config decide, not the state of the disk: every rank and every restart must decide alike.
    """
    if sum(len(part) * part.row_bytes for part in sets) <= _bound(config):
        return None
    need = 2 * sum(part.most_rows(config.window) * part.row_bytes for part in sets)
    if need > _bound(config):
        raise ValueError(
            f"two windows of {config.window} shards take {need / 2**30:.3g} GiB, more than cache_gib "
            f"{config.cache_gib:.3g}; lower window or raise cache_gib"
        )
    return config.window


def _empty(shape: tuple[int, ...], dtype: np.dtype, pinned: bool) -> np.ndarray:
    if not pinned:
        return np.empty(shape, dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().view(dtype).reshape(shape)
