"""How the objects of a shard get their names in a store, so that no attempt can hurt what another one wrote.

An attempt writes each object under a name made of its bytes, `staged/<shard>-<sha256>`, and reads it back. Its commit,
put only if the shard has none, decides between attempts. Only objects that the commit names are linked to their keys in
the arrays and the index, and then the staged names are deleted. So wherever an attempt ends, the objects of a committed
shard lie under their keys or are still staged, and anybody may finish the rest (`settle_all`).
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable

from rdpm.pipeline.foundation import files
from rdpm.storage_schemas.manifest import (
    COMMITS,
    MANIFEST,
    STAGED,
    Commit,
    ObjectDigest,
    Plan,
    check_commit,
    commit_from_json,
    commit_name,
    shard_name,
    staged_name,
)

_STAGED_NAME = re.compile(r"(\d{5,})-([0-9a-f]{64})")


def stage(url: str, shard: int, data: bytes) -> ObjectDigest:
    """Write an object of a shard under its staged name and read it back. Returns what it is.

    Raises FileNotFoundError when it was deleted meanwhile, which happens only to a shard that has a commit, and OSError
    when other bytes came back.
    """
    digest = ObjectDigest(len(data), hashlib.sha256(data).hexdigest())
    path = files.join(url, staged_name(shard, digest.sha256))
    files.write_bytes(path, data)
    if files.read_bytes(path) != data:
        raise OSError(f"{path} was written and other bytes came back; check the disk or the server, then run again")
    return digest


def read_commit(url: str, plan: Plan, shard: int) -> tuple[Commit, str]:
    """The commit of a shard and the digest of its record.

    Raises FileNotFoundError when there is none, and ValueError when it is no commit of this shard of the plan.
    """
    name = commit_name(shard)
    data = files.read_bytes(files.join(url, name))
    try:
        commit = commit_from_json(json.loads(data))
        check_commit(commit, plan, shard)
    except ValueError as error:
        raise ValueError(
            f"store {url}: {name} is no commit record; delete it and run the job again ({error})"
        ) from None
    return commit, hashlib.sha256(data).hexdigest()


def settle(url: str, plan: Plan, commit: Commit, others: Iterable[str] = (), at_once: int = 8) -> None:
    """Give the objects of a commit their keys, then delete what is staged of them and of `others`, given by sha256.

    Idempotent, and safe while others do the same. A key may hold what an attempt of an earlier release left, which
    wrote there before it committed; that is replaced. In a published store no key is touched. Raises ValueError when an
    object is neither staged nor at its key. at_once: requests at the same time.
    """
    if not files.exists(files.join(url, MANIFEST)):
        keys = plan.objects(commit.shard)
        with files.together():
            for _ in files.in_parallel(lambda name: _place(url, commit, name, keys[name]), keys, at_once):
                pass
    staged = {digest.sha256 for digest in commit.objects.values()}.union(others)
    files.remove_all([files.join(url, staged_name(commit.shard, sha256)) for sha256 in sorted(staged)])


def _place(url: str, commit: Commit, name: str, key: str) -> None:
    """Give one object of a commit its key.

    Linux may say that a file is not there while another attempt replaces it. So a staged name that is there is tried
    again.
    """
    wanted, target = commit.objects[name], files.join(url, key)
    staged = files.join(url, staged_name(commit.shard, wanted.sha256))
    while True:
        try:
            files.link(staged, target, replace=True)
            return
        except FileNotFoundError:  # another has placed it and deleted the staged name, or stages it again just now
            again = files.exists(staged)
        try:
            if files.digest_file(target) == wanted:
                return
        except FileNotFoundError:
            pass
        if not again:
            raise unlike_commit(url, commit.shard, key)


def unlike_commit(url: str, shard: int, key: str) -> ValueError:
    """The error for an object that is missing or is not what the commit of its shard says."""
    record = commit_name(shard)
    return ValueError(f"store {url}: {key} does not match {record}; delete that record and run the job again")


def settle_all(url: str, plan: Plan) -> None:
    """Settle every committed shard that has staged names, and delete these names. Other shards are left alone."""
    staged: dict[int, list[str]] = {}
    for name in files.list_names(files.join(url, STAGED)):
        if found := _STAGED_NAME.fullmatch(name):
            staged.setdefault(int(found[1]), []).append(found[2])
    if not staged:
        return
    left = [shard for shard in committed_shards(url, plan) if shard in staged]

    def finish(shard: int) -> None:
        settle(url, plan, read_commit(url, plan, shard)[0], staged[shard], at_once=1)  # and many shards at a time

    for _ in files.in_parallel(finish, left):
        pass


def committed_shards(url: str, plan: Plan) -> list[int]:
    """Shards with a commit record, in order."""
    committed = set(files.list_names(files.join(url, COMMITS)))
    return [shard for shard in range(plan.num_shards) if f"{shard_name(shard)}.json" in committed]


def sweep(url: str) -> None:
    """Delete everything staged. For a store whose shards are all settled: what is staged then came too late."""
    with contextlib.suppress(OSError):  # a late attempt is writing there just now; the next sweep deletes it
        files.remove(files.join(url, STAGED))
