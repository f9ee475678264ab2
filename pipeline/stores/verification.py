"""Verifying a published store shard by shard: its bytes, whether its parts agree, and z'_T against its codes."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from rdpm.pipeline.foundation.progress import ProgressLine
from rdpm.pipeline.stores.audit import Finding, ShardAudit, audit_shard, audit_store
from rdpm.pipeline.stores.reader import Store
from rdpm.storage_schemas.tokens import KIND

TOLERANCE = 2**-9
"""Largest difference allowed between a stored z'_T and the one from its codes, as a share of the largest value: four
times the rounding of float16."""


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


def verify_store(store: Store, accumulate: Accumulate | None = None, quiet: bool = True) -> Verification:
    """Check a whole store. With `accumulate`, also check that the codes of every row give its stored z'_T.

    Holds one shard in memory at a time.
    """
    plan = store.manifest.plan
    findings, labels, agreed = list(audit_store(store)), Counter[int](), 0
    with ProgressLine("verify", plan.num_shards, "shards", quiet=quiet) as progress:
        for shard in range(plan.num_shards):
            audit = audit_shard(store, shard)
            findings += audit.findings
            labels.update(audit.labels.tolist())
            if accumulate and plan.kind == KIND and not audit.findings and "accumulated" in audit.arrays:
                wrong = list(_disagreements(store, shard, audit, accumulate))
                findings += wrong
                agreed += 0 if wrong else len(audit.arrays["codes"])
            progress.update(shard + 1)
    return Verification(tuple(findings), dict(sorted(labels.items())), agreed)


def _disagreements(store: Store, shard: int, audit: ShardAudit, accumulate: Accumulate) -> Iterator[Finding]:
    codes, stored = audit.arrays["codes"], audit.arrays["accumulated"].astype(np.float32)
    expected = accumulate(codes)
    distance = np.abs(expected - stored).reshape(len(codes), -1).max(axis=1)
    wrong = np.flatnonzero(~(distance <= TOLERANCE * np.abs(expected).max()))
    if len(wrong):
        name = store.manifest.plan.objects(shard)["accumulated"]
        yield Finding(name, shard, f"store {store.url}: {name} differs from what the codes give in {len(wrong)} rows")
