"""The same labelled images as every kind of source, written by the libraries that people write them with."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

Images = dict[str, bytes]  # encoded images by `<class>/<name>`


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """A member, as GNU tar would write it."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def class_folders(root: Path, images: Images) -> str:
    for key, data in images.items():
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        (root / key).write_bytes(data)
    return str(root)


def tar_of_class_tars(root: Path, images: Images) -> str:
    """As ILSVRC2012_img_train.tar."""
    root.mkdir()
    with tarfile.open(root / "train.tar", "w") as outer:
        for name in sorted({key.split("/")[0] for key in images}, reverse=True):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for key, data in images.items():
                    if key.startswith(f"{name}/"):
                        add(inner, key.removeprefix(f"{name}/"), data)
            add(outer, f"{name}.tar", buffer.getvalue())
    return str(root / "train.tar")


def tar_of_class_folders(root: Path, images: Images) -> str:
    """As `tar -c .` writes a folder of class folders, with its entries for folders and in the order of the disk."""
    class_folders(root / "unpacked", images)
    os.chdir(root / "unpacked")
    with tarfile.open(root / "all.tar", "w") as tar:
        tar.add(".")
    return str(root / "all.tar")


def webdataset(root: Path, images: Images) -> str:
    """Shards of samples: image, class and facts side by side, shuffled over the shards."""
    root.mkdir()
    for shard in range(3):
        with tarfile.open(root / f"train-{shard:03d}.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for key in sorted(images, key=hash)[shard::3]:
                class_name, name = key.split("/", 1)
                stem = name.rsplit(".", 1)[0]
                add(tar, name, images[key])
                add(tar, f"{stem}.mask.png", b"no image of the set")
                add(tar, f"{stem}.json", b"{}")
                add(tar, f"{stem}.cls", class_name.encode())
    return str(root / "train-{000..002}.tar")


def hugging_face(root: Path, images: Images) -> str:
    """Parquet as `datasets` writes it: struct of bytes and path, labels as numbers, names in the schema."""
    root.mkdir()
    names = sorted({key.split("/")[0] for key in images}, reverse=True)  # numbers of its own
    keys = sorted(images, key=hash)
    features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    struct = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    for number, part in enumerate((keys[::2], keys[1::2])):
        table = pa.table(
            {
                "image": pa.array([{"bytes": images[k], "path": k.split("/", 1)[1]} for k in part], struct),
                "label": pa.array([names.index(k.split("/")[0]) for k in part], pa.int64()),
            }
        ).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pq.write_table(table, root / f"train-{number}.parquet", row_group_size=5)
    return str(root)


def plain_parquet(root: Path, images: Images) -> str:
    """Parquet with a column of bytes, one of keys, and class names as labels."""
    root.mkdir()
    keys = sorted(images, key=hash)
    columns = {"key": keys, "jpg": pa.array([images[k] for k in keys]), "label": [k.split("/")[0] for k in keys]}
    pq.write_table(pa.table(columns), root / "all.parquet", row_group_size=7)
    return str(root / "*.parquet")


WRITERS: dict[str, Callable[[Path, Images], str]] = {
    writer.__name__: writer
    for writer in (
        class_folders, tar_of_class_tars, tar_of_class_folders, webdataset, hugging_face, plain_parquet,
    )
}  # fmt: skip


@pytest.fixture(params=WRITERS)
def write_source(request, monkeypatch) -> Callable[[Path, Images], str]:
    """A writer of one kind of source: (an empty place, images) to what `images=` would be."""
    monkeypatch.chdir(os.getcwd())  # back to where the test began
    return WRITERS[request.param]
