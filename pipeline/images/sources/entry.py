"""What every source reports of an image, and which names count as images."""

from typing import NamedTuple

from rdpm.pipeline.foundation.names import leads_out

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


def check_names(entry: Entry) -> None:
    """Raise ValueError where the class or the name is not UTF-8, or would lead out of a folder as a part of a path.

    Strangers choose both, and people make paths of them.
    """
    for what, text in (("class", entry.class_name), ("name", entry.name)):
        problem = ""
        if not is_utf8(text):
            problem = "is not UTF-8"
        elif leads_out(text) or (what == "class" and text.startswith(("/", "\\"))):
            problem = "leads out of its folder"
        if problem:
            raise ValueError(
                f"image {entry.name!r} of class {entry.class_name!r} in {entry.url!r} has a {what} that {problem}; "
                "rename it"
            )


def is_utf8(text: str) -> bool:
    """False for the name of a file in other bytes, which Python keeps as lone surrogates."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
