"""A store of any number of rows whose shards are made up when they are read, to measure what a stream over it costs.

    python virtual_store.py publish ROWS FOLDER
    python virtual_store.py measure FOLDER

The manifest is complete, with a commit for every shard, and is opened from disk like any other.
"""

import hashlib
import json
import resource
import sys

import numpy as np

from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.layout import metadata_objects
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.pipeline.stream.token_stream import StreamConfig, TokenStream
from rdpm.storage_schemas.manifest import STORE_ID, Manifest, Plan, shard_name, to_json
from rdpm.storage_schemas.tokens import KIND, TokenIdentity, token_arrays

SHARD_ROWS, WINDOW = 4096, 2


class VirtualStore(Store):
    """Row n has label n % 1000, seed n, and codes made of n."""

    shards_read = 0

    def shard(self, shard: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        VirtualStore.shards_read += 1
        rows = np.array(self.manifest.plan.shard_range(shard))
        columns = {
            "codes": np.broadcast_to((rows % 4096).astype(np.uint16)[:, None, None, None], (len(rows), 2, 2, 2)).copy(),
            "noise_seed": rows.astype(np.uint64),
            "label": (rows % 1000).astype(np.int32),
        }
        return {name: columns[name] for name in names}


def publish_virtual(url: str, rows: int) -> None:
    """Write the manifest of such a store; every thousandth row of the first million is a reject."""
    arrays = token_arrays(2, (4, 2, 2), with_accumulated=False, with_latents=False)
    identity = TokenIdentity(
        tokenizer_digest="t0",
        tokenizer_config={"quantizer": {"codebook_size": 4096, "code_dim": 4}},
        noise_version=1,
        source_digest="s0",
        classes=("one",),
        views=("center",),
        seed=0,
        encoder_batch=64,
        precision="fp32",
        compile=False,
        device="cpu",
    )
    plan = Plan(KIND, rows, SHARD_ROWS, 256, arrays, identity)
    commits = {shard_name(shard): f"{shard:064x}" for shard in range(plan.num_shards)}
    metadata = {name: hashlib.sha256(data).hexdigest() for name, data in metadata_objects(plan).items()}
    manifest = Manifest(plan, tuple(range(0, 1_000_000, 1000)), commits, metadata)
    files.write_json(f"{url}/manifest.json", {**to_json(manifest), STORE_ID: manifest.store_id})


def measure(url: str) -> dict[str, int]:
    """Shards read and memory used from opening the store to the fourth batch, in the middle of an epoch."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    manifest = open_store(url, KIND).manifest
    cache_gib = 3 * WINDOW * SHARD_ROWS * 28 / 2**30  # three windows
    config = StreamConfig(cache=f"{url}/cache", cache_gib=cache_gib, window=WINDOW)
    stream = TokenStream([VirtualStore(url, manifest)], seed=0, latents=False, config=config)
    assert stream.window == WINDOW
    middle = len(stream) // 2 // 256
    batches = list(stream.batches(middle, middle + 4, batch=256, micro_batch=256))
    seeds = np.concatenate([batch.seeds for batch in batches])
    assert all((batch.labels == batch.seeds % 1000).all() for batch in batches)
    assert len(np.unique(seeds)) == len(seeds)
    assert not ((seeds % 1000 == 0) & (seeds < 1_000_000)).any()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {"shards_read": VirtualStore.shards_read, "grown_bytes": grown}


if __name__ == "__main__":
    if sys.argv[1] == "publish":
        publish_virtual(sys.argv[3], int(sys.argv[2]))
    else:
        print(json.dumps(measure(sys.argv[2])))
