"""Uploaded pictures: what is taken, and one sentence for everything else."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rdpm.pipeline.app.uploads import MOST_BYTES, picture_of


def encoded(mode: str, kind: str, size: tuple[int, int] = (12, 8)) -> bytes:
    sink = io.BytesIO()
    Image.new(mode, size).save(sink, kind)
    return sink.getvalue()


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says that it is large."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * 8), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


SINK = io.BytesIO()
Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)).save(SINK, "PNG")
NOISE = SINK.getvalue()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_the_models_size_comes_back_to_the_bit(digit, channels):
    sink = io.BytesIO()
    Image.fromarray(digit).save(sink, "PNG")
    assert np.array_equal(picture_of(sink.getvalue(), 8, channels), digit)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("1", "PNG"), ("L", "JPEG"), ("P", "GIF"), ("RGBA", "WEBP"), ("I;16", "TIFF"), ("CMYK", "JPEG"), ("LA", "PNG")],
)
def test_usual_pictures_of_any_size_are_taken(mode, kind):
    assert picture_of(encoded(mode, kind), 8, 1).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no picture"),
        (b"#!/bin/sh\necho hello\n", "no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no picture"),
        (NOISE[: len(NOISE) // 2], "cannot be used"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "no picture|damaged"),
        (encoded("F", "TIFF"), "has the mode F"),
        (encoded("LAB", "TIFF"), "has the mode LAB"),
        (encoded("L", "PNG", (4000, 1)), "too thin"),
        (png_that_claims(8000, 8000), "8000 x 8000 pixels"),
        (png_that_claims(60_000, 60_000), "too many pixels"),
        (bytes(MOST_BYTES + 1), f"{MOST_BYTES + 1} bytes"),
    ],
    ids=["empty", "text", "postscript", "cut", "zeros", "float", "lab", "thin", "bomb", "huge bomb", "large file"],
)
def test_everything_else_is_refused_in_one_sentence(data, reason):
    with pytest.raises(ValueError, match=reason) as refusal:
        picture_of(data, 256, 3)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 300
