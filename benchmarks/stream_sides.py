"""The sides of benchmarks/stream.py: how each writes the source, reads it back shuffled, and is measured.

    python -m benchmarks.stream_sides SIDE write SOURCE FOLDER
    python -m benchmarks.stream_sides SIDE read SOURCE FOLDER WORKERS EPOCHS

Prints one JSON line. Each library is imported only by its own side, so that a peer runs under an interpreter that has
nothing else. Every peer is used as its documentation says, with its own defaults.
"""

import importlib
import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

BATCH, SEED = 256, 1

Batch = tuple[np.ndarray, np.ndarray, np.ndarray]
"""codes (b, T, h, w) uint16, seeds (b,) uint64, labels (b,) int32."""


def source(folder: str) -> Batch:
    """The columns that every side gets, memory-mapped."""
    codes, seeds, labels = (np.load(f"{folder}/{name}.npy", mmap_mode="r") for name in ("codes", "seeds", "labels"))
    return codes, seeds, labels


def samples_of(given: str) -> Iterator[dict[str, Any]]:
    """The source, sample by sample."""
    for codes, seed, label in zip(*source(given), strict=True):
        yield {"codes": np.ascontiguousarray(codes), "seed": seed, "label": label}


def collate(samples: list[dict[str, Any]]) -> Batch:
    """Samples of any peer to a batch, by numpy, because torch's own collating is slower."""
    return (
        np.stack([sample["codes"] for sample in samples]),
        np.array([sample["seed"] for sample in samples], np.uint64),
        np.array([sample["label"] for sample in samples], np.int32),
    )


def write_ours(given: str, folder: str) -> None:
    """A token store in shards of 4,096 rows."""
    from benchmarks.untrained import token_identity
    from rdpm.pipeline.stores.writer import publish, start_store, write_shard
    from rdpm.storage_schemas.manifest import Plan
    from rdpm.storage_schemas.tokens import KIND, token_arrays

    columns = dict(zip(("codes", "noise_seed", "label"), source(given), strict=True))
    T, h, w = columns["codes"].shape[1:]
    arrays = token_arrays(T, (32, h, w), with_accumulated=False, with_latents=False)
    plan = Plan(KIND, len(columns["label"]), 4096, 256, arrays, token_identity())
    start_store(folder, plan)
    for shard in range(plan.num_shards):
        rows = plan.shard_range(shard)
        part = {name: np.asarray(values[rows.start : rows.stop]) for name, values in columns.items()}
        write_shard(folder, plan, shard, part, {"row": np.arange(len(rows))})
    publish(folder, plan)


def read_ours(given: str, folder: str, workers: int, epochs: int) -> Iterator[Iterable[Batch]]:
    """The stream as training uses it, with a full shuffle of all rows. Workers are threads."""
    from rdpm.pipeline.stores.reader import open_store
    from rdpm.pipeline.stream.token_stream import StreamConfig, TokenStream
    from rdpm.storage_schemas.tokens import KIND

    config = StreamConfig(cache=f"{folder}.cache", workers=workers)
    stream = TokenStream([open_store(folder, KIND)], seed=SEED, latents=False, config=config)
    steps = len(stream) // BATCH
    for epoch in range(epochs):
        batches = stream.batches(epoch * steps, (epoch + 1) * steps, batch=BATCH, micro_batch=BATCH)
        yield ((batch.codes, batch.seeds, batch.labels) for batch in batches)


def write_gather(given: str, folder: str) -> None:
    """Nothing, because it reads the source."""


def read_gather(given: str, folder: str, workers: int, epochs: int) -> Iterator[Iterable[Batch]]:
    """The least work of a loader: numpy.take, in one thread, of rows that were drawn beforehand, from a mapped file."""
    codes, seeds, labels = source(given)
    seeds, labels = np.asarray(seeds), np.asarray(labels)
    for epoch in range(epochs):
        rows = np.random.default_rng(epoch).permutation(len(codes)).reshape(-1, BATCH)
        yield ((np.take(codes, part, axis=0), seeds[part], labels[part]) for part in rows)


def write_mosaic(given: str, folder: str) -> None:
    """MDS shards, columns of fixed shape."""
    from streaming import MDSWriter

    shape = ",".join(map(str, source(given)[0].shape[1:]))
    columns = {"codes": f"ndarray:uint16:{shape}", "seed": "uint64", "label": "int32"}
    with MDSWriter(out=folder, columns=columns) as writer:
        for sample in samples_of(given):
            writer.write(sample)


def read_mosaic(given: str, folder: str, workers: int, epochs: int) -> Iterator[Iterable[Batch]]:
    """Shuffled in blocks of at least 2^18 samples, its default."""
    from streaming import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(local=folder, shuffle=True, shuffle_seed=SEED, batch_size=BATCH)
    return itertools.repeat(
        StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=collate), epochs
    )


