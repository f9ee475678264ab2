"""What grows with the number of images: planning, continuing, and the memory of the tokenizing and sampling jobs.

    python -m benchmarks.scale [--keys 1280000] [--commits 100000] [--tokenize 10000 1000000] [--sample 1000 50000]

Images are 8 x 8 PNGs in Parquet files; tokenizer and generator are tiny. Prints one line of JSON. `planning_s`: seconds
to list and plan that many keys, with all worklists written. `resume_s`: seconds from the start of a job to finding the
one shard that is missing beside so many commits. For each job and number of images: its seconds, and the peak memory in
bytes of its driver and of its largest worker (resident, without shared memory); and the ratios of memory, the most
images over the fewest.
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

from benchmarks.untrained import export_generator, export_tokenizer
from rdpm.models.autoencoder import AutoencoderConfig
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.generator import GeneratorConfig
from rdpm.models.schedule import Schedule
from rdpm.models.tokenizer import TokenizerConfig
from rdpm.pipeline.cluster.session import Resources
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.worklist import Worklist
from rdpm.pipeline.inference.batches import device_kind
from rdpm.pipeline.sampling.plan import SampleConfig
from rdpm.pipeline.sampling.stage import sample_set
from rdpm.pipeline.stores.writer import missing_shards, start_store
from rdpm.pipeline.tokenizing.plan import TokenizeConfig, token_plan
from rdpm.pipeline.tokenizing.rows import images_of
from rdpm.pipeline.tokenizing.stage import tokenize
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
        part = range(first, min(rows, first + _FILE_ROWS))
        table = {"image": [pictures[row % 256] for row in part], "label": [row % _CLASSES for row in part]}
        pq.write_table(pa.table(table), f"{folder}/{number:05d}.parquet", row_group_size=1024)


def export(folder: str) -> None:
    """The tiny tokenizer, untrained."""
    export_tokenizer(folder, _TINY, _CLASSES)


def begin(config: TokenizeConfig) -> tuple[int, float]:
    """Everything that a job does before it starts Ray. Returns the number of missing shards, and the seconds."""
    began = time.monotonic()
    card = read_card(config.tokenizer, "tokenizer")
    with closing(Worklist(config.images, config.out)) as worklist:
        plan = token_plan(config, worklist.summary, card, device_kind(config.device))
        start_store(config.out, plan)
        missing = missing_shards(config.out, plan)
        worklist.write({shard: images_of(plan, shard) for shard in missing})
    return len(missing), time.monotonic() - began


def planning(root: str, keys: int) -> float:
    """Seconds to list and plan `keys` images."""
    write_source(f"{root}/keys", keys)
    return begin(TokenizeConfig(f"{root}/keys", f"{root}/tokenizer", f"{root}/planned"))[1]


def resume(root: str, commits: int) -> float:
    """Seconds to find the one missing shard of a store that has `commits` others."""
    write_source(f"{root}/resumed", commits + 1)
    config = TokenizeConfig(f"{root}/resumed", f"{root}/tokenizer", f"{root}/begun", shard_rows=1, chunk_rows=1)
    begin(config)
    for shard in range(commits):
        files.write_bytes(f"{config.out}/{commit_name(shard)}", b"{}")  # a job looks only for its name
    missing, seconds = begin(config)
    assert missing == 1
    return seconds


def own_bytes(process: psutil.Process) -> int:
    """Resident memory of a process that it does not share."""
    memory = process.memory_info()
    return memory.rss - memory.shared


def watch(peaks: dict[str, int], done: threading.Event) -> None:
    """Record the peaks of the driver and of the largest Ray worker until `done`."""
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
    """A tokenizing job of so many images, ready to run."""
    write_source(f"{root}/images", images)
    config = TokenizeConfig(f"{root}/images", f"{root}/tokenizer", f"{root}/store", resources=RESOURCES)
    return partial(tokenize, config)


def sample_job(root: str, images: int) -> Callable[[], object]:
    """A sampling job of so many images, ready to run."""
    space = GeneratorConfig(depth=1, num_classes=_CLASSES, num_steps=3, codebook_size=16, code_dim=4, grid=4)
    export_generator(f"{root}/generator", space, read_card(f"{root}/tokenizer", "tokenizer"))
    config = SampleConfig(
        f"{root}/generator", f"{root}/tokenizer", f"{root}/samples", per_class=images // _CLASSES, shard_rows=500,
        batch=100, attention="math", resources=RESOURCES,
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
    """A job at each number of images, each in a separate process, and the growth of memory."""
    measured = {}
    for images in counts:
        call = [sys.executable, "-m", "benchmarks.scale", "--one", kind, str(images)]
        output = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout
        measured[images] = json.loads(output.splitlines()[-1])
    first, last = measured[counts[0]], measured[counts[-1]]
    ratios = {f"{who}_ratio": last[f"{who}_bytes"] / first[f"{who}_bytes"] for who in ("driver", "worker")}
    return {**measured, **ratios}


def main() -> None:
    """Print one line of JSON."""
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
