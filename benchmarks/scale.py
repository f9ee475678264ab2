"""What grows with the number of images: planning, going on, and the memory of the tokenizing and sampling jobs.

    python -m benchmarks.scale [--keys 1280000] [--commits 100000] [--tokenize 10000 1000000] [--sample 1000 50000]

Images are 8 x 8 PNGs in Parquet files, tokenizer and generator are tiny. Prints one line of JSON: `planning_s`, listing
and planning of that many keys, all worklists written; `resume_s`, from a job's start to knowing the one shard that so
many commits leave; for each job and number of images its seconds and the peak memory of its driver and of its largest
worker in bytes (resident, without shared memory); and their ratios, the most images over the fewest.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rdpm.pipeline.cluster.cluster import Resources

from rdpm.models.autoencoder import AutoencoderConfig
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.generator import Generator, GeneratorConfig
from rdpm.models.schedule import Schedule
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.exports.weights import save_export
from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.worklist import Worklist
from rdpm.pipeline.sampling.plan import SampleConfig
from rdpm.pipeline.sampling.stage import sample_set
from rdpm.pipeline.stores.writer import missing_shards, start_store
from rdpm.pipeline.tokenizing.plan import token_plan
from rdpm.pipeline.tokenizing.rows import images_of
from rdpm.pipeline.tokenizing.stage import EncodeConfig, encode
from rdpm.storage_schemas.manifest import commit_name

_FILE_ROWS, _CLASSES = 65_536, 10
_TINY = TokenizerConfig(
    8,
    AutoencoderConfig(in_channels=1, channels=8, multipliers=(1, 2), num_res_blocks=1, attention_factors=(), groups=4),
    QuantizerConfig(16, 4),
    Schedule(num_steps=3),
)
RESOURCES = Resources(object_store_mb=512, actors=1)


def write_source(folder: str, rows: int) -> None:
    """Parquet files of small PNGs, of which a few hundred differ."""
    Path(folder).mkdir()
    draw, pictures = np.random.default_rng(0), []
    for _ in range(256):
        sink = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(sink, "PNG")
        pictures.append(sink.getvalue())
    for number, first in enumerate(range(0, rows, _FILE_ROWS)):
        mine = range(first, min(rows, first + _FILE_ROWS))
        table = {"image": [pictures[row % 256] for row in mine], "label": [row % _CLASSES for row in mine]}
        pq.write_table(pa.table(table), f"{folder}/{number:05d}.parquet", row_group_size=1024)


def export(folder: str) -> None:
    """The tiny tokenizer, untrained."""
    save_export(folder, "tokenizer", _TINY, Tokenizer(_TINY).state_dict(), {}, {}, 0)


def begin(config: EncodeConfig) -> tuple[int, float]:
    """All that a job does before Ray: the number of shards it has to do, and the seconds taken."""
    began = time.monotonic()
    with closing(Worklist(config.images, config.out)) as worklist:
        plan = token_plan(config, worklist.summary, read_card(config.tokenizer, "tokenizer"))
        start_store(config.out, plan)
        missing = missing_shards(config.out, plan)
        worklist.write({shard: images_of(plan, shard) for shard in missing})
    return len(missing), time.monotonic() - began


def planning(root: str, keys: int) -> float:
    """Seconds to list and plan `keys` images."""
    write_source(f"{root}/keys", keys)
    return begin(EncodeConfig(f"{root}/keys", f"{root}/tokenizer", f"{root}/planned"))[1]


def resume(root: str, commits: int) -> float:
    """Seconds to find the last shard of a store that has `commits` others."""
    write_source(f"{root}/resumed", commits + 1)
    config = EncodeConfig(f"{root}/resumed", f"{root}/tokenizer", f"{root}/begun", shard_rows=1, chunk_rows=1)
    begin(config)
    for shard in range(commits):
        files.write_bytes(f"{config.out}/{commit_name(shard)}", b"{}")  # a job looks for its name alone
    left, seconds = begin(config)
    assert left == 1
    return seconds


def own_bytes(process: psutil.Process) -> int:
    """Resident memory of a process that it shares with no other."""
    found = process.memory_info()
    return found.rss - found.shared


def watch(peaks: dict[str, int], done: threading.Event) -> None:
    """Keep the highest of the driver, and of any Ray worker, until `done`."""
    driver = psutil.Process()
    while not done.wait(0.1):
        peaks["driver"] = max(peaks["driver"], own_bytes(driver))
        for child in driver.children(recursive=True):
            try:
                if child.name().startswith("ray::"):
                    peaks["worker"] = max(peaks["worker"], own_bytes(child))
            except psutil.NoSuchProcess:
                continue


def tokenize_job(root: str, images: int) -> Callable[[], object]:
    """A tokenizing job of so many images, all else made."""
    write_source(f"{root}/images", images)
    return partial(encode, EncodeConfig(f"{root}/images", f"{root}/tokenizer", f"{root}/store", resources=RESOURCES))


def sample_job(root: str, images: int) -> Callable[[], object]:
    """A sampling job of so many images, all else made."""
    space = GeneratorConfig(
        depth=1, num_classes=_CLASSES, num_steps=3, codebook_size=16, code_dim=4, grid=4, attention="math"
    )
    digest = read_card(f"{root}/tokenizer", "tokenizer").digest
    made_from = {"tokenizer_digest": digest, "classes": [str(label) for label in range(_CLASSES)]}
    save_export(f"{root}/generator", "generator", space, Generator(space).state_dict(), made_from, {}, 0)
    config = SampleConfig(
        f"{root}/generator", f"{root}/tokenizer", f"{root}/samples", per_class=images // _CLASSES, shard_rows=500,
        batch=100, resources=RESOURCES,
    )  # fmt: skip
    return partial(sample_set, config)


JOBS = {"tokenize": tokenize_job, "sample": sample_job}


def watched_job(kind: str, images: int) -> dict[str, float]:
    """Seconds and peak memory of a job in this process."""
    peaks, done = {"driver": 0, "worker": 0}, threading.Event()
    with tempfile.TemporaryDirectory() as root:
        export(f"{root}/tokenizer")
        job = JOBS[kind](root, images)
        watching = threading.Thread(target=watch, args=(peaks, done))
        watching.start()
        began = time.monotonic()
        job()
        taken = time.monotonic() - began
        done.set()
        watching.join()
    return {"seconds": taken, "driver_bytes": peaks["driver"], "worker_bytes": peaks["worker"]}


def compare(kind: str, counts: list[int]) -> dict[str, Any]:
    """A job at each number of images, in a process of its own, and how memory grew."""
    found = {}
    for images in counts:
        call = [sys.executable, "-m", "benchmarks.scale", "--one", kind, str(images)]
        said = subprocess.run(call, check=True, capture_output=True, text=True).stdout
        found[images] = json.loads(said.splitlines()[-1])
    first, last = found[counts[0]], found[counts[-1]]
    ratios = {f"{who}_ratio": last[f"{who}_bytes"] / first[f"{who}_bytes"] for who in ("driver", "worker")}
    return {**found, **ratios}


def main() -> None:
    """Entry."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=1_280_000)
    parser.add_argument("--commits", type=int, default=100_000)
    parser.add_argument("--tokenize", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--sample", type=int, nargs="+", default=[1_000, 50_000])
    parser.add_argument("--one", nargs=2, metavar=("JOB", "IMAGES"), help="only this job, in this process")
    options = parser.parse_args()
    if options.one:
        print(json.dumps(watched_job(options.one[0], int(options.one[1]))))
        return
    with tempfile.TemporaryDirectory() as root:
        export(f"{root}/tokenizer")
        result: dict[str, Any] = {
            "planning_s": planning(root, options.keys),
            "resume_s": resume(root, options.commits),
        }
    for kind in JOBS:
        result[kind] = compare(kind, getattr(options, kind))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
