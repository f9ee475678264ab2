"""Plan, commits and manifest: with these records a sharded store is written once and read safely.

A store is a folder or URL:

    plan.json            Plan      written first, never changed; fixes which rows belong to which shard
    staged/...                     objects of shards that have no commit yet, each under a name made of its bytes
    <array>/...          Zarr v3   one object per array and shard
    index/00000.parquet            one row of facts per row of the shard
    commits/00000.json   Commit    created only if absent, after every object of the shard has been read back; only
                                   the objects that it names get their places in <array> and index
    environments/...               where the workers ran; part of no digest
    manifest.json        Manifest  written last; without it the folder is no store
"""

import dataclasses
import json
import re
from bisect import bisect_left
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from rdpm.storage_schemas import samples, tokens
from rdpm.storage_schemas.arrays import ArraySpec
from rdpm.storage_schemas.canonical import digest_of
from rdpm.storage_schemas.parsing import check_version, parse
from rdpm.storage_schemas.samples import SampleIdentity
from rdpm.storage_schemas.tokens import TokenIdentity

SCHEMA_VERSION = 2
PLAN, MANIFEST, COMMITS, INDEX = "plan.json", "manifest.json", "commits", "index"
STAGED = "staged"  # objects of shards before their commit decides
ENVIRONMENTS = "environments"  # where the workers ran, outside every digest
STORE_ID = "store_id"  # the key under which the file of a manifest holds its own digest
IDENTITIES: dict[str, type[TokenIdentity] | type[SampleIdentity]] = {
    tokens.KIND: TokenIdentity,
    samples.KIND: SampleIdentity,
}
_RESERVED = {COMMITS, INDEX, STAGED, ENVIRONMENTS}
_ARRAY_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def shard_name(shard: int) -> str:
    """The name that a shard's objects share: 00000, 00001, ..."""
    return f"{shard:05d}"


def commit_name(shard: int) -> str:
    """The name under the store of a shard's commit record."""
    return f"{COMMITS}/{shard_name(shard)}.json"


def staged_name(shard: int, sha256: str) -> str:
    """The name under the store of an object of a shard before its commit decides."""
    return f"{STAGED}/{shard_name(shard)}-{sha256}"


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
        names = [array.name for array in self.arrays]
        for name in names:
            if not _ARRAY_NAME.fullmatch(name) or name in _RESERVED or names.count(name) > 1:
                raise ValueError(f"the plan has an array {name[:60]!r}, which is no name for one; get the true plan")

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


def check_commit(commit: Commit, plan: Plan, shard: int) -> None:
    """Raise ValueError unless this can be the commit of that shard: its names and numbers become paths and rows."""
    rows = plan.shard_range(shard)
    if commit.shard != shard or commit.rows != len(rows) or commit.objects.keys() != plan.objects(shard).keys():
        raise ValueError(f"the commit is not of the {len(rows)} rows and the arrays of shard {shard}")
    if not _ascend_in(commit.rejected, rows):
        raise ValueError(f"the commit rejects rows that are not in shard {shard}")
    for name, digest in commit.objects.items():
        if not _SHA256.fullmatch(digest.sha256) or digest.size < 0:
            raise ValueError(f"the commit has no size and sha256 of {name}")


def check_manifest(manifest: Manifest) -> None:
    """Raise ValueError unless commits, metadata and rejected rows are those of the plan's shards, arrays and rows."""
    plan = manifest.plan
    metadata = {"zarr.json", *(f"{array.name}/zarr.json" for array in plan.arrays)}
    if len(manifest.commits) != plan.num_shards or any(
        shard_name(shard) not in manifest.commits for shard in range(plan.num_shards)
    ):
        raise ValueError(f"the manifest does not have one commit for each of the {plan.num_shards} shards of its plan")
    if manifest.metadata.keys() != metadata:
        raise ValueError("the manifest has other metadata than that of the arrays of its plan")
    if not _ascend_in(manifest.rejected, range(plan.rows)):
        raise ValueError(f"the manifest rejects rows that are not among the {plan.rows} of its plan")


def _ascend_in(numbers: tuple[int, ...], rows: range) -> bool:
    """Whether the numbers ascend and are rows."""
    return all(a < b for a, b in pairwise(numbers)) and (not numbers or (numbers[0] in rows and numbers[-1] in rows))


def manifest_from_json(data: dict[str, Any]) -> Manifest:
    """Inverse of to_json. Raises ValueError for what is no manifest."""
    plan = data.get("plan") if isinstance(data, dict) else None
    return parse(Manifest, data, "the manifest", plan=plan_from_json(plan or {}))
