"""Crops of the photographs and textures that scikit-image and scikit-learn carry in their packages: a set in colour.

Every picture is a class. It is divided into blocks, some of which are held out. A held-out crop lies in one of those,
and a training crop keeps away from all of them. So no pixel is in crops of both splits. Small scattered blocks, and not
one side of the picture, so that both splits show sky and ground.

Which pictures: the colour photographs of both packages that need no download, and the three textures, which are grey.
One of the stereo pair. Left out are drawings and masks (chessboard, colour wheel, horse, logo, phantom), scanned text
(page, text), grey photographs without a texture (camera, cell, clock, coins, moon), and pictures that are too small to
be divided (microaneurysms, the faces of 25 x 25 pixels). Of large pictures a crop would be nearly constant (59% of the
retina's at 32 pixels have a standard deviation below 4 grey levels), so those are reduced. What is nearly constant
nevertheless, such as sky, says nothing about its class and is passed over.
"""

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import numpy as np
from PIL import Image

from rdpm.pipeline.foundation.permutation import order_seed, rows_at

CLASSES = (
    *("astronaut", "brick", "chelsea", "china", "coffee", "flower", "grass", "gravel", "hubble_deep_field"),
    *("immunohistochemistry", "motorcycle", "retina", "rocket"),
)
MARGIN = 16
"""Pixels between training and held-out crops, because JPEG codes colour in blocks of 16 pixels."""
LEAST_CONTRAST = 6.0
"""Standard deviation of a crop in grey levels, the mean over its channels, below which it is passed over."""
_SHORT_SIDE = 400  # a picture is reduced by the largest whole number that leaves it this many pixels
_BLOCK = 2  # side of a block in crops: a crop has (size + 1)^2 places in it
_HELD_OUT_SHARE = 1 / 8
_AT_ONCE = 256  # places that are shuffled before it is known whether they are needed

Split = Literal["train", "val"]


@dataclass(frozen=True)
class Crop:
    """A square window of a picture."""

    picture: str
    """Name of the picture."""
    split: Split
    """train to train on, val if held out."""
    top: int
    """Row of its first pixel in the picture."""
    left: int
    """Column of its first pixel in the picture."""
    size: int
    """Pixels per side."""

    def of(self, pixels: np.ndarray) -> np.ndarray:
        """The window of the picture's pixels (H, W, 3) as (size, size, 3)."""
        return pixels[self.top : self.top + self.size, self.left : self.left + self.size]


def load_pictures() -> dict[str, np.ndarray]:
    """The pictures by name, each (H, W, 3) uint8, large ones reduced by averaging.

    Raises ValueError when the installed scikit-image no longer carries one.
    """
    return {name: _reduced(Image.fromarray(_packaged(name)).convert("RGB")) for name in CLASSES}


def _reduced(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.reduce(max(1, min(picture.size) // _SHORT_SIDE)))


def _packaged(name: str) -> np.ndarray:
    """The pixels as the package gives them, (H, W) or (H, W, 3) uint8."""
    if name in ("china", "flower"):
        from sklearn.datasets import load_sample_image

        return load_sample_image(f"{name}.jpg")
    import skimage.data

    try:
        if name == "motorcycle":
            return skimage.data.stereo_motorcycle()[0]
        return getattr(skimage.data, name)()
    except (AttributeError, ImportError, OSError) as error:  # a release that no longer carries it would download it
        raise ValueError(
            f"scikit-image {version('scikit-image')} does not carry its picture {name!r} ({error}); install another "
            "release, for example that of constraints.txt"
        ) from None


def digest_of(pictures: dict[str, np.ndarray]) -> str:
    """sha256 of the names, sizes and pixels of pictures."""
    digest = hashlib.sha256()
    for name, pixels in sorted(pictures.items()):
        digest.update(f"{name} {pixels.shape}\n".encode())
        digest.update(pixels.tobytes())
    return digest.hexdigest()


def choose_crops(pictures: dict[str, np.ndarray], size: int, counts: dict[Split, int], seed: int) -> list[Crop]:
    """So many crops of each picture and split, drawn by the seed from all places with enough contrast.

    No two crops are the same; those of one split may overlap. Raises ValueError when a picture is too small to be
    divided, or has too few places.
    """
    crops = []
    for number, (name, pixels) in enumerate(sorted(pictures.items())):
        own = order_seed(seed, number)
        height, width = pixels.shape[:2]
        allowed = places(height, width, size, own)
        if allowed is None:
            raise ValueError(
                f"image_size is {size}, and {name} has {width} x {height} pixels, fewer than two blocks of "
                f"{_BLOCK * size}; use a smaller image_size"
            )
        for turn, (split, mask) in enumerate(allowed.items()):
            candidates = (Crop(name, split, top, left, size) for top, left in _shuffled(mask, order_seed(own, turn)))
            drawn = list(itertools.islice((c for c in candidates if _has_contrast(c.of(pixels))), counts[split]))
            if len(drawn) < counts[split]:
                raise ValueError(
                    f"{name} has {len(drawn)} crops of {size} pixels for {split}, and {counts[split]} are asked for; "
                    "ask for fewer"
                )
            crops += drawn
    return crops


def _shuffled(mask: np.ndarray, seed: int) -> Iterator[tuple[int, int]]:
    """(row, column) of every true entry, in the seed's order."""
    found = np.flatnonzero(mask)
    for start in range(0, len(found), _AT_ONCE):
        positions = np.arange(start, min(start + _AT_ONCE, len(found)))
        rows, columns = np.unravel_index(found[rows_at(positions, len(found), seed)], mask.shape)
        yield from zip(rows.tolist(), columns.tolist(), strict=True)


def _has_contrast(pixels: np.ndarray) -> bool:
    return pixels.std((0, 1)).mean() >= LEAST_CONTRAST


def places(height: int, width: int, size: int, seed: int) -> dict[Split, np.ndarray] | None:
    """Masks over (top, left): where a crop of each split may begin. None when there are fewer than two blocks.

    Of the blocks of 2 `size` pixels per side, an eighth is held out, drawn by the seed.
    """
    block = _BLOCK * size
    rows, columns = height // block, width // block
    if rows * columns < 2:
        return None
    blocks = np.arange(max(1, round(rows * columns * _HELD_OUT_SHARE)))
    chosen = rows_at(blocks, rows * columns, seed)
    train = np.ones((height - size + 1, width - size + 1), bool)
    held_out = np.zeros_like(train)
    for top, left in zip(chosen // columns * block, chosen % columns * block, strict=True):
        held_out[top : top + block - size + 1, left : left + block - size + 1] = True
        first_row, first_column = max(0, top - MARGIN - size + 1), max(0, left - MARGIN - size + 1)
        train[first_row : top + block + MARGIN, first_column : left + block + MARGIN] = False
    return {"train": train, "val": held_out}
