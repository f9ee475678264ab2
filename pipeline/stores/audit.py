"""Checking a published store: every digest, and whether its arrays, index, commits and manifest agree."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.reader import DamagedStore, Store
from rdpm.storage_schemas.canonical import canonical_json
from rdpm.storage_schemas.manifest import COMMITS, INDEX, PLAN, commit_name, plan_to_json, shard_name
from rdpm.storage_schemas.tokens import KIND, OK, noise_seed


@dataclass(frozen=True)
class Finding:
    """Something that is wrong in a store."""

    name: str
    """Name of the object under the store."""
    shard: int | None
    """Shard that the object belongs to; None for an object of the whole store."""
    sentence: str
    """What is wrong with it."""


@dataclass(frozen=True)
class ShardAudit:
    """What a check of one shard found and read."""

    findings: tuple[Finding, ...]
    """What is wrong."""
    arrays: dict[str, np.ndarray]
    """The undamaged arrays of the shard by name, without `latents`."""
    labels: np.ndarray
    """Labels of the rows that hold an image; empty when the labels are damaged."""


def audit_store(store: Store) -> Iterator[Finding]:
    """Check what belongs to no shard: the plan, the metadata of the arrays, and files that belong to no shard.

    Files under `environments` are part of no digest and are not checked.
    """
    plan = store.manifest.plan
    try:
        written = files.read_bytes(files.join(store.url, PLAN))
    except FileNotFoundError:
        written = b""
    if written != canonical_json(plan_to_json(plan)):
        yield Finding(PLAN, None, f"store {store.url}: {PLAN} is not the plan in the manifest")
    for name, sha256 in store.manifest.metadata.items():
        try:
            store.fetch(name, sha256)
        except DamagedStore as damage:
            yield Finding(name, None, str(damage))
    for folder, ending in ((INDEX, "parquet"), (COMMITS, "json")):
        known = {f"{shard_name(shard)}.{ending}" for shard in range(plan.num_shards)}
        for name in sorted(set(files.list_names(files.join(store.url, folder))) - known):
            sentence = f"store {store.url}: {folder}/{name} belongs to no shard; remove it"
            yield Finding(f"{folder}/{name}", None, sentence)


def audit_shard(store: Store, shard: int) -> ShardAudit:
    """Check every object of a shard against its commit and, if none is damaged, the objects against each other."""
    names = store.manifest.plan.objects(shard)
    findings: list[Finding] = []
    arrays: dict[str, np.ndarray] = {}
    try:
        commit = store.commit(shard)
    except DamagedStore as damage:
        return ShardAudit((Finding(commit_name(shard), shard, str(damage)),), {}, np.empty(0, np.int32))

    def fetch(name: str) -> bytes | DamagedStore:
        try:
            return store.fetch(names[name], commit.objects[name].sha256)
        except DamagedStore as damage:
            return damage

    in_order = map if files.is_local(store.url) else files.in_parallel
    for (name, key), data in zip(names.items(), in_order(fetch, names), strict=True):
        if isinstance(data, DamagedStore):
            findings.append(Finding(key, shard, str(data)))
        elif name not in (INDEX, "latents"):
            arrays[name] = store.decode(name, shard, data)
    if not findings:
        index = store.shard_index(shard)
        wrong = _contradictions(store, shard, arrays, index)
        findings += [Finding(key, shard, f"store {store.url}: {key} {problem}") for key, problem in wrong]
    labels = np.empty(0, np.int32)
    if "label" in arrays:
        labels = np.delete(arrays["label"], np.array(_rejected_in_shard(store, shard), int))
    return ShardAudit(tuple(findings), arrays, labels)


def _rejected_in_shard(store: Store, shard: int) -> list[int]:
    """The rejected rows of a shard, counted from its first row."""
    return [row - store.manifest.plan.shard_range(shard).start for row in store.manifest.rejected_of(shard)]


def _contradictions(
    store: Store, shard: int, arrays: dict[str, np.ndarray], index: pa.Table
) -> Iterator[tuple[str, str]]:
    """(object, what is wrong with it) wherever undamaged objects of one shard contradict each other."""
    plan = store.manifest.plan
    names, rows = plan.objects(shard), len(plan.shard_range(shard))
    if index.num_rows != rows:
        yield names[INDEX], f"has {index.num_rows} rows, not {rows}"
        return
    for name, values in arrays.items():
        if name in index.column_names and not np.array_equal(index[name].to_numpy(), values):
            yield names[name], f"differs from the column {name} of {names[INDEX]}"
    if plan.kind == KIND:
        yield from _token_contradictions(store, shard, arrays, index)


def _token_contradictions(
    store: Store, shard: int, arrays: dict[str, np.ndarray], index: pa.Table
) -> Iterator[tuple[str, str]]:
    plan = store.manifest.plan
    names, identity = plan.objects(shard), plan.tokens
    rejected = np.zeros(index.num_rows, bool)
    rejected[_rejected_in_shard(store, shard)] = True
    if not np.array_equal(index["status"].to_numpy() != OK, rejected):
        yield names[INDEX], "rejects other rows than the manifest"
    if not np.array_equal(index["reason"].to_numpy() != "", rejected):
        yield names[INDEX], "has a reason for a row that is not rejected, or lacks one for a rejected row"
    if (index["shard"].to_numpy() != shard).any() or not np.array_equal(index["row"], np.arange(index.num_rows)):
        yield names[INDEX], "does not number its rows in their order"
    pairs = zip(index["key"].to_pylist(), index["view"].to_pylist(), strict=True)
    seeds = np.array([noise_seed(identity.seed, key, view) for key, view in pairs], np.uint64)
    if not np.array_equal(seeds, arrays["noise_seed"]):
        yield names["noise_seed"], "are not the seeds of the keys and views of the index"
    largest, size = int(arrays["codes"].max()), identity.codebook_size
    if largest >= size:
        yield names["codes"], f"holds code {largest}, and the codebook has {size}"
