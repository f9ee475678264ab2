"""Images to list."""

import io

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def some_images(digits) -> dict[str, bytes]:
    """40 real digits by class and name, with names that sort unlike their numbers and one deeper in its class."""
    images = {}
    for number, (pixels, label) in enumerate(zip(digits[0][:40], digits[1][:40], strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        images[f"digit {label % 3}/no_{number}.png"] = buffer.getvalue()
    return images
