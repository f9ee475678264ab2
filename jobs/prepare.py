"""rdpm prepare: real images that lie in installed packages, as class folders of PNGs, split into train and val."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from rdpm.jobs.arguments import parse
from rdpm.models.fields import EXECUTION
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.permutation import permute
from rdpm.pipeline.foundation.progress import ProgressLine, say
from rdpm.pipeline.foundation.records import begin
from rdpm.pipeline.images import photos

JOB = "prepare"
_AT_ONCE = 16  # files; the disk is told to keep each one, which takes longer than to write it


@dataclass(frozen=True)
class PrepareConfig:
    """scikit-learn's 1,797 digits as images."""

    out: str = field(default="runs/demo/data", metadata=EXECUTION)
    """Folder that gets train/<digit>/*.png and val/<digit>/*.png."""
    image_size: int = 16
    """Pixels per side; the 8 x 8 digits are enlarged (bicubic)."""
    held_out: int = 297
    """Images that go to val."""
    seed: int = 0
    """Seed by which they are drawn."""

    def __post_init__(self) -> None:
        if self.image_size < 8 or not 0 < self.held_out < 1797:
            raise ValueError(f"image_size is {self.image_size} (8 or more), held_out {self.held_out} (1 to 1796)")


@dataclass(frozen=True)
class PreparePhotosConfig:
    """Crops of the photographs and textures of scikit-image and scikit-learn, one class per picture."""

    out: str = field(default="runs/photos/data", metadata=EXECUTION)
    """Folder that gets train/<picture>/*.png and val/<picture>/*.png. The name of a crop is its place in the picture:
    row and column of its first pixel."""
    image_size: int = 32
    """Pixels per side of a crop."""
    per_class: int = 1000
    """Crops of each picture to train on."""
    held_out_per_class: int = 100
    """Crops of each picture that go to val, from other areas of it."""
    seed: int = 0
    """Seed by which areas and crops are drawn."""

    def __post_init__(self) -> None:
        if self.image_size < 8:
            raise ValueError(f"image_size is {self.image_size}; use 8 or more, for example 32 or 64")
        for name in ("per_class", "held_out_per_class"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use 1 or more")


def main(arguments: list[str]) -> None:
    """Entry of the subcommand."""
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name == "digits":
        digits = parse(PrepareConfig, JOB, rest)
        _prepare(digits, dict, lambda: _digits(digits), {"train": 1797 - digits.held_out, "val": digits.held_out})
    elif name == "photos":
        _prepare_photos(parse(PreparePhotosConfig, JOB, rest))
    else:
        raise ValueError(f"data set {name!r} is unknown; use: rdpm prepare digits, or: rdpm prepare photos")


def _prepare(
    config: PrepareConfig | PreparePhotosConfig,
    inputs: Callable[[], dict[str, Any]],
    pictures: Callable[[], Iterator[tuple[str, Image.Image]]],
    counts: dict[str, int],
) -> None:
    """Write pictures to their places under config.out. counts: how many there are of each split."""
    with begin(JOB, config, inputs) as record:
        if record.finished:
            say(f"prepare: {config.out} is already there")
            return

        def write(found: tuple[str, Image.Image]) -> None:
            place, picture = found
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            files.write_bytes(files.join(config.out, place), buffer.getvalue())

        total = sum(counts.values())
        with ProgressLine("prepare", total, "images") as progress:
            for number, _ in enumerate(files.in_parallel(write, pictures(), _AT_ONCE), start=1):
                progress.update(number)
        record.finish(counts)


def _digits(config: PrepareConfig) -> Iterator[tuple[str, Image.Image]]:
    """The digits, grey, and their places."""
    from sklearn.datasets import load_digits

    digits, size = load_digits(), (config.image_size, config.image_size)
    drawn = permute(np.arange(config.held_out), len(digits.target), config.seed, np.zeros(config.held_out, int))
    held_out = set(drawn.tolist())
    for number, (values, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        picture = Image.fromarray((values * (255 / 16)).round().astype(np.uint8))
        place = f"{'val' if number in held_out else 'train'}/{label}/{number:04d}.png"
        yield place, picture.resize(size, Image.Resampling.BICUBIC)


def _prepare_photos(config: PreparePhotosConfig) -> None:
    """All crops are chosen before anything is written, so that a wish which cannot be fulfilled leaves nothing."""
    pictures = photos.load_pictures()
    per_class: dict[photos.Split, int] = {"train": config.per_class, "val": config.held_out_per_class}
    crops = photos.choose_crops(pictures, config.image_size, per_class, config.seed)
    cut = (
        (f"{c.split}/{c.picture}/{c.top:04d}-{c.left:04d}.png", Image.fromarray(c.of(pictures[c.picture])))
        for c in crops
    )
    counts: dict[str, int] = {split: count * len(pictures) for split, count in per_class.items()}
    _prepare(config, lambda: {"pictures": photos.digest_of(pictures)}, lambda: cut, counts)
