"""Checking a published store: every digest, and that its arrays, index, commits and manifest say the same."""

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
    """Something wrong. name: the object under the store. shard: the one it belongs to; None for the whole store's."""

    name: str
    shard: int | None
    sentence: str


@dataclass(frozen=True)
class ShardAudit:
    """What was found in a shard; its arrays that are whole, latents left out; and the labels of rows with an image."""

    findings: tuple[Finding, ...]
    arrays: dict[str, np.ndarray]
    labels: np.ndarray


def audit_store(store: Store) -> Iterator[Finding]:
    """Check what belongs to no shard: the plan, the metadata of the arrays, and that no record is a stranger."""
    plan = store.manifest.plan
    try:
        found = files.read_bytes(files.join(store.url, PLAN))
    except FileNotFoundError:
        found = b""
    if found != canonical_json(plan_to_json(plan)):
        yield Finding(PLAN, None, f"store {store.url}: {PLAN} is not the manifest's plan")
    for name, sha256 in store.manifest.metadata.items():
        try:
            store.fetch(name, sha256)
        except DamagedStore as damage:
            yield Finding(name, None, str(damage))
    for folder, ending in ((INDEX, "parquet"), (COMMITS, "json")):
        known = {f"{shard_name(shard)}.{ending}" for shard in range(plan.num_shards)}
        for name in sorted(set(files.list_names(files.join(store.url, folder))) - known):
            yield Finding(f"{folder}/{name}", None, f"store {store.url}: {folder}/{name} is of no shard; remove it")


def audit_shard(store: Store, shard: int) -> ShardAudit:
    """Check every object of a shard against its commit, and, where all are whole, what they say against each other."""
    names = store.manifest.plan.objects(shard)
    findings: list[Finding] = []
    arrays: dict[str, np.ndarray] = {}
    try:
        commit = store.commit(shard)
    except DamagedStore as damage:
        return ShardAudit((Finding(commit_name(shard), shard, str(damage)),), {}, np.empty(0, np.int32))
    for name, key in names.items():
        try:
            data = store.fetch(key, commit.objects[name].sha256)
        except DamagedStore as damage:
            findings.append(Finding(key, shard, str(damage)))
            continue
        if name not in (INDEX, "latents"):
            arrays[name] = store.decode(name, shard, data)
    if not findings:
        index = store.shard_index(shard)
        told = _contradictions(store, shard, arrays, index)
        findings += [Finding(key, shard, f"store {store.url}: {key} {what}") for key, what in told]
    labels = (
        np.delete(arrays["label"], np.array(_places(store, shard), int)) if "label" in arrays else np.empty(0, np.int32)
    )
    return ShardAudit(tuple(findings), arrays, labels)


def _places(store: Store, shard: int) -> list[int]:
    """Where the rejects of a shard lie, counted from its first row."""
    return [row - store.manifest.plan.shard_range(shard).start for row in store.manifest.rejected_of(shard)]


def _contradictions(
    store: Store, shard: int, arrays: dict[str, np.ndarray], index: pa.Table
) -> Iterator[tuple[str, str]]:
    """(object, what is wrong with it) wherever whole objects of one shard do not fit together."""
    plan = store.manifest.plan
    names, rows = plan.objects(shard), len(plan.shard_range(shard))
    if index.num_rows != rows:
        yield names[INDEX], f"has {index.num_rows} rows, not {rows}"
        return
    for name, values in arrays.items():
        if name in index.column_names and not np.array_equal(index[name].to_numpy(), values):
            yield names[name], f"is not the column {name} of {names[INDEX]}"
    if plan.kind == KIND:
        yield from _token_contradictions(store, shard, arrays, index)


def _token_contradictions(
    store: Store, shard: int, arrays: dict[str, np.ndarray], index: pa.Table
) -> Iterator[tuple[str, str]]:
    plan = store.manifest.plan
    names, identity = plan.objects(shard), plan.tokens
    rejected = np.zeros(index.num_rows, bool)
    rejected[_places(store, shard)] = True
    if not np.array_equal(index["status"].to_numpy() != OK, rejected):
        yield names[INDEX], "rejects other rows than the manifest"
    if not np.array_equal(index["reason"].to_numpy() != "", rejected):
        yield names[INDEX], "has a reason for a row that is no reject, or none for a reject"
    if (index["shard"].to_numpy() != shard).any() or not np.array_equal(index["row"], np.arange(index.num_rows)):
        yield names[INDEX], "does not count its rows as they lie"
    pairs = zip(index["key"].to_pylist(), index["view"].to_pylist(), strict=True)
    seeds = np.array([noise_seed(identity.seed, key, view) for key, view in pairs], np.uint64)
    if not np.array_equal(seeds, arrays["noise_seed"]):
        yield names["noise_seed"], "are not the seeds of the keys and views of the index"
    largest, size = int(arrays["codes"].max()), identity.codebook_size
    if largest >= size:
        yield names["codes"], f"holds code {largest}, and the codebook has {size}"
