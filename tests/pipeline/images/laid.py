"""Small images, class folders and tars on disk."""

import io
import tarfile

from PIL import Image

from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.listing import Listing


def picture(fmt: str = "PNG", size: int = 4, level: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size, size), level).save(buffer, fmt)
    return buffer.getvalue()


def keys_of(listing: Listing) -> list[str]:
    return listing.table["key"].to_pylist()


def lay(root: str, *names: str) -> None:
    for name in names:
        files.write_bytes(files.join(root, name), picture("JPEG" if name.lower().endswith("g") else "PNG"))


def write_tar(path, **members: bytes) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
