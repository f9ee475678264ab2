"""Bytes to pixels: decoding, views, and the reasons why an image is rejected.

*Encoded* images are the bytes in the source; *pixels* are uint8 (H, W, C).
"""

import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageChops, ImageOps

ViewWord = Literal["center", "flip", "ten-crop-1.1", "ten-crop-1.05"]
MAX_PIXELS = 178_956_970  # a larger picture is treated as a decompression bomb


class Reject(ValueError):
    """An image that cannot be used. The message is the reason; stores keep it, so the words must not change."""


@dataclass(frozen=True)
class View:
    """A fixed window of S x S pixels, cut from the central square of the resized image."""

    scale: float = 1.0
    """Side of the central square is scale x S pixels."""
    x: int = 1
    """Horizontal position: 0 at the left edge of the square, 1 in its middle, 2 at its right edge."""
    y: int = 1
    """Vertical position: 0 at the top edge of the square, 1 in its middle, 2 at its bottom edge."""
    flip: bool = False
    """Mirror the window horizontally."""


_POSITIONS = {"top-left": (0, 0), "top-right": (2, 0), "bottom-left": (0, 2), "bottom-right": (2, 2), "middle": (1, 1)}


def _ten_crop(scale: float) -> dict[str, View]:
    """The four corners and the middle, then their mirror images (Krizhevsky et al. 2012, at LlamaGen's scales)."""
    return {
        f"ten-crop-{scale}/{position}{'/flip' if flip else ''}": View(scale, x, y, flip)
        for flip in (False, True)
        for position, (x, y) in _POSITIONS.items()
    }


_WORDS: dict[str, dict[str, View]] = {
    "center": {"center": View()},
    "flip": {"flip": View(flip=True)},
    "ten-crop-1.1": _ten_crop(1.1),
    "ten-crop-1.05": _ten_crop(1.05),
}
VIEWS = {name: view for views in _WORDS.values() for name, view in views.items()}


def view_names(words: tuple[ViewWord, ...]) -> list[str]:
    """Names of the views that the words in a config stand for, in order."""
    return [name for word in words for name in _WORDS[word]]


@dataclass(frozen=True)
class Decoded:
    """Windows of one decoded image."""

    pixels: np.ndarray
    """(V, S, S, C) uint8, one window per view."""
    width: int
    """Width of the image before resizing."""
    height: int
    """Height of the image before resizing."""


def open_picture(data: bytes, channels: int) -> Image.Image:
    """Decode one picture, upright, in mode "L" (1 channel) or "RGB" (3). Raises Reject.

    EXIF rotation is applied, and transparency becomes white. Of an animation the first frame is used, of 16-bit values
    the high byte. CMYK becomes RGB without a colour profile; in a JPEG the inks are inverted if it has Adobe's marker.
    """
    if not data:
        raise Reject("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            picture: Image.Image = Image.open(io.BytesIO(data))
            if picture.width * picture.height > MAX_PIXELS:
                raise Reject(f"{picture.width} x {picture.height} pixels, more than {MAX_PIXELS}")
            picture.load()
            if picture.mode == "CMYK" and picture.format == "JPEG" and "adobe" not in picture.info:
                picture = ImageChops.invert(picture)  # PIL inverts every CMYK JPEG, as if it were Adobe's
            picture = ImageOps.exif_transpose(picture)
    except Reject:
        raise
    except Exception as error:  # PIL's decoders raise many kinds of errors; the message is the reason
        raise Reject(_reason(error)) from None
    return _to_mode(picture, "L" if channels == 1 else "RGB")


def _reason(error: Exception) -> str:
    """The message of a decoder without addresses of objects, so that it depends only on the image's bytes."""
    words = re.sub(r"<[^>]*>", "", str(error)).split()
    return " ".join(words)[:200] or type(error).__name__


def _to_mode(picture: Image.Image, mode: str) -> Image.Image:
    if picture.mode.startswith("I;16") or picture.mode == "I":  # 16 bits: keep the high byte
        values = np.asarray(picture, dtype=np.int64)
        picture = Image.fromarray((values >> 8).clip(0, 255).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return picture.convert(mode)


def resize_short_side(picture: Image.Image, size: int) -> Image.Image:
    """Resize the short side to `size`: box halvings, then bicubic (ADM's center_crop_arr). Raises Reject."""
    if size * size * max(picture.size) > MAX_PIXELS * min(picture.size):
        raise Reject(f"{picture.width} x {picture.height} pixels, too thin to resize to {size}")
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    target = (max(size, round(picture.width * scale)), max(size, round(picture.height * scale)))
    return picture if target == picture.size else picture.resize(target, Image.Resampling.BICUBIC)


def crop(picture: Image.Image, size: int, left: int, top: int, flip: bool) -> np.ndarray:
    """A size x size window as (size, size, C) uint8."""
    pixels = np.atleast_3d(np.asarray(picture))[top : top + size, left : left + size]
    return np.ascontiguousarray(pixels[:, ::-1] if flip else pixels)


def decode_views(data: bytes, size: int, channels: int, names: Sequence[str]) -> Decoded:
    """The fixed views of an image. The image is decoded once, and resized once per scale. Raises Reject.

    The central square of a scale is that of ADM's center_crop_arr at int(scale x size), as in LlamaGen's ten crops.
    """
    picture = open_picture(data, channels)
    squares = {scale: int(size * scale) for scale in sorted({VIEWS[name].scale for name in names})}
    resized = {scale: resize_short_side(picture, side) for scale, side in squares.items()}
    windows = []
    for view in (VIEWS[name] for name in names):
        small, side = resized[view.scale], squares[view.scale]
        left = (small.width - side) // 2 + (side - size) * view.x // 2
        top = (small.height - side) // 2 + (side - size) * view.y // 2
        windows.append(crop(small, size, left, top, view.flip))
    return Decoded(np.stack(windows), picture.width, picture.height)


def center_view(data: bytes, size: int, channels: int) -> np.ndarray:
    """The centre view of an image, (S, S, C) uint8. Raises Reject."""
    return decode_views(data, size, channels, ("center",)).pixels[0]


def random_view(data: bytes, size: int, channels: int, draw: np.ndarray, flips: bool) -> Decoded:
    """A random window of the resized image, mirrored half of the time. draw: three numbers in [0, 1). Raises Reject."""
    picture = open_picture(data, channels)
    small = resize_short_side(picture, size)
    left = int(draw[0] * (small.width - size + 1))
    top = int(draw[1] * (small.height - size + 1))
    window = crop(small, size, left, top, bool(flips and draw[2] < 0.5))
    return Decoded(window[None], picture.width, picture.height)
