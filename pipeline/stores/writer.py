"""Writing a store exactly once: plan, shards, commits, manifest, in that order.

A shard is written whole by one call, which reads its objects back before it commits. A retry writes the same bytes, and
the first commit stands, so any number of workers, jobs and kills leave the same store.
"""

import hashlib
import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.environment import environment
from rdpm.pipeline.stores.layout import create_arrays, encode_shard, metadata_objects
from rdpm.storage_schemas.canonical import canonical_json
from rdpm.storage_schemas.manifest import (
    COMMITS,
    ENVIRONMENTS,
    INDEX,
    MANIFEST,
    PLAN,
    STORE_ID,
    Commit,
    Manifest,
    Plan,
    commit_from_json,
    commit_name,
    plan_from_json,
    plan_to_json,
    shard_name,
    to_json,
)


def start_store(url: str, plan: Plan) -> Plan:
    """Write the plan and the metadata of the arrays, or find them there. Returns the plan that is there.

    That may be one of an earlier version, which says less. Raises ValueError when another plan is there already, since
    a store is never overwritten, and where the file system cannot guarantee that.
    """
    files.require_create(url)
    if not files.create_bytes(files.join(url, PLAN), canonical_json(plan_to_json(plan))):
        found = plan_from_json(files.read_json(files.join(url, PLAN)))
        change = difference(found, plan)
        if change:
            raise ValueError(f"store {url} has another plan ({change}); choose another store")
        plan = found
    create_arrays(url, plan)
    return plan


def difference(old: Plan, new: Plan) -> str:
    """Where two plans differ, in words: "key old -> new, ..."; "" where they are of one store.

    What the old plan does not say, because its version did not record it, is no difference.
    """
    old_facts, new_facts = (_facts(plan) for plan in (old, new))
    keys = [key for key, value in old_facts.items() if value is not None and value != new_facts.get(key)]
    return ", ".join(f"{key} {_short(old_facts[key])} -> {_short(new_facts.get(key))}" for key in keys)


def _facts(plan: Plan) -> dict[str, Any]:
    """Everything that a plan says, its version aside."""
    facts = {**vars(plan), **vars(plan.identity)}
    return {name: value for name, value in facts.items() if name not in ("identity", "schema_version", "written")}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def leave_environment(url: str) -> None:
    """Note where this process runs, in a file under the store that is outside every digest."""
    data = canonical_json(environment())
    files.create_bytes(files.join(url, ENVIRONMENTS, f"{hashlib.sha256(data).hexdigest()[:12]}.json"), data)


def missing_shards(url: str, plan: Plan) -> list[int]:
    """Shards without a commit record, in order."""
    done = set(files.list_names(files.join(url, COMMITS)))
    return [shard for shard in range(plan.num_shards) if f"{shard_name(shard)}.json" not in done]


def write_shard(
    url: str,
    plan: Plan,
    shard: int,
    columns: Mapping[str, np.ndarray],
    index: Mapping[str, Any],
    rejected: tuple[int, ...] = (),
) -> Commit:
    """Write every array's shard and its index, read them back, commit. Returns the commit that stands.

    columns: one array of (rows, *row_shape) for every array of the plan. index: columns of the shard's Parquet file.
    """
    rows = plan.shard_range(shard)
    for spec in plan.arrays:
        values = columns[spec.name]
        assert values.shape == (len(rows), *spec.row_shape), (spec.name, values.shape)
        assert values.dtype == np.dtype(spec.dtype), (spec.name, values.dtype)
        files.write_bytes(files.join(url, plan.objects(shard)[spec.name]), encode_shard(plan, spec, shard, values))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(dict(index)), sink, compression="zstd")
    files.write_bytes(files.join(url, plan.objects(shard)[INDEX]), sink.getvalue().to_pybytes())
    objects = {name: files.digest_file(files.join(url, key)) for name, key in plan.objects(shard).items()}
    commit = Commit(shard, len(rows), rejected, objects)
    path = files.join(url, commit_name(shard))
    if not files.create_bytes(path, canonical_json(to_json(commit))):
        return commit_from_json(files.read_json(path))
    return commit


def committed_rejects(url: str, plan: Plan) -> list[tuple[str, str]]:
    """(key, reason) of every rejected row of the committed shards."""
    found = []
    for name in files.list_names(files.join(url, COMMITS)):
        commit = commit_from_json(files.read_json(files.join(url, COMMITS, name)))
        if commit.rejected:
            index = pq.read_table(io.BytesIO(files.read_bytes(files.join(url, plan.objects(commit.shard)[INDEX]))))
            found += [(row["key"], row["reason"]) for row in index.to_pylist() if row["reason"]]
    return found


def publish(url: str, plan: Plan) -> Manifest:
    """Check every shard against its commit and write the manifest.

    Raises ValueError naming what is missing or not as it was written.
    """
    missing = missing_shards(url, plan)
    if missing:
        raise ValueError(f"store {url} lacks shards {missing[:5]} ({len(missing)} in all); run the job again")
    metadata = metadata_objects(plan)
    for name, data in metadata.items():
        if files.read_bytes(files.join(url, name)) != data:
            raise ValueError(f"store {url}: {name} is not what this release writes; delete it and run the job again")
    with ThreadPoolExecutor(8) as pool:
        checked = list(pool.map(lambda shard: _check_commit(url, plan, shard), range(plan.num_shards)))
    manifest = Manifest(
        plan,
        tuple(row for rejected, _ in checked for row in rejected),
        {shard_name(shard): digest for shard, (_, digest) in enumerate(checked)},
        {name: hashlib.sha256(data).hexdigest() for name, data in metadata.items()},
    )
    files.write_json(files.join(url, MANIFEST), {**to_json(manifest), STORE_ID: manifest.store_id})
    return manifest


def _check_commit(url: str, plan: Plan, shard: int) -> tuple[tuple[int, ...], str]:
    """The rejected rows that a commit names, and the digest of its record."""
    record = commit_name(shard)
    data = files.read_bytes(files.join(url, record))
    try:
        commit = commit_from_json(json.loads(data))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"store {url}: {record} is no commit record; delete it and rerun") from None
    for name, key in plan.objects(shard).items():
        try:
            found = files.digest_file(files.join(url, key))
        except FileNotFoundError:
            found = None
        if found != commit.objects.get(name):
            raise ValueError(f"store {url}: {key} is not what {record} says; delete that record and rerun")
    return commit.rejected, hashlib.sha256(data).hexdigest()
