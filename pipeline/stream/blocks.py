"""Blocks of shards: their rows, and their arrays, which are opened through the cache and one block in advance."""

import functools
import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from rdpm.pipeline.stores.reader import Store
from rdpm.pipeline.stream.cache import CACHE_VERSION, Cache
from rdpm.pipeline.stream.order import WholeOrder, WindowOrder


class Shards:
    """The shards of some stores, numbered through all stores, with their usable rows only.

    sizes: for each store, the usable rows of each shard. row_bytes: bytes of one row in all columns together.
    """

    def __init__(self, stores: Sequence[Store], ids: Sequence[str], columns: tuple[str, ...]) -> None:
        self.stores, self.ids, self.columns = stores, ids, columns
        self._rejected = [np.asarray(store.manifest.rejected, dtype=np.int64) for store in stores]
        self.sizes = [_usable(store, rejected) for store, rejected in zip(stores, self._rejected, strict=True)]
        self._first = np.append(0, np.cumsum([len(sizes) for sizes in self.sizes]))
        self._flat = np.concatenate(self.sizes)
        specs = [stores[0].specs[name] for name in columns]
        self.layout = {spec.name: (np.dtype(spec.dtype), spec.row_shape) for spec in specs}
        self._bytes = {name: dtype.itemsize * int(np.prod(shape)) for name, (dtype, shape) in self.layout.items()}
        self.row_bytes = sum(self._bytes.values())

    def __len__(self) -> int:
        """Usable rows."""
        return int(self._flat.sum())

    def most_rows(self, window: int) -> int:
        """The largest number of rows that `window` shards can hold."""
        return int(np.sort(self._flat)[-window:].sum())

    def _place(self, number: int) -> tuple[int, int]:
        """(store, shard within the store), given a shard's number."""
        store = int(np.searchsorted(self._first, number, side="right")) - 1
        return store, number - int(self._first[store])

    def block_name(self, numbers: np.ndarray) -> str:
        """A name for the rows of a block: the same in every job that reads these shards in this order."""
        digest = hashlib.sha256(f"{CACHE_VERSION}".encode())
        for number in numbers.tolist():
            store, shard = self._place(number)
            digest.update(f"\n{self.ids[store]} {shard}".encode())
        return digest.hexdigest()[:32]

    def read(self, number: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """The usable rows of one shard, verified. Raises DamagedStore."""
        store, shard = self._place(number)
        span = self.stores[store].manifest.plan.shard_range(shard)
        edges = np.searchsorted(self._rejected[store], [span.start, span.stop])
        rejected = self._rejected[store][slice(*edges)] - span.start
        arrays = self.stores[store].shard(shard, names)
        return {name: np.delete(rows, rejected, axis=0) if len(rejected) else rows for name, rows in arrays.items()}

    def open(self, cache: Cache, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Every column of a block as one memory-mapped array, (rows of the block, *row_shape)."""
        rows = self._flat[numbers]
        parts = {name: (rows * size).tolist() for name, size in self._bytes.items()}
        maps = cache.open(self.block_name(numbers), parts, lambda part, names: self.read(int(numbers[part]), names))
        return {
            name: np.frombuffer(maps[name], dtype).reshape(-1, *shape) for name, (dtype, shape) in self.layout.items()
        }


def _usable(store: Store, rejected: np.ndarray) -> np.ndarray:
    """The usable rows of each shard of a store, (shards,) int64."""
    plan = store.manifest.plan
    rows = np.full(plan.num_shards, plan.shard_rows, dtype=np.int64)
    rows[-1] = len(plan.shard_range(plan.num_shards - 1))
    return rows - np.bincount(rejected // plan.shard_rows, minlength=plan.num_shards)


class Blocks:
    """The blocks of one order over some shards. The next blocks are opened in the background.

    A copy in another process, forked or unpickled, opens its own blocks.
    """

    def __init__(self, shards: Shards, order: WholeOrder | WindowOrder, cache: Cache) -> None:
        self.shards, self.order, self.cache = shards, order, cache
        self._start()

    def __reduce__(self):
        return Blocks, (self.shards, self.order, self.cache)

    def _start(self) -> None:
        self._process, self._lock = os.getpid(), threading.Lock()
        self._opened: dict[int, Future[dict[str, np.ndarray]]] = {}
        self._opener = ThreadPoolExecutor(1)

    def fill(self, block: int) -> None:
        """Wait until every block is open that this one needs near it. Raises DamagedStore."""
        self.rows(block)
        with self._lock:
            near = [self._opened[number] for number in self.order.near(block)]
        for opening in near:
            opening.result()

    def rows(self, block: int) -> dict[str, np.ndarray]:
        """The columns of a block, (rows, *row_shape) each. Waits until they are open. Raises DamagedStore."""
        if self._process != os.getpid():
            self._start()
        near = self.order.near(block)
        with self._lock:
            for number in near:
                if number not in self._opened:
                    opening = functools.partial(self.shards.open, self.cache, self.order.shards(number))
                    self._opened[number] = self._opener.submit(opening)
            columns = self._opened[block]
            for old in [number for number in self._opened if not near.start - 1 <= number < near.stop]:
                if self._opened[old].done():  # otherwise another thread may be waiting for it
                    del self._opened[old]
        try:
            return columns.result()
        except BaseException:
            with self._lock:
                self._opened.pop(block, None)  # so that the next call, after a repair, tries again
            raise
