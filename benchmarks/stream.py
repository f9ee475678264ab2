"""Our token stream against MosaicML Streaming, litData and WebDataset, and against a bare memory-mapped gather.

    python -m benchmarks.stream [--rows 80128] [--epochs 3] [--folder PATH] [--peer-python PATH]

The same codes (10 x 16 x 16, uniform in 4,096), seeds and labels, shuffled, in batches of 256, with 0, 1 and 2 workers
(threads for ours, processes for the peers), one process after the other. Prints one JSON line with the metrics of
`measure` in benchmarks/stream_sides.py for every side and number of workers, bytes on disk, and

    vs_best_peer   our images/s over those of the best peer with as many workers; the lowest of the three ratios
    vs_gather      our images/s over those of numpy.take from one mapped file in one thread; the lowest of the three

MosaicML Streaming needs numpy < 2.2, so --peer-python names the interpreter of an environment that has the peers
(`pip install mosaicml-streaming litdata webdataset`). A peer that is not installed is left out, with a message.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.stream_sides import BATCH, MODULES

T, GRID, K, CLASSES = 10, 16, 4096, 1000
PEERS = ("mosaic", "litdata", "webdataset")
WORKERS = (0, 1, 2)
_SHORT = 10  # times the epochs for ours and the gather, because each takes them only a tenth of a second
ROOT = Path(__file__).parents[1]


def make_source(folder: str, rows: int) -> int:
    """Write the three columns that every side gets. Returns the sum of the seeds modulo 2^64."""
    os.makedirs(folder)
    draw = np.random.default_rng(0)
    codes = np.lib.format.open_memmap(f"{folder}/codes.npy", "w+", np.uint16, (rows, T, GRID, GRID))
    for start in range(0, rows, 4096):
        part = codes[start : start + 4096]
        part[:] = draw.integers(0, K, part.shape, dtype=np.uint16)
    codes.flush()
    seeds = draw.integers(0, 2**64, rows, dtype=np.uint64)
    np.save(f"{folder}/seeds.npy", seeds)
    np.save(f"{folder}/labels.npy", draw.integers(0, CLASSES, rows, dtype=np.int32))
    return int(seeds.sum(dtype=np.uint64))


def run(python: str, *arguments: str) -> str:
    """The last line that a new Python process prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([python, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    return (done.stdout.strip().splitlines() or [""])[-1]


def folder_bytes(folder: str) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def compare(root: str, rows: int, epochs: int, peer_python: str) -> dict[str, Any]:
    """The metrics of every side, and the ratios."""
    given = f"{root}/source"
    expected = make_source(given, rows)
    sides: dict[str, Any] = {}
    for side in ("gather", "ours", *PEERS):
        python = peer_python if side in PEERS else sys.executable
        if run(python, "-c", _installed(MODULES[side])) != "True":
            print(f"{side}: {MODULES[side]} is not installed for {python}; left out")
            continue
        call = (python, "-m", "benchmarks.stream_sides", side)
        run(*call, "write", given, f"{root}/{side}")
        sides[side] = {}
        for workers in (0,) if side == "gather" else WORKERS:
            turns = epochs if side in PEERS else _SHORT * epochs
            metrics = json.loads(run(*call, "read", given, f"{root}/{side}", str(workers), str(turns)))
            if (metrics.pop("images"), metrics.pop("seeds_sum")) != (rows, expected):
                raise RuntimeError(f"{side} with {workers} workers did not deliver every row exactly once per epoch")
            sides[side][workers] = metrics
            print(f"{side} {workers}: " + ", ".join(f"{name} {value:,.4g}" for name, value in metrics.items()))
        sides[side]["disk_bytes"] = folder_bytes(f"{root}/{side}")
    sides["ours"]["cache_bytes"] = folder_bytes(f"{root}/ours.cache")
    rates = {side: {w: by[w]["images_per_s"] for w in WORKERS if w in by} for side, by in sides.items()}
    peers = [rates[side] for side in PEERS if side in rates]
    return {
        "rows": rows,
        "sides": sides,
        "vs_best_peer": min(rates["ours"][w] / max(peer[w] for peer in peers) for w in WORKERS) if peers else None,
        "vs_gather": min(rates["ours"][w] / rates["gather"][0] for w in WORKERS),
    }


def _installed(module: str) -> str:
    return f"import importlib.util; print(importlib.util.find_spec({module!r}) is not None)"


def main() -> None:
    """Print one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=80_128, help=f"a multiple of {BATCH}")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--folder", help="folder for the data of the run; default: the system's temporary folder")
    parser.add_argument("--peer-python", default=sys.executable)
    options = parser.parse_args()
    if options.rows % BATCH:
        parser.error(f"--rows {options.rows} is not a multiple of {BATCH}")
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        print(json.dumps(compare(root, options.rows, options.epochs, options.peer_python)))


if __name__ == "__main__":
    main()
