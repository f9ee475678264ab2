"""Writing a store exactly once: plan, shards, commits, manifest, in that order.

One call stages a whole shard, reads its objects back and commits. The first commit of a shard is kept, and only the
objects that it names get their places in the store (`staging`). So attempts that write the same bytes leave the same
store after any number of workers, jobs and kills, and one that comes late with other bytes changes nothing.
"""

import hashlib
import io
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import saved_identity
from rdpm.pipeline.foundation.environment import environment
from rdpm.pipeline.foundation.lease import Lease
from rdpm.pipeline.stores.layout import create_arrays, encode_shard, metadata_objects
from rdpm.pipeline.stores.staging import (
    committed_shards,
    read_commit,
    settle,
    settle_all,
    stage,
    sweep,
    unlike_commit,
)
from rdpm.storage_schemas.canonical import canonical_json
from rdpm.storage_schemas.manifest import (
    ENVIRONMENTS,
    INDEX,
    MANIFEST,
    PLAN,
    STORE_ID,
    Commit,
    Manifest,
    ObjectDigest,
    Plan,
    commit_name,
    plan_from_json,
    plan_to_json,
    shard_name,
    to_json,
)
from rdpm.storage_schemas.samples import SampleIdentity


def start_store(url: str, plan: Plan) -> Plan:
    """Write the plan and the metadata of the arrays, unless they exist. Returns the plan of the store.

    Committed shards whose attempt was killed before their objects were in place are completed.
    An existing plan may have an earlier version, which records less. Raises ValueError when the existing plan differs
    or is no plan, because a store is never overwritten, and when the file system cannot guarantee that.
    """
    files.require_create(url)
    if not files.create_bytes(files.join(url, PLAN), canonical_json(plan_to_json(plan))):
        existing = _read_plan(url)
        change = difference(existing, plan)
        if change:
            raise ValueError(f"store {url} has another plan ({change}); choose another store")
        plan = existing
    create_arrays(url, plan)
    settle_all(url, plan)
    return plan


def _read_plan(url: str) -> Plan:
    path = files.join(url, PLAN)
    data = files.read_json(path)
    try:
        return plan_from_json(data)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def difference(old: Plan, new: Plan) -> str:
    """The differences between two plans as "key old -> new, ..."; "" when both are plans of one store.

    A fact that the version of the old plan does not record is no difference.
    """
    old_facts, new_facts = (_facts(plan) for plan in (old, new))
    keys = [key for key, value in old_facts.items() if value is not None and value != new_facts.get(key)]
    return ", ".join(f"{key} {_short(old_facts[key])} -> {_short(new_facts.get(key))}" for key in keys)


def _facts(plan: Plan) -> dict[str, Any]:
    """Everything that a plan records, except its version. Settings of the sampler are in their current form."""
    facts = {**vars(plan), **vars(plan.identity)}
    if isinstance(plan.identity, SampleIdentity):
        from rdpm.models.sampler import SamplerConfig  # with torch, which a token store does not need

        facts["sampler"] = saved_identity(SamplerConfig, plan.identity.sampler)
    return {name: value for name, value in facts.items() if name not in ("identity", "schema_version", "written")}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def leave_environment(url: str) -> None:
    """Write down where this process runs, in a file under the store that is part of no digest."""
    data = canonical_json(environment())
    files.create_bytes(files.join(url, ENVIRONMENTS, f"{hashlib.sha256(data).hexdigest()[:12]}.json"), data)


def missing_shards(url: str, plan: Plan) -> list[int]:
    """Shards without a commit record, in order."""
    return sorted(set(range(plan.num_shards)).difference(committed_shards(url, plan)))


