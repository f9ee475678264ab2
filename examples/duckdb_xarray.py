"""A token store in DuckDB and xarray, without rdpm: what is in it, and how its codes are used.

    pip install duckdb xarray 'zarr>=3.1'
    python examples/duckdb_xarray.py runs/demo/store

Neither tool compares what it reads with the store's digests; rdpm verify STORE does.
"""

import argparse
import json
import warnings
from pathlib import Path

import duckdb
import numpy as np
import xarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", help="folder of a token store")
    store = Path(parser.parse_args().store)
    plan = json.loads((store / "manifest.json").read_text())["plan"]["identity"]
    classes = plan["classes"]

    # The index: one line per row of the store, in files of shards. Order it by shard and row, never by file name.
    index = duckdb.read_parquet(f"{store}/index/*.parquet")
    print("rows by class and status:")
    for label, status, count in index.aggregate("label, status, count(*)").order("label, status").fetchall():
        print(f"  {classes[label]}: {count} {status}")
    query = "SELECT status = 'ok' AS usable, label FROM index ORDER BY shard, row"
    usable, labels = (np.array(column) for column in zip(*duckdb.sql(query).fetchall(), strict=True))

    # The arrays: their rows are in the order of the index. They are read lazily, chunk by chunk.
    warnings.filterwarnings("ignore", "Object at .* is not recognized")  # index and records lie beside the arrays
    rows = xarray.open_zarr(store, consolidated=False, chunks=None).isel(row=np.flatnonzero(usable))
    assert np.array_equal(rows.label.values, labels[usable])
    codebook = plan["tokenizer_config"]["quantizer"]["codebook_size"]
    print(f"use of the {codebook} codes by step:")
    for step in range(rows.sizes["step"]):
        counts = np.bincount(rows.codes.isel(step=step).values.ravel(), minlength=codebook)
        shares = counts[counts > 0] / counts.sum()
        perplexity = np.exp(-(shares * np.log(shares)).sum())
        print(f"  step {step + 1}: {np.count_nonzero(counts)} used, perplexity {perplexity:.1f}")

    # Anything labelled joins both: the most frequent code of the first step, class by class.
    first = rows.codes.isel(step=0)
    for label in np.unique(labels[usable]):
        codes = first.isel(row=rows.label.values == label).values.ravel()
        print(f"  first step of {classes[label]}: code {np.bincount(codes).argmax()} most often")


if __name__ == "__main__":
    main()
