"""Files for other programs, written from a sample store one shard at a time, so memory holds one shard.

Their bytes depend only on the store. Each file or folder appears complete or not at all.
"""

import io
import tarfile
import zipfile
from collections.abc import Iterator
from typing import Literal

import numpy as np
from PIL import Image

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.lease import Lease
from rdpm.pipeline.foundation.names import safe_name
from rdpm.pipeline.stores.reader import Store
from rdpm.storage_schemas.manifest import shard_name

Format = Literal["npz", "png", "tar"]
NAMES: dict[Format, str] = {"npz": "samples.npz", "png": "png", "tar": "tar"}


def write_files(store: Store, formats: tuple[Format, ...], lease: Lease) -> None:
    """Write each format under its name in the store's folder. Raises LeaseLost."""
    for name in formats:
        _WRITERS[name](store, files.join(store.url, NAMES[name]), lease)


def write_npz(store: Store, url: str, lease: Lease) -> None:
    """The whole set for the ADM evaluator: arr_0 holds images (N, H, W, 3) uint8, arr_1 labels (N,) int64."""
    plan = store.manifest.plan
    shape = (plan.rows, *store.specs["images"].row_shape)
    shards = range(plan.num_shards)
    with files.atomic_file(url) as file:
        with zipfile.ZipFile(file, "w") as archive:
            _write_member(archive, "arr_0", np.uint8, shape, (store.shard(i, ("images",))["images"] for i in shards))
            labels = (store.shard(i, ("label",))["label"].astype(np.int64) for i in shards)
            _write_member(archive, "arr_1", np.int64, (plan.rows,), labels)
        lease.check()


def _write_member(
    archive: zipfile.ZipFile, name: str, dtype: type, shape: tuple[int, ...], parts: Iterator[np.ndarray]
) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array_header_2_0(member, header)
        for part in parts:
            member.write(np.ascontiguousarray(part).tobytes())


def write_png(store: Store, url: str, lease: Lease) -> None:
    """A folder per class: <class>/<index>.png, where index is the row of the set. Folders are named by `safe_name`."""
    classes = store.manifest.plan.samples.classes
    with files.atomic_folder(url) as folder:
        for shard in range(store.manifest.plan.num_shards):
            for name, label, data in _pictures(store, shard):
                files.write_bytes(files.join(folder, safe_name(classes[label]), f"{name}.png"), data)
        lease.check()


def write_tar(store: Store, url: str, lease: Lease) -> None:
    """A WebDataset: one tar per shard, with two files per image: <index>.cls (the label in decimal) and <index>.png."""
    with files.atomic_folder(url) as folder:
        for shard in range(store.manifest.plan.num_shards):
            with (
                files.atomic_file(files.join(folder, f"{shard_name(shard)}.tar")) as file,
                tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive,
            ):
                for name, label, data in _pictures(store, shard):
                    _add(archive, f"{name}.cls", str(label).encode())
                    _add(archive, f"{name}.png", data)
        lease.check()


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a member without owner or time, so that the same images give the same bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _pictures(store: Store, shard: int) -> Iterator[tuple[str, int, bytes]]:
    """Name, label and PNG of every row of a shard."""
    rows = store.shard(shard, ("images", "label"))
    for index, image, label in zip(store.manifest.plan.shard_range(shard), rows["images"], rows["label"], strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        yield f"{index:08d}", int(label), buffer.getvalue()


_WRITERS = {"npz": write_npz, "png": write_png, "tar": write_tar}