def write_litdata(given: str, folder: str) -> None:
    """Chunks of 64 MB, as its guide advises."""
    from litdata.streaming.cache import Cache

    cache = Cache(folder, chunk_bytes="64MB")
    for index, sample in enumerate(samples_of(given)):
        cache[index] = sample
    cache.done()
    cache.merge()


def read_litdata(given: str, folder: str, workers: int, epochs: int) -> Iterator[Iterable[Batch]]:
    """A shuffle of the chunks and of the items within each chunk, the only shuffle that it has."""
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(folder, shuffle=True, seed=SEED, drop_last=False)
    return itertools.repeat(
        StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=collate), epochs
    )


def write_webdataset(given: str, folder: str) -> None:
    """Tar shards of 4,096 samples, with codes as raw bytes, and seed and label in the bytes of another member."""
    import webdataset

    os.makedirs(folder)
    with webdataset.ShardWriter(f"{folder}/%05d.tar", maxcount=4096, verbose=0) as writer:
        for index, sample in enumerate(samples_of(given)):
            facts = sample["seed"].tobytes() + sample["label"].tobytes()
            writer.write({"__key__": f"{index:08d}", "codes.bin": sample["codes"].tobytes(), "facts.bin": facts})


def read_webdataset(given: str, folder: str, workers: int, epochs: int) -> Iterator[Iterable[Batch]]:
    """A shuffle of the shards, then one in a buffer of 5,000 samples; workers build the batches."""
    import webdataset
    from torch.utils.data import DataLoader

    shape = source(given)[0].shape[1:]

    def decode(sample: dict[str, bytes]) -> dict[str, Any]:
        codes, facts = np.frombuffer(sample["codes.bin"], np.uint16).reshape(shape), sample["facts.bin"]
        seed, label = int.from_bytes(facts[:8], "little"), int.from_bytes(facts[8:], "little")
        return {"codes": codes, "seed": seed, "label": label}

    shards = sorted(str(path) for path in Path(folder).glob("*.tar"))
    dataset = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=SEED).shuffle(5000).map(decode)
    batches = dataset.batched(BATCH, collation_fn=collate)
    return itertools.repeat(DataLoader(batches, batch_size=None, num_workers=workers, collate_fn=_as_it_is), epochs)


def _as_it_is(batch: Batch) -> Batch:
    return batch


MODULES = {
    "ours": "rdpm.pipeline.stream.token_stream",
    "gather": "numpy",
    "mosaic": "streaming",
    "litdata": "litdata",
    "webdataset": "webdataset",
}
THREADED = ("ours", "gather")  # the workers of the others are processes
WRITE = {
    "ours": write_ours,
    "gather": write_gather,
    "mosaic": write_mosaic,
    "litdata": write_litdata,
    "webdataset": write_webdataset,
}
READ = {
    "ours": read_ours,
    "gather": read_gather,
    "mosaic": read_mosaic,
    "litdata": read_litdata,
    "webdataset": read_webdataset,
}


def measure(side: str, given: str, folder: str, workers: int, epochs: int) -> dict[str, float]:
    """Read the epochs of a side.

    start_s: seconds from the imports to the first batch; the first process of ours fills the cache. images_per_s: of
    the best epoch without its first batch, which excludes the start of workers that start anew in every epoch.
    cpu_us_per_image: of all processes, with their start, over all epochs. peak_bytes: of this process, plus that of its
    largest child times the number of worker processes; pages of mapped files are included. images, seeds_sum: of the
    last epoch, to check that every side delivers the same.
    """
    importlib.import_module(MODULES[side])
    began, cpu = time.perf_counter(), _cpu_seconds()
    start, rates, images = 0.0, [], 0
    for epoch in READ[side](given, folder, workers, epochs):
        delivered, first, seeds_sum, clock = 0, 0, 0, 0.0
        for codes, seeds, labels in epoch:
            assert codes.dtype == np.uint16
            assert len(codes) == len(seeds) == len(labels)
            if not delivered:
                clock, first = time.perf_counter(), len(labels)
                start = start or clock - began
            delivered += len(labels)
            seeds_sum = (seeds_sum + int(np.asarray(seeds).sum(dtype=np.uint64))) % 2**64
        rates.append((delivered - first) / (time.perf_counter() - clock))
        images += delivered
    processes = 0 if side in THREADED else workers
    own, child = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        "images_per_s": max(rates),
        "cpu_us_per_image": (_cpu_seconds() - cpu) / images * 1e6,
        "start_s": start,
        "peak_bytes": 1024 * (own + processes * child),
        "images": delivered,
        "seeds_sum": seeds_sum,
    }


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def main() -> None:
    """Print one line of JSON."""
    side, task, given, folder, *rest = sys.argv[1:]
    if task == "write":
        WRITE[side](given, folder)
        result: dict[str, float] = {}
    else:
        workers, epochs = map(int, rest)
        result = measure(side, given, folder, workers, epochs)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