def write_shard(
    url: str,
    plan: Plan,
    shard: int,
    columns: Mapping[str, np.ndarray],
    index: Mapping[str, Any],
    rejected: tuple[int, ...] = (),
) -> Commit:
    """Stage the shard of every array and its index, read them back, commit, and put in place what the commit names.

    columns: an array (rows, *row_shape) for every array of the plan. index: columns of the shard's Parquet file.
    Returns the commit that is kept, which another attempt may have made.
    """
    rows = plan.shard_range(shard)
    for spec in plan.arrays:
        values = columns[spec.name]
        assert values.shape == (len(rows), *spec.row_shape), (spec.name, values.shape)
        assert values.dtype == np.dtype(spec.dtype), (spec.name, values.dtype)
    objects: dict[str, ObjectDigest] = {}
    try:
        with files.together():
            for name, data in _encoded(plan, shard, columns, index):
                objects[name] = stage(url, shard, data)
        commit = Commit(shard, len(rows), rejected, objects)
        first = files.create_bytes(files.join(url, commit_name(shard)), canonical_json(to_json(commit)))
    except FileNotFoundError:  # deleted as left over: the shard has a commit, or this error is raised again
        first = False
    kept = commit if first else read_commit(url, plan, shard)[0]
    settle(url, plan, kept, [digest.sha256 for digest in objects.values()])
    return kept


def _encoded(
    plan: Plan, shard: int, columns: Mapping[str, np.ndarray], index: Mapping[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of every object of a shard, made one at a time."""
    for spec in plan.arrays:
        yield spec.name, encode_shard(plan, spec, shard, columns[spec.name])
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(index)), sink, compression="zstd")
    yield INDEX, sink.getvalue().to_pybytes()


def committed_rejects(url: str, plan: Plan) -> list[tuple[str, str]]:
    """(key, reason) of every rejected row of the committed shards, in order."""
    settle_all(url, plan)

    def rejects(shard: int) -> list[tuple[str, str]]:
        if not read_commit(url, plan, shard)[0].rejected:
            return []
        index = pq.read_table(io.BytesIO(files.read_bytes(files.join(url, plan.objects(shard)[INDEX]))))
        return [(row["key"], row["reason"]) for row in index.to_pylist() if row["reason"]]

    return [reject for found in files.in_parallel(rejects, committed_shards(url, plan)) for reject in found]


def publish(url: str, plan: Plan, lease: Lease | None = None) -> Manifest:
    """Write the manifest of a store whose shards are all committed.

    Every worker has read back what it committed, so no array is read here: commits are read, objects that a killed
    attempt left staged are put in place, and all sizes are compared. Raises ValueError that names what is missing or
    has another size than its commit says, and LeaseLost. lease: of the store, where a job writes it.
    """
    missing = missing_shards(url, plan)
    if missing:
        raise ValueError(f"store {url} lacks shards {missing[:5]} ({len(missing)} in all); run the job again")
    metadata = metadata_objects(plan)
    for name, data in metadata.items():
        if files.read_bytes(files.join(url, name)) != data:
            raise ValueError(f"store {url}: {name} is not what this release writes; delete it and run the job again")
    settle_all(url, plan)
    attested = list(files.in_parallel(lambda shard: _attested(url, plan, shard), range(plan.num_shards)))
    _check_sizes(url, plan, [sizes for _, _, sizes in attested])
    if lease is not None:
        lease.check()
    sweep(url)
    manifest = Manifest(
        plan,
        tuple(row for rejected, _, _ in attested for row in rejected),
        {shard_name(shard): digest for shard, (_, digest, _) in enumerate(attested)},
        {name: hashlib.sha256(data).hexdigest() for name, data in metadata.items()},
    )
    if lease is not None:
        lease.check()
    files.write_json(files.join(url, MANIFEST), {**to_json(manifest), STORE_ID: manifest.store_id})
    return manifest


def _attested(url: str, plan: Plan, shard: int) -> tuple[tuple[int, ...], str, tuple[int, ...]]:
    """What the commit of a shard says: rejected rows, the digest of the record, sizes in the order of the objects."""
    commit, sha256 = read_commit(url, plan, shard)
    return commit.rejected, sha256, tuple(commit.objects[name].size for name in plan.objects(shard))


def _check_sizes(url: str, plan: Plan, attested: list[tuple[int, ...]]) -> None:
    """Compare the sizes of all objects, from listings, with those in the commits. Raises ValueError for a difference.

    attested: for each shard the sizes in the order of its objects.
    """
    folders = list(plan.objects(0))
    listings = files.in_parallel(lambda folder: dict(files.list_files(files.join(url, folder))), folders)
    for position, (folder, sizes) in enumerate(zip(folders, listings, strict=True)):
        for shard in range(plan.num_shards):
            key = plan.objects(shard)[folder]
            if sizes.get(key.removeprefix(f"{folder}/")) != attested[shard][position]:
                raise unlike_commit(url, shard, key)
