"""Plan, commits and manifest: the records by which a sharded store is written once and read safely.

A store is a folder or URL:

    plan.json            Plan      written first, never changed; fixes which rows belong to which shard
    <array>/...          Zarr v3   one object per array and shard
    index/00000.parquet            one row of facts per row of the shard
    commits/00000.json   Commit    put if absent, once every object of the shard has been read back
    manifest.json        Manifest  written last; without it there is no store
"""

import dataclasses
import hashlib
import json
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from typing import Any

SCHEMA_VERSION = 1
PLAN, MANIFEST, COMMITS, INDEX = "plan.json", "manifest.json", "commits", "index"
STORE_ID = "store_id"  # the key under which the file of a manifest holds its own digest


def canonical_json(value: Any) -> bytes:
    """JSON bytes that depend on the value alone: sorted keys, one indent, a final newline."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False) + "\n").encode()


def digest_of(value: Any) -> str:
    """sha256 of the value's canonical JSON, in hex."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def shard_name(shard: int) -> str:
    """The name that a shard's objects share: 00000, 00001, ..."""
    return f"{shard:05d}"


def commit_name(shard: int) -> str:
    """The name under the store of a shard's commit record."""
    return f"{COMMITS}/{shard_name(shard)}.json"


@dataclass(frozen=True)
class ArraySpec:
    """One Zarr array of a store: `row_shape` is the shape of a row, `dims` names its axes after the first ("row")."""

    name: str
    dtype: str
    row_shape: tuple[int, ...]
    dims: tuple[str, ...]
    compressed: bool = True


@dataclass(frozen=True)
class Plan:
    """What will be written, fixed before the first byte.

    kind: "tokens" or "samples". rows: N. shard_rows: S, rows of a shard; chunk_rows divides it.
    identity: JSON facts that say what the rows are (models, sources, settings); two stores with the same plan are one.
    """

    kind: str
    rows: int
    shard_rows: int
    chunk_rows: int
    arrays: tuple[ArraySpec, ...]
    identity: dict[str, Any]
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"a store of {self.rows} rows holds nothing; give at least one")
        if self.shard_rows < 1 or self.chunk_rows < 1 or self.shard_rows % self.chunk_rows:
            raise ValueError(f"shard_rows {self.shard_rows} must be a multiple of chunk_rows {self.chunk_rows}")

    @property
    def num_shards(self) -> int:
        """ceil(rows / shard_rows)."""
        return -(-self.rows // self.shard_rows)

    def shard_range(self, shard: int) -> range:
        """Rows of one shard; the last may be short."""
        assert 0 <= shard < self.num_shards
        return range(shard * self.shard_rows, min(self.rows, (shard + 1) * self.shard_rows))

    def objects(self, shard: int) -> dict[str, str]:
        """Names under the store of the objects that hold a shard: one per array, and its part of the index."""
        arrays = {a.name: "/".join([a.name, "c", str(shard), *("0" for _ in a.row_shape)]) for a in self.arrays}
        return {**arrays, INDEX: f"{INDEX}/{shard_name(shard)}.parquet"}


@dataclass(frozen=True)
class ObjectDigest:
    """Size in bytes and sha256 of one stored object."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """One finished shard: its objects by array name (and "index"), and which rows of the store are rejects."""

    shard: int
    rows: int
    rejected: tuple[int, ...]
    objects: dict[str, ObjectDigest]


@dataclass(frozen=True)
class Manifest:
    """The published store."""

    plan: Plan
    rejected: tuple[int, ...]
    """Rows that hold no image, sorted; they keep their place, and readers pass over them."""
    commits: dict[str, str]
    """sha256 of every commit record's bytes, by shard name."""
    metadata: dict[str, str]
    """sha256 of every zarr.json, by its name under the store."""

    def rejected_of(self, shard: int) -> tuple[int, ...]:
        """The rejected rows of one shard."""
        rows = self.plan.shard_range(shard)
        return self.rejected[bisect_left(self.rejected, rows.start) : bisect_left(self.rejected, rows.stop)]

    @cached_property
    def store_id(self) -> str:
        """The store's identity, carried by what is made from it."""
        return digest_of(to_json(self))


def to_json(record: Plan | Commit | Manifest) -> dict[str, Any]:
    """A record as plain JSON data."""
    return json.loads(json.dumps(dataclasses.asdict(record)))


def plan_from_json(data: dict[str, Any]) -> Plan:
    """Inverse of to_json. Raises ValueError on a version this code does not know."""
    if data.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"schema version {data.get('schema_version')} is not {SCHEMA_VERSION}; use a matching release")
    arrays = tuple(
        ArraySpec(a["name"], a["dtype"], tuple(a["row_shape"]), tuple(a["dims"]), a["compressed"])
        for a in data["arrays"]
    )
    return Plan(**{**data, "arrays": arrays})


def commit_from_json(data: dict[str, Any]) -> Commit:
    """Inverse of to_json."""
    objects = {name: ObjectDigest(**o) for name, o in data["objects"].items()}
    return Commit(**{**data, "rejected": tuple(data["rejected"]), "objects": objects})


def manifest_from_json(data: dict[str, Any]) -> Manifest:
    """Inverse of to_json."""
    return Manifest(**{**data, "plan": plan_from_json(data["plan"]), "rejected": tuple(data["rejected"])})
