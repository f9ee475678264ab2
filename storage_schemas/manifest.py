"""Plan, commits and manifest: with these records a sharded store is written once and read safely.

A store is a folder or URL:

    plan.json            Plan      written first, never changed; fixes which rows belong to which shard
    <array>/...          Zarr v3   one object per array and shard
    index/00000.parquet            one row of facts per row of the shard
    commits/00000.json   Commit    created only if absent, after every object of the shard has been read back
    environments/...               where the workers ran; part of no digest
    manifest.json        Manifest  written last; without it the folder is no store
"""

import dataclasses
import json
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from rdpm.storage_schemas import samples, tokens
from rdpm.storage_schemas.arrays import ArraySpec
from rdpm.storage_schemas.canonical import digest_of
from rdpm.storage_schemas.parsing import check_version, parse
from rdpm.storage_schemas.samples import SampleIdentity
from rdpm.storage_schemas.tokens import TokenIdentity

SCHEMA_VERSION = 2
PLAN, MANIFEST, COMMITS, INDEX = "plan.json", "manifest.json", "commits", "index"
ENVIRONMENTS = "environments"  # where the workers ran, outside every digest
STORE_ID = "store_id"  # the key under which the file of a manifest holds its own digest
IDENTITIES: dict[str, type[TokenIdentity] | type[SampleIdentity]] = {
    tokens.KIND: TokenIdentity,
    samples.KIND: SampleIdentity,
}


def shard_name(shard: int) -> str:
    """The name that a shard's objects share: 00000, 00001, ..."""
    return f"{shard:05d}"


def commit_name(shard: int) -> str:
    """The name under the store of a shard's commit record."""
    return f"{COMMITS}/{shard_name(shard)}.json"


@dataclass(frozen=True)
class Plan:
    """What a store will hold, fixed before the first byte is written. Two stores with one plan hold the same rows."""

    kind: str
    """tokens or samples."""
    rows: int
    """N, rows of the store."""
    shard_rows: int
    """Rows per shard; the last shard may be short."""
    chunk_rows: int
    """Rows per chunk; divides shard_rows."""
    arrays: tuple[ArraySpec, ...]
    """The arrays that every shard has."""
    identity: TokenIdentity | SampleIdentity
    """What the rows depend on."""
    schema_version: int = SCHEMA_VERSION
    """Version of plan and manifest."""
    written: dict[str, Any] | None = field(default=None, compare=False, repr=False)
    """The JSON that the plan was read from, and that is written back, so that digests of old stores never change."""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"a store of {self.rows} rows holds nothing; give it at least one row")
        if self.shard_rows < 1 or self.chunk_rows < 1 or self.shard_rows % self.chunk_rows:
            raise ValueError(f"shard_rows {self.shard_rows} must be a multiple of chunk_rows {self.chunk_rows}")

    @property
    def tokens(self) -> TokenIdentity:
        """What the rows of a token store depend on."""
        assert isinstance(self.identity, TokenIdentity)
        return self.identity

    @property
    def samples(self) -> SampleIdentity:
        """What the images of a sample store depend on."""
        assert isinstance(self.identity, SampleIdentity)
        return self.identity

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
    """What one stored object is."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012, pydantic reads a plain dict

    size: int
    """Bytes."""
    sha256: str
    """Digest of the bytes, in hex."""


@dataclass(frozen=True)
class Commit:
    """One finished shard."""

    shard: int
    """Number of the shard."""
    rows: int
    """Rows of the shard."""
    rejected: tuple[int, ...]
    """Rejected rows of the shard, counted from the first row of the store."""
    objects: dict[str, ObjectDigest]
    """The shard's objects by array name; the Parquet index is under "index"."""


@dataclass(frozen=True)
class Manifest:
    """A published store."""

    plan: Plan
    """What was written."""
    rejected: tuple[int, ...]
    """Rows that hold no image, sorted. They keep their place, and readers skip them."""
    commits: dict[str, str]
    """sha256 of every commit record's bytes, by shard name."""
    metadata: dict[str, str]
    """sha256 of every zarr.json, by its name under the store."""

    def rejected_of(self, shard: int) -> tuple[int, ...]:
        """The rejected rows of one shard, counted from the first row of the store."""
        rows = self.plan.shard_range(shard)
        return self.rejected[bisect_left(self.rejected, rows.start) : bisect_left(self.rejected, rows.stop)]

    @cached_property
    def store_id(self) -> str:
        """The store's identity. What is made from the store records it."""
        return digest_of(to_json(self))


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """A plan as plain JSON data. A plan that was read comes out as it was read."""
    if plan.written is not None:
        return plan.written
    tree = dataclasses.asdict(plan)
    del tree["written"]
    return json.loads(json.dumps(tree))


def to_json(record: Commit | Manifest) -> dict[str, Any]:
    """A record as plain JSON data."""
    tree = dataclasses.asdict(record)
    if isinstance(record, Manifest):
        tree["plan"] = plan_to_json(record.plan)
    return json.loads(json.dumps(tree))


def plan_from_json(data: dict[str, Any]) -> Plan:
    """Inverse of plan_to_json, for every version up to this one. Raises ValueError for what is no such plan."""
    check_version(data, SCHEMA_VERSION, "the plan")
    kind = str(data.get("kind"))
    if kind not in IDENTITIES:
        raise ValueError(f"the plan: kind is {kind!r}, not one of {', '.join(IDENTITIES)}; restore it or make it again")
    identity = IDENTITIES[kind].from_json(data.get("identity"))
    return parse(Plan, data, "the plan", identity=identity, written=data)


def commit_from_json(data: dict[str, Any]) -> Commit:
    """Inverse of to_json. Raises ValueError for what is no commit."""
    return parse(Commit, data, "the commit")


def manifest_from_json(data: dict[str, Any]) -> Manifest:
    """Inverse of to_json. Raises ValueError for what is no manifest."""
    plan = data.get("plan") if isinstance(data, dict) else None
    return parse(Manifest, data, "the manifest", plan=plan_from_json(plan or {}))
