"""What every source reports of an image, and which names count as images."""

from typing import NamedTuple

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class Entry(NamedTuple):
    """One image in a source."""

    class_name: str
    """Name of its class."""
    name: str
    """Name under its class."""
    size: int
    """Bytes of the encoded image."""
    url: str
    """Object that holds the image."""
    offset: int = -1
    """First byte of the image in the object; -1 where the image is the whole object."""
    row_group: int = -1
    """Row group in a Parquet file, else -1."""
    row: int = -1
    """Row within the row group, else -1."""


def is_image(name: str) -> bool:
    """Whether a path counts as an image: it has the suffix of an image, and no part of it is hidden."""
    return name.lower().endswith(SUFFIXES) and not any(part.startswith(".") for part in name.split("/"))
