"""How an array of a store is laid out in Zarr v3: one object a shard, bit-shuffled and checksummed chunks."""

import numcodecs.blosc
import zarr
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec
from zarr.storage import FsspecStore, LocalStore

from pipeline import files
from storage_schemas.manifest import ArraySpec, Plan

numcodecs.blosc.use_threads = False  # c-blosc's threads finish in any order, and so would the bytes


def zarr_store(url: str, read_only: bool = False) -> Store:
    """The Zarr store at a path or URL. Local files are written through a temporary name and a rename."""
    if files.is_local(url):
        return LocalStore(files.local_path(url), read_only=read_only)
    return FsspecStore.from_url(url, read_only=read_only)


def create_arrays(url: str, plan: Plan) -> None:
    """Write the metadata of the group and its arrays. The bytes depend on the plan alone."""
    store = zarr_store(url)
    zarr.create_group(store, zarr_format=3, overwrite=False, attributes={"kind": plan.kind})
    for spec in plan.arrays:
        create_array(store, plan, spec)


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
