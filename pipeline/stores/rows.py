"""Single rows of a published store: of each object, the table of its chunks and the chunks that are needed are read.

Whole shards are checked against their sha256 (`Store.shard`). A part of an object cannot be: what is read here is
checked against the object's size in the commit, and against the CRC-32C of the table and of every chunk.
"""

from collections import OrderedDict
from collections.abc import Iterable

import numpy as np

from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.layout import chunk_table, decode_chunk, ends_in_its_crc, table_bytes
from rdpm.pipeline.stores.reader import DamagedStore, Store

_KEPT = 64 << 20  # bytes of decoded chunks

Part = tuple[str, int, int]
"""(object under the store, offset, bytes)."""


class Rows:
    """Rows of some arrays of a store by their numbers. A copy in another process reads for itself."""

    def __init__(self, store: Store, names: tuple[str, ...]) -> None:
        self.store, self.names = store, names
        self._tables: dict[tuple[str, int], list[tuple[int, int]]] = {}
        self._chunks: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()

    def __reduce__(self):
        return Rows, (self.store, self.names)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows with these numbers, (n, *row_shape) per array. Raises DamagedStore."""
        chunks, places = np.divmod(np.asarray(rows, dtype=np.int64), self.store.manifest.plan.chunk_rows)
        wanted = [(name, chunk) for name in self.names for chunk in np.unique(chunks).tolist()]
        self._load([key for key in wanted if key not in self._chunks])
        for key in wanted:
            self._chunks.move_to_end(key)
        where = list(zip(chunks.tolist(), places.tolist(), strict=True))
        found = {name: np.stack([self._chunks[name, chunk][place] for chunk, place in where]) for name in self.names}
        self._forget()
        return found

    def _load(self, keys: list[tuple[str, int]]) -> None:
        """Read and decode chunks, numbered through the store."""
        plan = self.store.manifest.plan
        per_shard = plan.shard_rows // plan.chunk_rows
        self._load_tables({(name, chunk // per_shard) for name, chunk in keys})
        parts = []
        for name, chunk in keys:
            shard, number = divmod(chunk, per_shard)
            parts.append((plan.objects(shard)[name], *self._tables[name, shard][number]))
        for (name, chunk), data in zip(keys, self._read(parts), strict=True):
            spec = self.store.specs[name]
            values = np.empty((plan.chunk_rows, *spec.row_shape), spec.dtype)
            decode_chunk(spec, data, values)
            self._chunks[name, chunk] = values

    def _load_tables(self, wanted: Iterable[tuple[str, int]]) -> None:
        plan, keys = self.store.manifest.plan, sorted(set(wanted) - self._tables.keys())
        size = table_bytes(plan)
        commits = {shard: self.store.commit(shard) for shard in sorted({shard for _, shard in keys})}
        parts = [(plan.objects(shard)[name], commits[shard].objects[name].size - size, size) for name, shard in keys]
        for key, data in zip(keys, self._read(parts), strict=True):
            self._tables[key] = chunk_table(plan, data)

    def _read(self, parts: list[Part]) -> list[bytes]:
        """Parts of objects that end in their CRC-32C, fetched together. Raises DamagedStore for one that does not."""
        if not parts:
            return []
        url, found = self.store.url, list[bytes]()
        read = files.read_parts([(files.join(url, name), offset, size) for name, offset, size in parts])
        for (name, _, size), data in zip(parts, read, strict=True):
            if isinstance(data, FileNotFoundError):
                raise DamagedStore(f"store {url} has lost {name}; run rdpm verify {url}")
            if len(data) != size or not ends_in_its_crc(data):
                raise DamagedStore(f"store {url}: {name} is not what was committed; run rdpm verify {url}")
            found.append(data)
        return found

    def _forget(self) -> None:
        """Let the chunks go that were used least recently, down to the bound."""
        held = sum(chunk.nbytes for chunk in self._chunks.values())
        while held > _KEPT and len(self._chunks) > 1:
            held -= self._chunks.popitem(last=False)[1].nbytes
