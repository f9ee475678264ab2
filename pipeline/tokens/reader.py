"""Reading a store by its manifest: every object is fetched once, checked against its commit, decoded from memory."""

import hashlib
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from pipeline import files
from storage_schemas.manifest import (
    COMMITS,
    INDEX,
    MANIFEST,
    PLAN,
    STORE_ID,
    Commit,
    Manifest,
    commit_from_json,
    digest_of,
    manifest_from_json,
    shard_name,
    to_json,
)


class DamagedStore(ValueError):
    """An object of a published store is missing or is not what was committed."""


class Store:
    """A published store. Nothing is returned that does not match its digest."""

    def __init__(self, url: str, manifest: Manifest) -> None:
        self.url, self.manifest = url.rstrip("/"), manifest
        self.specs = {spec.name: spec for spec in manifest.plan.arrays}

    @property
    def id(self) -> str:
        """The store's identity: the digest of its manifest."""
        return self.manifest.store_id

    def __len__(self) -> int:
        return self.manifest.plan.rows

    def commit(self, shard: int) -> Commit:
        """The commit record of one shard."""
        name = f"{COMMITS}/{shard_name(shard)}.json"
        data = self._fetch(name, self.manifest.commits[shard_name(shard)])
        return commit_from_json(json.loads(data))

    def shard(self, shard: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """The rows of one shard for some arrays, (rows, *row_shape) each. Raises DamagedStore."""
        commit = self.commit(shard)
        return {name: self._array(shard, name, commit) for name in names}

    def _array(self, shard: int, name: str, commit: Commit) -> np.ndarray:
        plan = self.manifest.plan
        key = plan.objects(shard)[name]
        buffer = default_buffer_prototype().buffer.from_bytes
        meta = f"{name}/zarr.json"
        memory = MemoryStore(
            {
                meta: buffer(self._fetch(meta, self.manifest.metadata[meta])),
                key: buffer(self._fetch(key, commit.objects[name].sha256)),
            }
        )
        rows = plan.shard_range(shard)
        return np.asarray(zarr.open_array(memory, path=name, mode="r")[rows.start : rows.stop])

    def read_all(self, name: str) -> np.ndarray:
        """A whole column, (N, *row_shape)."""
        return np.concatenate([self.shard(i, (name,))[name] for i in range(self.manifest.plan.num_shards)])

    def index(self) -> pa.Table:
        """The Parquet index, all shards in order."""
        tables = []
        for shard in range(self.manifest.plan.num_shards):
            key = self.manifest.plan.objects(shard)[INDEX]
            tables.append(pq.read_table(io.BytesIO(self._fetch(key, self.commit(shard).objects[INDEX].sha256))))
        return pa.concat_tables(tables)

    def _fetch(self, name: str, sha256: str) -> bytes:
        try:
            data = files.read_bytes(files.join(self.url, name))
        except FileNotFoundError:
            raise DamagedStore(f"store {self.url} has lost {name}; run rdpm verify {self.url}") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DamagedStore(f"store {self.url}: {name} is not what was committed; run rdpm verify {self.url}")
        return data


def open_store(url: str, kind: str) -> Store:
    """Open a published store of this kind. Raises ValueError when there is no manifest or it is of another kind."""
    path = files.join(url, MANIFEST)
    if not files.exists(path):
        raise ValueError(f"{url!r} has no {MANIFEST}, so it is no finished store; run the job that makes it to its end")
    data = files.read_json(path)
    named = data.pop(STORE_ID, None) if isinstance(data, dict) else None
    if digest_of(data) != named:
        raise DamagedStore(f"{path} is not what was published; delete it and run the job that makes the store again")
    manifest = manifest_from_json(data)
    if manifest.plan.kind != kind:
        raise ValueError(f"{url!r} is a store of {manifest.plan.kind}, not of {kind}; give the other folder")
    return Store(url, manifest)


def verify(store: Store) -> list[str]:
    """Check every object of a store against its digest. Returns one sentence for each that is damaged."""
    problems = []
    plan = files.join(store.url, PLAN)
    if not files.exists(plan) or files.read_json(plan) != to_json(store.manifest.plan):
        problems.append(f"store {store.url}: {PLAN} is not the manifest's plan")
    for name, sha256 in store.manifest.metadata.items():
        try:
            store._fetch(name, sha256)
        except DamagedStore as problem:
            problems.append(str(problem))
    for shard in range(store.manifest.plan.num_shards):
        try:
            store.shard(shard, tuple(store.specs))
            store._fetch(store.manifest.plan.objects(shard)[INDEX], store.commit(shard).objects[INDEX].sha256)
        except DamagedStore as problem:
            problems.append(str(problem))
    return list(dict.fromkeys(problems))
