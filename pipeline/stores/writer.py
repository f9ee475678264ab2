"""Writing a store exactly once: plan, shards, commits, manifest, in that order.

One call writes a whole shard and reads its objects back before it commits. A retry writes the same bytes, and the first
commit is kept, so the store is the same after any number of workers, jobs and kills.
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
from rdpm.pipeline.foundation.config import saved_identity
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
from rdpm.storage_schemas.samples import SampleIdentity


def start_store(url: str, plan: Plan) -> Plan:
    """Write the plan and the metadata of the arrays, unless they exist. Returns the plan of the store.

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
    """Write the shard of every array and its index, read them back, and commit. Returns the commit that is kept.

    columns: an array (rows, *row_shape) for every array of the plan. index: columns of the shard's Parquet file.
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
    if not files.create_bytes(files.join(url, commit_name(shard)), canonical_json(to_json(commit))):
        return _read_commit(url, commit_name(shard))[0]
    return commit


def _read_commit(url: str, name: str) -> tuple[Commit, str]:
    """A commit and the digest of its record. Raises ValueError when it is no commit."""
    data = files.read_bytes(files.join(url, name))
    try:
        return commit_from_json(json.loads(data)), hashlib.sha256(data).hexdigest()
    except ValueError:
        raise ValueError(f"store {url}: {name} is no commit record; delete it and run the job again") from None


def committed_rejects(url: str, plan: Plan) -> list[tuple[str, str]]:
    """(key, reason) of every rejected row of the committed shards."""
    rejects = []
    for name in files.list_names(files.join(url, COMMITS)):
        commit, _ = _read_commit(url, f"{COMMITS}/{name}")
        if commit.rejected:
            index = pq.read_table(io.BytesIO(files.read_bytes(files.join(url, plan.objects(commit.shard)[INDEX]))))
            rejects += [(row["key"], row["reason"]) for row in index.to_pylist() if row["reason"]]
    return rejects


def publish(url: str, plan: Plan) -> Manifest:
    """Check every shard against its commit and write the manifest.

    Raises ValueError that names what is missing or is not what was written.
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
    """Check the objects of a shard against its commit. Returns its rejected rows and the digest of the commit."""
    record = commit_name(shard)
    commit, sha256 = _read_commit(url, record)
    for name, key in plan.objects(shard).items():
        try:
            digest = files.digest_file(files.join(url, key))
        except FileNotFoundError:
            digest = None
        if digest != commit.objects.get(name):
            raise ValueError(f"store {url}: {key} does not match {record}; delete that record and run the job again")
    return commit.rejected, sha256
