"""Verifying a published store shard by shard: its bytes, whether its parts agree, and z'_T against its codes."""

import contextlib
import json
import math
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import ProgressLine
from rdpm.pipeline.stores.audit import Finding, ShardAudit, audit_shard, audit_store
from rdpm.pipeline.stores.reader import Store
from rdpm.storage_schemas.tokens import KIND

TOLERANCE = 2**-9
"""Largest difference allowed between a stored z'_T and the one from its codes, as a share of the largest value: four
times the rounding of float16."""
_SHARDS_AT_ONCE = 16  # most shards that a process gets and reports together


@dataclass(frozen=True)
class Verification:
    """The result of verifying a store."""

    findings: tuple[Finding, ...]
    """What is wrong."""
    labels: dict[int, int]
    """Number of rows that hold an image, by label."""
    accumulated: int
    """Number of rows whose stored z'_T agrees with their codes."""


Accumulate = Callable[[np.ndarray], np.ndarray]
"""Codes (n, T, h, w) to z'_T (n, d, h, w) float32, by the tokenizer that wrote the store."""


@dataclass(frozen=True)
class _Check:
    """How a process verifies one shard. Picklable if `accumulate` is."""

    store: Store
    """What is verified."""
    accumulate: Accumulate | None
    """See `verify_store`."""

    def __call__(self, shard: int) -> Verification:
        """The result for one shard."""
        audit = audit_shard(self.store, shard)
        findings, agreed = audit.findings, 0
        whole_tokens = self.store.manifest.plan.kind == KIND and not audit.findings
        if self.accumulate and whole_tokens and "accumulated" in audit.arrays:
            findings = tuple(_disagreements(self.store, shard, audit, self.accumulate))
            agreed = 0 if findings else len(audit.arrays["codes"])
        return Verification(findings, dict(Counter(audit.labels.tolist())), agreed)


def verify_store(
    store: Store, accumulate: Accumulate | None = None, quiet: bool = True, processes: int = 1, resume: str = ""
) -> Verification:
    """Check a whole store. With `accumulate`, also check that the codes of every row give its stored z'_T.

    processes: how many check shards at the same time. Each has one shard in memory or, of a remote store, as many as
    keep 64 requests under way in all processes together. More than one are started afresh ("spawn"), so `accumulate`
    must be picklable then. resume: a local file that lists the undamaged shards as they are found; a verification that
    begins with such a file leaves them out. It is deleted when the whole store is undamaged. Raises ValueError when a
    process dies and when the file is of another verification.
    """
    plan = store.manifest.plan
    header = {"store_id": store.id, "accumulated": accumulate is not None}
    findings = list(audit_store(store))
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(_Ledger(resume, header)) if resume else None
        known = ledger.known if ledger else {}
        progress = stack.enter_context(ProgressLine("verify", plan.num_shards, "shards", len(known), quiet=quiet))
        labels = Counter[int]()
        for found in known.values():
            labels.update(found.labels)
        agreed = sum(found.accumulated for found in known.values())
        left = [shard for shard in range(plan.num_shards) if shard not in known]
        for done, found in enumerate(_results(_Check(store, accumulate), left, processes), 1):
            findings += found.findings
            labels.update(found.labels)
            agreed += found.accumulated
            if ledger and not found.findings:
                ledger.add(left[done - 1], found)
            progress.update(len(known) + done)
    if resume and not findings:
        files.remove(resume)
    return Verification(tuple(findings), dict(sorted(labels.items())), agreed)


class _Ledger:
    """A file with one line of JSON for what is verified, and one for each undamaged shard."""

    def __init__(self, path: str, header: dict[str, object]) -> None:
        """Read what the file lists; a last line that was cut is dropped. Raises ValueError when it is of others."""
        self.known: dict[int, Verification] = {}
        lines = []
        if files.exists(path):
            lines = files.read_bytes(path).decode(errors="replace").split("\n")[:-1]
        try:
            if lines and json.loads(lines[0]) != header:
                raise ValueError
            for line in lines[1:]:
                shard, labels, agreed = json.loads(line)
                self.known[shard] = Verification((), {int(label): count for label, count in labels.items()}, agreed)
        except (ValueError, TypeError, AttributeError):
            raise ValueError(f"{path} was not left by this verification of this store; give another file") from None
        lines = lines or [json.dumps(header)]
        files.write_bytes(path, "".join(f"{line}\n" for line in lines).encode())
        self._file = open(files.local_path(path), "a", encoding="utf-8")  # noqa: SIM115, closed on exit

    def add(self, shard: int, found: Verification) -> None:
        """Remember an undamaged shard."""
        self._file.write(json.dumps([shard, found.labels, found.accumulated]) + "\n")
        self._file.flush()

    def __enter__(self) -> "_Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _results(check: _Check, shards: Sequence[int], processes: int) -> Iterator[Verification]:
    """The result for every shard, in their order."""
    objects = len(check.store.manifest.plan.objects(0))
    at_once = 1 if files.is_local(check.store.url) else math.ceil(files.AT_ONCE / (objects * processes))
    if processes == 1:
        yield from _checked(check, shards, at_once)
        return
    size = max(at_once, min(_SHARDS_AT_ONCE, len(shards) // (4 * processes)))
    parts = [shards[first : first + size] for first in range(0, len(shards), size)]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (check, at_once)) as pool:
        try:
            for found in pool.map(_check_here, parts):
                yield from found
        except BrokenProcessPool:
            raise ValueError(
                f"a process that verifies {check.store.url} was killed (is memory short for a shard in each of "
                f"{processes}?); give fewer processes"
            ) from None


def _checked(check: _Check, shards: Sequence[int], at_once: int) -> Iterator[Verification]:
    """The result for every shard, in their order, of so many shards at a time."""
    return map(check, shards) if at_once == 1 else files.in_parallel(check, shards, at_once)


_here: tuple[_Check, int]  # of a process of the pool: what checks a shard, and how many at a time


def _check_here(shards: Sequence[int]) -> list[Verification]:
    check, at_once = _here
    return list(_checked(check, shards, at_once))


def _begin(check: _Check, at_once: int) -> None:
    """Keep the check of this process, and end it with the process that started it, even if that one is killed."""
    global _here
    _here = check, at_once
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started it is interrupted too, and ends it
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


def _disagreements(store: Store, shard: int, audit: ShardAudit, accumulate: Accumulate) -> Iterator[Finding]:
    codes, stored = audit.arrays["codes"], audit.arrays["accumulated"].astype(np.float32)
    expected = accumulate(codes)
    distance = np.abs(expected - stored).reshape(len(codes), -1).max(axis=1)
    wrong = np.flatnonzero(~(distance <= TOLERANCE * np.abs(expected).max()))
    if len(wrong):
        name = store.manifest.plan.objects(shard)["accumulated"]
        yield Finding(name, shard, f"store {store.url}: {name} differs from what the codes give in {len(wrong)} rows")
