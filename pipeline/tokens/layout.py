"""How an array of a store is laid out in Zarr v3: one object a shard, bit-shuffled and checksummed chunks."""

import numcodecs.blosc
import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore

from pipeline import files
from storage_schemas.manifest import ArraySpec, Plan

numcodecs.blosc.use_threads = False  # c-blosc's threads finish in any order, and so would the bytes


def create_arrays(url: str, plan: Plan) -> None:
    """Put the metadata of the group and its arrays where there is none. The bytes depend on the plan alone."""
    objects: dict[str, Buffer] = {}
    store = MemoryStore(objects)
    zarr.create_group(store, zarr_format=3, attributes={"kind": plan.kind})
    for spec in plan.arrays:
        create_array(store, plan, spec)
    for name, buffer in objects.items():
        files.create_bytes(files.join(url, name), buffer.to_bytes())


def encode_shard(plan: Plan, spec: ArraySpec, shard: int, values: np.ndarray) -> bytes:
    """The object that holds one shard of an array."""
    objects: dict[str, Buffer] = {}
    rows = plan.shard_range(shard)
    create_array(MemoryStore(objects), plan, spec)[rows.start : rows.stop] = values
    return objects[plan.objects(shard)[spec.name]].to_bytes()


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
        config={"write_empty_chunks": True},
    )
