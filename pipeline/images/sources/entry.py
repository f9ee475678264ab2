"""What every source says of an image, and the names that it takes for images."""

from typing import NamedTuple

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Entry(NamedTuple):
    """One image as a source finds it.

    name: under its class. size: of the encoded image, in bytes. url: the object that it lies in; offset: its first byte
    there, -1 where it is the whole object; row_group and row in it: its place in a Parquet file, else -1.
    """

    class_name: str
    name: str
    size: int
    url: str
    offset: int = -1
    row_group: int = -1
    row: int = -1


def is_image(name: str) -> bool:
    """Whether a path is taken for an image: an image's suffix, and nothing hidden on the way."""
    return name.lower().endswith(SUFFIXES) and not any(part.startswith(".") for part in name.split("/"))
