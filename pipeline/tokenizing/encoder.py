"""The worker of the stage: a tokenizer that encodes, writes and commits one shard per call. Runs as a Ray actor."""

import numpy as np
import torch

from rdpm.pipeline.cluster.shards import ShardDone
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.inference.batches import device_of_kind
from rdpm.pipeline.inference.codec import Codec, Encoded
from rdpm.pipeline.stores.writer import leave_environment, write_shard
from rdpm.pipeline.tokenizing.rows import ShardRows
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.tokens import OK, REJECTED, noise_seed


class ShardEncoder:
    """A tokenizer on the kind of device that the plan names. Raises ValueError where there is no such device."""

    def __init__(self, tokenizer: str, store: str, plan: Plan, threads: int) -> None:
        torch.set_num_threads(threads)
        self.store, self.plan, identity = store, plan, plan.tokens
        device = device_of_kind(identity.device)
        model = load_tokenizer(tokenizer)[0]
        self.codec = Codec(model, identity.encoder_batch, device, identity.precision, identity.compile)
        leave_environment(store)

    def encode(self, pixels: np.ndarray, seeds: np.ndarray) -> Encoded:
        """Codes and latents of a shard's pixels."""
        return self.codec.encode(pixels, seeds)

    def _seeds(self, rows: ShardRows) -> np.ndarray:
        pairs = zip(rows.key, rows.view, strict=True)
        return np.array([noise_seed(self.plan.tokens.seed, str(key), str(view)) for key, view in pairs], np.uint64)

    def rehearse(self, rows: ShardRows) -> None:
        """Encode the rows that hold an image, and write nothing."""
        usable = rows.reason == ""
        if usable.any():
            self.encode(rows.pixels[usable], self._seeds(rows)[usable])

    def __call__(self, shard: int, rows: ShardRows) -> ShardDone:
        """Encode, write and commit one shard."""
        seeds = self._seeds(rows)
        columns = vars(self.encode(rows.pixels, seeds)) | {"noise_seed": seeds, "label": rows.label}
        rejected = rows.reason != ""
        index = {
            "key": rows.key,
            "label": rows.label,
            "view": rows.view,
            "shard": np.full(len(seeds), shard, np.int32),
            "row": np.arange(len(seeds), dtype=np.int32),
            "width": rows.width,
            "height": rows.height,
            "source_digest": rows.source_digest,
            "status": np.where(rejected, REJECTED, OK),
            "reason": rows.reason,
        }
        kept = {spec.name: columns[spec.name] for spec in self.plan.arrays}
        start = self.plan.shard_range(shard).start
        rejected_rows = tuple(int(start + row) for row in np.flatnonzero(rejected))
        commit = write_shard(self.store, self.plan, shard, kept, index, rejected_rows)
        return ShardDone(shard, commit.rows, len(commit.rejected))
