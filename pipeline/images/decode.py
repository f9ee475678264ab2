"""Bytes to pixels: decoding, views, and the reasons for which an image is rejected.

Kinds of data: *encoded* bytes as stored by the source, *pixels* uint8 (H, W, C). Stores keep what is made from pixels.
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
MAX_PIXELS = 178_956_970  # a picture of more is taken for a decompression bomb


class Reject(ValueError):
    """An image that cannot be used; the message is the reason."""


@dataclass(frozen=True)
class View:
    """A fixed window of an image: out of the centre square of scale x S pixels a side, S x S, perhaps mirrored.

    x, y: 0 at the square's left or top edge, 1 in its middle, 2 at its right or bottom edge.
    """

    scale: float = 1.0
    x: int = 1
    y: int = 1
    flip: bool = False


_PLACES = {"top-left": (0, 0), "top-right": (2, 0), "bottom-left": (0, 2), "bottom-right": (2, 2), "middle": (1, 1)}


def _ten_crop(scale: float) -> dict[str, View]:
    """The four corners and the middle, then their mirror images (Krizhevsky et al. 2012, at LlamaGen's scales)."""
    return {
        f"ten-crop-{scale}/{place}{'/flip' if flip else ''}": View(scale, x, y, flip)
        for flip in (False, True)
        for place, (x, y) in _PLACES.items()
    }


_WORDS: dict[str, dict[str, View]] = {
    "center": {"center": View()},
    "flip": {"flip": View(flip=True)},
    "ten-crop-1.1": _ten_crop(1.1),
    "ten-crop-1.05": _ten_crop(1.05),
}
VIEWS = {name: view for views in _WORDS.values() for name, view in views.items()}


def view_names(words: tuple[ViewWord, ...]) -> list[str]:
    """Names of the views that the words of a config stand for, in order."""
    return [name for word in words for name in _WORDS[word]]


@dataclass(frozen=True)
class Decoded:
    """pixels: (V, S, S, C) uint8, one window a view. width, height: of the picture before cropping."""

    pixels: np.ndarray
    width: int
    height: int


def open_picture(data: bytes, channels: int) -> Image.Image:
    """Decode one picture, upright, in "L" (1 channel) or "RGB" (3). Raises Reject.

    EXIF rotation is applied, transparency is laid on white, of an animation the first frame is taken, of 16 bits the
    high byte. CMYK becomes RGB without a colour profile; in a JPEG its inks count from full, if Adobe's marker says so.
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
                picture = ImageChops.invert(picture)  # PIL takes every CMYK JPEG for Adobe's
            picture = ImageOps.exif_transpose(picture)
    except Reject:
        raise
    except Exception as error:  # PIL's decoders raise many kinds; whatever they say is the reason
        raise Reject(_reason(error)) from None
    return _to_mode(picture, "L" if channels == 1 else "RGB")


def _reason(error: Exception) -> str:
    """What a decoder says, without the addresses of objects, so that it depends on the bytes alone."""
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
    """Short side to `size`: halvings by box, then bicubic (the rule of ADM's center_crop_arr). Raises Reject."""
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
    """The fixed views of an image that a store keeps; the image is decoded once, and resized once a scale.

    A scale's square is that of ADM's center_crop_arr at int(scale x size), as in LlamaGen's ten crops. Raises Reject.
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
    """The centre of an image, (S, S, C) uint8. Raises Reject."""
    return decode_views(data, size, channels, ("center",)).pixels[0]


def random_view(data: bytes, size: int, channels: int, draw: np.ndarray, flips: bool) -> Decoded:
    """Short side resized, a random window, a flip half of the time. draw: three numbers in [0, 1). Raises Reject."""
    picture = open_picture(data, channels)
    small = resize_short_side(picture, size)
    left = int(draw[0] * (small.width - size + 1))
    top = int(draw[1] * (small.height - size + 1))
    window = crop(small, size, left, top, bool(flips and draw[2] < 0.5))
    return Decoded(window[None], picture.width, picture.height)
