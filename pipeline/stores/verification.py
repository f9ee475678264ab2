"""Verifying a published store, shard by shard: its bytes, its sums, and its codes by the tokenizer that wrote them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.exports.exports import load_tokenizer, read_card
from rdpm.pipeline.foundation.progress import ProgressLine
from rdpm.pipeline.stores.audit import Finding, ShardAudit, audit_shard, audit_store
from rdpm.pipeline.stores.reader import Store
from rdpm.storage_schemas.tokens import KIND

TOLERANCE = 2**-9
"""How far a stored z'_T may be from what its codes give, as a share of the largest: four times float16's rounding."""
_BATCH = 64


@dataclass(frozen=True)
class Verification:
    """What was found. labels: rows with an image, by label. accumulated: rows whose z'_T was made again and agreed."""

    findings: tuple[Finding, ...]
    labels: dict[int, int]
    accumulated: int


def tokenizer_of(store: Store, folder: str) -> Tokenizer:
    """The tokenizer in a folder. Raises ValueError when it is not the one that wrote the store."""
    wrote, given = store.manifest.plan.identity.get("tokenizer_digest"), read_card(folder, "tokenizer").digest
    if given != wrote:
        raise ValueError(f"tokenizer {folder!r} is {given[:12]}, and {store.url} was written by {str(wrote)[:12]}")
    return load_tokenizer(folder)[0]


def verify_store(store: Store, tokenizer: Tokenizer | None = None, quiet: bool = True) -> Verification:
    """Check all of a store; with its tokenizer also that every row's codes give the accumulated latent stored with it.

    Holds one shard at a time.
    """
    plan = store.manifest.plan
    findings, labels, agreed = list(audit_store(store)), Counter[int](), 0
    with ProgressLine("verify", plan.num_shards, "shards", quiet=quiet) as progress:
        for shard in range(plan.num_shards):
            audit = audit_shard(store, shard)
            findings += audit.findings
            labels.update(audit.labels.tolist())
            if tokenizer and plan.kind == KIND and not audit.findings and "accumulated" in audit.arrays:
                wrong = list(_disagreements(store, shard, audit, tokenizer))
                findings += wrong
                agreed += 0 if wrong else len(audit.arrays["codes"])
            progress.update(shard + 1)
    return Verification(tuple(findings), dict(sorted(labels.items())), agreed)


def _disagreements(store: Store, shard: int, audit: ShardAudit, tokenizer: Tokenizer) -> Iterator[Finding]:
    codes, stored = audit.arrays["codes"], audit.arrays["accumulated"].astype(np.float32)
    made = accumulated_of(tokenizer, codes)
    distance = np.abs(made - stored).reshape(len(codes), -1).max(axis=1)
    wrong = np.flatnonzero(~(distance <= TOLERANCE * np.abs(made).max()))
    if len(wrong):
        name = store.manifest.plan.objects(shard)["accumulated"]
        yield Finding(name, shard, f"store {store.url}: {name} is not what the codes give in {len(wrong)} rows")


@torch.no_grad()
def accumulated_of(tokenizer: Tokenizer, codes: np.ndarray) -> np.ndarray:
    """z'_T (n, d, h, w) float32 of codes (n, T, h, w)."""
    parts = []
    for start in range(0, len(codes), _BATCH):
        part = torch.from_numpy(codes[start : start + _BATCH].astype(np.int64))
        parts.append(tokenizer.quantizer.codebook.accumulated(part, part.shape[1]).numpy())
    return np.concatenate(parts)
