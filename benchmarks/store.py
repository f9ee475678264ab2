"""How small the codes of a store are, and how fast its verified reader is.

    python -m benchmarks.store [--rows 16384] [--repeats 5]

Writes a token store of uniformly random codes at the paper's shape (K = 4096, T = 10, 16 x 16) to a temporary folder
and prints JSON:

    bytes_ratio         bytes of the codes on disk over T h w log2(K) / 8 = 3,840 bytes per image
    read_images_per_s   images per second by `Store.shard`, which checks every digest; one core, whole shards
    read_ratio          that over only decompressing the same chunks from memory, without checks, in the same run
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable

import numcodecs.blosc
import numpy as np

from benchmarks.untrained import token_identity
from rdpm.pipeline.foundation import files
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.pipeline.stores.writer import publish, start_store, write_shard
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.tokens import token_arrays

K, T, GRID, CODE_DIM = 4096, 10, 16, 32


def build(url: str, rows: int, shard_rows: int, chunk_rows: int) -> Store:
    """A published store of random codes."""
    arrays = token_arrays(T, (CODE_DIM, GRID, GRID), with_accumulated=False, with_latents=False)
    plan = Plan("tokens", rows, shard_rows, chunk_rows, arrays, token_identity())
    start_store(url, plan)
    for shard in range(plan.num_shards):
        count, draw = len(plan.shard_range(shard)), np.random.default_rng(shard)
        columns = {
            "codes": draw.integers(0, K, (count, T, GRID, GRID)).astype(np.uint16),
            "noise_seed": draw.integers(0, 2**64, count, np.uint64),
            "label": np.zeros(count, np.int32),
        }
        write_shard(url, plan, shard, columns, {"row": np.arange(count)})
    publish(url, plan)
    return open_store(url, "tokens")


def chunks_of(store: Store, shard: int) -> list[bytes]:
    """The compressed chunks of one shard of the codes, without their checksums (Zarr v3, sharding_indexed)."""
    plan = store.manifest.plan
    data = files.read_bytes(files.join(store.url, plan.objects(shard)["codes"]))
    count = plan.shard_rows // plan.chunk_rows
    extents = np.frombuffer(data[-16 * count - 4 : -4], "<u8").reshape(count, 2).tolist()
    return [data[offset : offset + length - 4] for offset, length in extents if offset != 2**64 - 1]


def seconds(work: Callable[[], object]) -> float:
    """Seconds of a single call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def decompress(chunks: list[bytes]) -> None:
    """Only the decompression."""
    for chunk in chunks:
        numcodecs.blosc.decompress(chunk)


def measure(store: Store, repeats: int) -> dict[str, float]:
    """Read all shards and decompress their chunks in turn, `repeats` times after one turn that is not counted."""
    plan = store.manifest.plan
    chunks = [chunks_of(store, shard) for shard in range(plan.num_shards)]
    reading, raw = [], []
    for repeat in range(repeats + 1):
        read = sum(seconds(lambda shard=shard: store.shard(shard, ("codes",))) for shard in range(plan.num_shards))
        bare = sum(seconds(lambda shard=shard: decompress(chunks[shard])) for shard in range(plan.num_shards))
        if repeat:
            reading.append(read)
            raw.append(bare)
    size = sum(store.commit(shard).objects["codes"].size for shard in range(plan.num_shards))
    return {
        "bytes_ratio": size / (plan.rows * T * GRID * GRID * math.log2(K) / 8),
        "read_images_per_s": plan.rows / statistics.median(reading),
        "read_ratio": statistics.median(raw) / statistics.median(reading),
        "decompress_images_per_s": plan.rows / statistics.median(raw),
    }


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--shard-rows", type=int, default=4096)
    parser.add_argument("--chunk-rows", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = build(f"{folder}/store", given.rows, given.shard_rows, given.chunk_rows)
        print(json.dumps(measure(store, given.repeats)))


if __name__ == "__main__":
    main()
