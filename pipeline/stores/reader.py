"""Reading a store: every object is fetched once, checked against the store's records, and decoded from memory."""

import hashlib
import io
import json
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.layout import decode_shard
from rdpm.storage_schemas.canonical import canonical_json, digest_of
from rdpm.storage_schemas.manifest import (
    INDEX,
    MANIFEST,
    STORE_ID,
    Commit,
    Manifest,
    check_commit,
    check_manifest,
    commit_from_json,
    commit_name,
    manifest_from_json,
    shard_name,
)


class DamagedStore(ValueError):
    """An object of a published store is missing, or its bytes are not those that were committed."""


class Store:
    """A published store. It returns only data that match their digests."""

    def __init__(self, url: str, manifest: Manifest) -> None:
        self.url, self.manifest = url.rstrip("/"), manifest
        self.specs = {spec.name: spec for spec in manifest.plan.arrays}

    @cached_property
    def id(self) -> str:
        """The store's identity: the digest of its manifest."""
        return self.manifest.store_id

    def __len__(self) -> int:
        return self.manifest.plan.rows

    def commit(self, shard: int) -> Commit:
        """The commit record of one shard. Raises DamagedStore."""
        data = self.fetch(commit_name(shard), self.manifest.commits[shard_name(shard)])
        try:
            commit = commit_from_json(json.loads(data))
            check_commit(commit, self.manifest.plan, shard)
        except ValueError as error:
            raise DamagedStore(f"store {self.url}: {commit_name(shard)} is no commit record ({error})") from None
        return commit

    def shard(self, shard: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """The rows of one shard in these arrays, (rows, *row_shape) each. Raises DamagedStore."""
        commit = self.commit(shard)
        return {name: self.decode(name, shard, self._object(name, commit)) for name in names}

    def decode(self, name: str, shard: int, data: bytes) -> np.ndarray:
        """The rows of one shard of an array, (rows, *row_shape), from the bytes of the shard's object."""
        return decode_shard(self.manifest.plan, self.specs[name], shard, data)

    def shard_index(self, shard: int) -> pa.Table:
        """The index of one shard, one line per row. Raises DamagedStore."""
        return pq.read_table(io.BytesIO(self._object(INDEX, self.commit(shard))))

    def _object(self, name: str, commit: Commit) -> bytes:
        return self.fetch(self.manifest.plan.objects(commit.shard)[name], commit.objects[name].sha256)

    def read_all(self, name: str) -> np.ndarray:
        """A whole array, (N, *row_shape). Raises DamagedStore."""
        return np.concatenate([self.shard(i, (name,))[name] for i in range(self.manifest.plan.num_shards)])

    def index(self) -> pa.Table:
        """The Parquet index of all shards, in their order. Raises DamagedStore."""
        return pa.concat_tables(self.shard_index(shard) for shard in range(self.manifest.plan.num_shards))

    def fetch(self, name: str, sha256: str) -> bytes:
        """An object by its name under the store. Raises DamagedStore when it is missing or has another digest."""
        try:
            data = files.read_bytes(files.join(self.url, name))
        except FileNotFoundError:
            raise DamagedStore(f"store {self.url} has lost {name}; run rdpm verify {self.url}") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DamagedStore(f"store {self.url}: {name} is not what was committed; run rdpm verify {self.url}")
        return data


def open_store(url: str, kind: str | None = None) -> Store:
    """Open a published store of this kind, or of any kind.

    Raises ValueError when there is no manifest, or one that this release cannot read, and for a store of another kind.
    """
    path = files.join(url, MANIFEST)
    if not files.exists(path):
        raise ValueError(f"{url!r} has no {MANIFEST}, so it is no finished store; run the job that makes it to its end")
    written = files.read_bytes(path)
    try:
        data = json.loads(written)
        store_id = data.pop(STORE_ID)
        undamaged = canonical_json({**data, STORE_ID: store_id}) == written and digest_of(data) == store_id
    except (ValueError, KeyError, TypeError, AttributeError):
        undamaged = False
    if not undamaged:
        raise DamagedStore(f"{path} is not what was published; delete it and run the job that makes the store again")
    try:
        manifest = manifest_from_json(data)
        check_manifest(manifest)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if kind not in (None, manifest.plan.kind):
        raise ValueError(f"{url!r} is a store of {manifest.plan.kind}, not of {kind}; give the other folder")
    return Store(url, manifest)
