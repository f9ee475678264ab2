"""A tokenizer replica: the rows of one shard to a committed shard. Runs as a Ray actor."""

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
    """A tokenizer on one device. Raises ValueError where that is not of the kind that the plan names."""

    def __init__(self, tokenizer: str, store: str, plan: Plan, threads: int) -> None:
        torch.set_num_threads(threads)
        self.store, self.plan, identity = store, plan, plan.tokens
        device = device_of_kind(identity.device)
        model = load_tokenizer(tokenizer)[0]
        self.codec = Codec(model, identity.encoder_batch, device, identity.precision, identity.compile)
        leave_environment(store)

    def encode(self, pixels: np.ndarray, seeds: np.ndarray) -> Encoded:
        """What the tokenizer makes of a shard's pixels and seeds."""
        return self.codec.encode(pixels, seeds)

    def __call__(self, shard: int, rows: ShardRows) -> ShardDone:
        """Encode, write and commit one shard."""
        pairs = zip(rows.key, rows.view, strict=True)
        seeds = np.array([noise_seed(self.plan.tokens.seed, str(key), str(view)) for key, view in pairs], np.uint64)
        columns = vars(self.encode(rows.pixels, seeds)) | {"noise_seed": seeds, "label": rows.label}
        bad = rows.reason != ""
        index = {
            "key": rows.key,
            "label": rows.label,
            "view": rows.view,
            "shard": np.full(len(seeds), shard, np.int32),
            "row": np.arange(len(seeds), dtype=np.int32),
            "width": rows.width,
            "height": rows.height,
            "source_digest": rows.source_digest,
            "status": np.where(bad, REJECTED, OK),
            "reason": rows.reason,
        }
        wanted = {spec.name: columns[spec.name] for spec in self.plan.arrays}
        start = self.plan.shard_range(shard).start
        rejected = tuple(int(start + row) for row in np.flatnonzero(bad))
        commit = write_shard(self.store, self.plan, shard, wanted, index, rejected)
        return ShardDone(shard, commit.rows, len(commit.rejected))
