"""Pictures that are made, and their encoded bytes."""

import io

import numpy as np
from PIL import Image


def encode(picture: Image.Image, fmt: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, fmt, **options)
    return buffer.getvalue()


def coordinates(width: int, height: int) -> Image.Image:
    """A picture whose pixels encode their position: red is x, green is y."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return Image.fromarray(np.stack([x, y, x * 0], -1).astype(np.uint8))


def smooth(width: int, height: int) -> Image.Image:
    """A colourful picture without edges, which JPEG changes by a few levels only."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return Image.fromarray((255 * np.stack([x, y, (x + y) / 2], -1)).round().astype(np.uint8))


def noisy(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
