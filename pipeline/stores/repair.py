"""Repairing a published store exactly: records are restored from the manifest, damaged shards are encoded again.

The manifest names the digest of everything, so nothing but the bytes that were published is ever put in place. A shard
is made whole beside the store first and then put in object by object; a repair cut short anywhere is simply run again.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.audit import Finding
from rdpm.pipeline.stores.layout import metadata_objects
from rdpm.pipeline.stores.reader import Store
from rdpm.pipeline.tokenizing.stage import EncodeConfig, encode_again
from rdpm.storage_schemas.manifest import PLAN, Commit, canonical_json, commit_name, shard_name, to_json

_SCRATCH = ".repair"


def repair(store: Store, findings: Iterable[Finding], config: EncodeConfig) -> list[int]:
    """Mend what `verify_store` found by the config that made the store. Returns the shards that were encoded again.

    Raises ValueError, with no shard touched, when one of them comes out otherwise than it was published.
    """
    restore_records(store)
    shards = sorted({f.shard for f in findings if f.shard is not None})
    damaged = [shard for shard in shards if not restore_commit(store, shard)]
    if damaged:
        scratch = files.join(store.url, _SCRATCH)
        files.remove(scratch)
        try:
            encode_again(replace(config, out=scratch), store.manifest.plan, damaged)
            put_in_place(store, scratch, damaged)
        finally:
            files.remove(scratch)
    return damaged


def restore_records(store: Store) -> None:
    """Write the plan and the arrays' metadata again. Raises ValueError when this release lays arrays out otherwise."""
    plan = store.manifest.plan
    metadata = metadata_objects(plan)
    for name, data in metadata.items():
        if hashlib.sha256(data).hexdigest() != store.manifest.metadata[name]:
            raise ValueError(
                f"{store.url} was written by another release, whose {name} differs; repair it with that one"
            )
    for name, data in {PLAN: canonical_json(to_json(plan)), **metadata}.items():
        files.write_bytes(files.join(store.url, name), data)


def restore_commit(store: Store, shard: int) -> bool:
    """Write a shard's commit record again, if every object of the shard is the one that it named. Returns whether."""
    plan = store.manifest.plan
    keys = plan.objects(shard)
    try:
        objects = {name: files.digest_file(files.join(store.url, key)) for name, key in keys.items()}
    except FileNotFoundError:
        return False
    commit = Commit(shard, len(plan.shard_range(shard)), store.manifest.rejected_of(shard), objects)
    data = canonical_json(to_json(commit))
    if hashlib.sha256(data).hexdigest() != store.manifest.commits[shard_name(shard)]:
        return False
    files.write_bytes(files.join(store.url, commit_name(shard)), data)
    return True


def put_in_place(store: Store, made: str, shards: list[int]) -> None:
    """Move shards from where they were made again. Raises ValueError, before the first, unless all are as published."""
    for shard in shards:
        found = files.digest_file(files.join(made, commit_name(shard))).sha256
        if found != store.manifest.commits[shard_name(shard)]:
            raise ValueError(
                f"shard {shard} of {store.url} comes out otherwise than it was published, so nothing was changed; "
                "repair it with the images, the tokenizer, the packages and the kind of machine that made it"
            )
    for shard in shards:
        for name in (*store.manifest.plan.objects(shard).values(), commit_name(shard)):
            files.write_bytes(files.join(store.url, name), files.read_bytes(files.join(made, name)))
