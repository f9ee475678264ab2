"""Builders of HTML escape every text, and pictures are PNGs of the pixels."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from rdpm.pipeline.reporting import page

EVIL = "<b>&\"'"
ESCAPED = "&lt;b&gt;&amp;&quot;&#x27;"
PIXELS = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)


@pytest.mark.parametrize(
    "markup",
    [
        page.image(b"", EVIL),
        page.grid([EVIL], [(EVIL, [page.Picture(PIXELS, EVIL, EVIL)])]),
        page.numbers([EVIL, EVIL], [(EVIL, EVIL, [EVIL])]),
        page.facts(EVIL, [(EVIL, EVIL)]),
        page.folded(EVIL, ""),
        page.side_by_side([(EVIL, "")]),
        page.heading(EVIL),
        page.paragraph(EVIL),
        page.section(EVIL, EVIL),
        page.page(EVIL, EVIL, []),
    ],
)
def test_text_is_escaped(markup):
    assert "<b>" not in markup
    assert ESCAPED in markup


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_pngs_of_their_pixels(channels):
    markup = page.image(page.png(PIXELS[..., :channels]), "a picture")
    data = base64.b64decode(re.search(r'base64,([^"]+)"', markup)[1])
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))).reshape(2, 2, channels), PIXELS[..., :channels])


def test_short_rows_of_a_grid_are_filled_up():
    """Otherwise the next row would start in the cells that are left."""
    picture = page.Picture(PIXELS, "x")
    markup = page.grid(["a", "b"], [("one", [picture]), ("two", [picture, picture])])
    assert "repeat(2," in markup
    assert len(re.findall(r"<div></div>|<img|class=\"label", markup)) == 3 * 3  # a head and two rows of a label and two
