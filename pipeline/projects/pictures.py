"""A look at a set of pictures: how many, of which classes, how large, grey or in colour, and which cannot be used."""

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.permutation import permute
from rdpm.pipeline.foundation.progress import ProgressLine
from rdpm.pipeline.images.decode import Reject, center_view, open_picture
from rdpm.pipeline.images.listing import Listing, read_images

FEWEST = 10
_TOGETHER = 64  # neighbours that are looked at one after the other: in Parquet files they share a row group
_SIDE, _GREY = 32, 4  # pixels to which a picture is shrunk, and by how much its channels may differ and be grey


@dataclass(frozen=True)
class Pictures:
    """What is known of a set of pictures."""

    counts: dict[str, int]
    """Pictures of each class, in the order of labels."""
    kind: str
    """How they are stored: class folders, one folder, tar files or Parquet files."""
    looked: int
    """How many pictures were looked at, spread over all."""
    short_sides: tuple[int, int, int]
    """Short side that one in ten pictures does not have, the median, and the longest short side, in pixels."""
    grey: bool
    """Whether every picture that was looked at is grey."""
    seconds: float
    """Seconds in which one core reads and decodes a picture."""
    unusable: dict[str, str]
    """Reason by key of each picture that was looked at and cannot be used."""

    @property
    def total(self) -> int:
        """All pictures, with the unusable ones."""
        return sum(self.counts.values())

    @property
    def complete(self) -> bool:
        """Whether every picture was looked at."""
        return self.looked == self.total


def look_at(listing: Listing, containers: tuple[tuple[str, int], ...], seconds: float = 20.0) -> Pictures:
    """Look at the pictures of a listing, in a shuffled order, until all are seen or the seconds are over.

    containers: those of the source. Raises ValueError for fewer than FEWEST pictures, and when none can be used.
    """
    labels = np.asarray(listing.table["label"])
    per_label = np.bincount(labels, minlength=len(listing.classes)).tolist()
    if len(listing) < FEWEST:
        raise ValueError(
            f"images {listing.url!r} hold {len(listing)} pictures; give at least {FEWEST}, and better some hundred"
        )
    sides, grey, unusable, looked, started = list[int](), Counter[bool](), dict[str, str](), 0, time.monotonic()
    with ProgressLine("init: looking at", len(listing), "pictures") as progress:
        for key, data in _shuffled(listing):
            try:
                side, is_grey = _measure(data)
                sides.append(side)
                grey[is_grey] += 1
            except Reject as reason:
                unusable[key] = str(reason)
            looked += 1
            if looked % _TOGETHER == 0 and time.monotonic() - started > seconds:
                break
        progress.update(looked)
    if not sides:
        raise ValueError(
            f"none of the {looked} pictures of {listing.url!r} that were tried can be used: {reason_of(unusable)}"
        )
    kinds = {"tar": "tar files", "parquet": "Parquet files"}
    folders = "class folders" if files.list_folders(listing.url) else "one folder"
    low, middle, high = (int(value) for value in np.quantile(sides, (0.1, 0.5, 1.0), method="lower"))
    return Pictures(
        counts=dict(zip(listing.classes, per_label, strict=True)),
        kind=kinds[containers[0][0].rpartition(".")[2]] if containers else folders,
        looked=looked,
        short_sides=(low, middle, high),
        grey=not grey[False],
        seconds=(time.monotonic() - started) / looked,
        unusable=unusable,
    )


def reason_of(unusable: dict[str, str]) -> str:
    """The first unusable picture and its reason."""
    key = min(unusable)
    return f"{key} ({unusable[key]})"


def _shuffled(listing: Listing) -> Iterator[tuple[str, bytes | Reject]]:
    """(key, encoded picture) of every picture: runs of neighbours, the runs in a shuffled order."""
    runs = -(-len(listing) // _TOGETHER)
    for run in permute(np.arange(runs), runs, 0, np.zeros(runs, int)).tolist():
        part = listing.table.slice(run * _TOGETHER, _TOGETHER)
        for row, data in read_images(part):
            yield part["key"][row].as_py(), data


def _measure(data: bytes | Reject) -> tuple[int, bool]:
    """Short side of a picture, and whether it is grey. Raises Reject."""
    if isinstance(data, Reject):
        raise data
    center_view(data, _SIDE, 3)  # refuses what is too thin
    picture = open_picture(data, 3)
    little = np.asarray(picture.resize((_SIDE, _SIDE)), np.int16)
    return min(picture.size), bool(np.ptp(little, axis=2).max() <= _GREY)
