"""Repairing a published store exactly: records are restored from the manifest, damaged shards are made again.

The manifest holds the digest of everything, so a repair writes only the bytes that were published. It first makes the
damaged shards in a folder of their own, and then copies them into the store object by object. An interrupted repair can
be run again.
"""

import hashlib
from collections.abc import Callable, Iterable

from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.audit import Finding
from rdpm.pipeline.stores.layout import metadata_objects
from rdpm.pipeline.stores.reader import Store
from rdpm.storage_schemas.canonical import canonical_json
from rdpm.storage_schemas.manifest import PLAN, Commit, commit_name, plan_to_json, shard_name, to_json

_SCRATCH = ".repair"


MakeAgain = Callable[[str, list[int]], None]
"""make_again(folder, shards): write these shards, with their commits, into a store without manifest in `folder`."""


def repair(store: Store, findings: Iterable[Finding], make_again: MakeAgain) -> list[int]:
    """Repair what `verify_store` found. Returns the shards that were made again.

    Raises ValueError, before any shard is changed, when a shard that was made again differs from the published one.
    """
    restore_records(store)
    shards = sorted({f.shard for f in findings if f.shard is not None})
    damaged = [shard for shard in shards if not restore_commit(store, shard)]
    if damaged:
        scratch = files.join(store.url, _SCRATCH)
        files.remove(scratch)
        try:
            make_again(scratch, damaged)
            put_in_place(store, scratch, damaged)
        finally:
            files.remove(scratch)
    return damaged


def restore_records(store: Store) -> None:
    """Write the plan and the metadata of the arrays again. Raises ValueError when this release has another layout."""
    plan = store.manifest.plan
    metadata = metadata_objects(plan)
    for name, data in metadata.items():
        if hashlib.sha256(data).hexdigest() != store.manifest.metadata[name]:
            raise ValueError(
                f"{store.url} was written by another release, whose {name} differs; repair it with that release"
            )
    for name, data in {PLAN: canonical_json(plan_to_json(plan)), **metadata}.items():
        files.write_bytes(files.join(store.url, name), data)


def restore_commit(store: Store, shard: int) -> bool:
    """Write the commit of a shard again if all its objects are undamaged. Returns whether they are."""
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


def put_in_place(store: Store, remade: str, shards: list[int]) -> None:
    """Copy shards from the folder `remade` into the store, object by object, each checked against its commit.

    Raises ValueError, before the first copy, if a commit differs from the published one.
    """
    for shard in shards:
        digest = files.digest_file(files.join(remade, commit_name(shard))).sha256
        if digest != store.manifest.commits[shard_name(shard)]:
            raise ValueError(
                f"shard {shard} of {store.url}, made again, differs from what was published, so nothing was changed; "
                "repair it with the images, tokenizer, packages and kind of machine that made the store"
            )
    made = Store(remade, store.manifest)
    for shard in shards:
        objects = made.commit(shard).objects
        digests = {key: objects[name].sha256 for name, key in store.manifest.plan.objects(shard).items()}
        for name, sha256 in (*digests.items(), (commit_name(shard), store.manifest.commits[shard_name(shard)])):
            files.write_bytes(files.join(store.url, name), made.fetch(name, sha256))
