"""How an array of a store is laid out in Zarr v3: one object a shard, bit-shuffled and checksummed chunks."""

from typing import Any

import numcodecs.blosc
import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from rdpm.pipeline.foundation import files
from rdpm.storage_schemas.arrays import ArraySpec
from rdpm.storage_schemas.manifest import Plan

numcodecs.blosc.use_threads = False  # c-blosc's threads finish in any order, and so would the bytes
_CRC_BYTES = 4


def metadata_objects(plan: Plan) -> dict[str, bytes]:
    """The group's and the arrays' zarr.json by their names under the store. The bytes depend on the plan alone."""
    objects: dict[str, Buffer] = {}
    store = MemoryStore(objects)
    zarr.create_group(store, zarr_format=3, attributes={"kind": plan.kind})
    for spec in plan.arrays:
        create_array(store, plan, spec)
    return {name: buffer.to_bytes() for name, buffer in objects.items()}


def create_arrays(url: str, plan: Plan) -> None:
    """Put the metadata of the group and its arrays where there is none."""
    for name, data in metadata_objects(plan).items():
        files.create_bytes(files.join(url, name), data)


def encode_shard(plan: Plan, spec: ArraySpec, shard: int, values: np.ndarray) -> bytes:
    """The object that holds one shard of an array."""
    objects: dict[str, Buffer] = {}
    rows = plan.shard_range(shard)
    create_array(MemoryStore(objects), plan, spec)[rows.start : rows.stop] = values
    return objects[plan.objects(shard)[spec.name]].to_bytes()


def decode_shard(plan: Plan, spec: ArraySpec, shard: int, data: bytes) -> np.ndarray:
    """The rows of one shard, (rows, *row_shape), from its object, whose bytes the caller has checked.

    What `encode_shard` lays down: chunks, each ending in a CRC-32C, then (offset, bytes) of each and a CRC-32C. Read by
    hand, since zarr takes ten times as long over it.
    """
    rows, chunks = len(plan.shard_range(shard)), plan.shard_rows // plan.chunk_rows
    end = len(data) - _CRC_BYTES
    places = np.frombuffer(data[end - chunks * 16 : end], "<u8").reshape(chunks, 2).tolist()
    used = places[: -(-rows // plan.chunk_rows)]
    values = np.empty((len(used) * plan.chunk_rows, *spec.row_shape), spec.dtype)
    view = memoryview(data)
    for number, (offset, length) in enumerate(used):
        chunk = view[offset : offset + length - _CRC_BYTES]
        part = values[number * plan.chunk_rows : (number + 1) * plan.chunk_rows]
        if spec.compressed:
            numcodecs.blosc.decompress(chunk, part)
        else:
            part.reshape(-1).view(np.uint8)[:] = np.frombuffer(chunk, np.uint8)
    return values[:rows]


def fill_value(dtype: str) -> Any:
    """What a reader that checks nothing sees for a lost object: the largest unsigned number (no code), -1 or NaN."""
    kind = np.dtype(dtype)
    return np.nan if kind.kind == "f" else int(np.iinfo(kind).max) if kind.kind == "u" else -1


def create_array(store: Store, plan: Plan, spec: ArraySpec) -> zarr.Array:
    """Create one array of the plan under its name."""
    blosc = [BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")] if spec.compressed else []
    return zarr.create_array(
        store,
        name=spec.name,
        shape=(plan.rows, *spec.row_shape),
        dtype=spec.dtype,
        chunks=(plan.chunk_rows, *spec.row_shape),
        shards=(plan.shard_rows, *spec.row_shape),
        serializer=BytesCodec(),
        compressors=[*blosc, Crc32cCodec()],
        dimension_names=("row", *spec.dims),
        fill_value=fill_value(spec.dtype),
        config={"write_empty_chunks": True},
    )
