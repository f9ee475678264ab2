"""What a page asks for: the right pictures, the Python that makes them again, and refusals."""

import base64
import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rdpm.pipeline.app.drawing import WEIGHTS, Asked, drawing_of, joined, python_of
from rdpm.pipeline.foundation.config import from_dict
from rdpm.pipeline.inference.rdpm import RDPM

CELLS = ("1100", "0000", "0010", "0001")


@pytest.fixture
def asked(digit) -> dict[str, Asked]:
    """One request per method."""
    sink = io.BytesIO()
    Image.fromarray(digit).save(sink, "PNG")
    picture = base64.b64encode(sink.getvalue()).decode()
    settings = {"seed": 5, "guidance": 0.5, "temperature": 0.75}
    return {
        "sample": Asked("sample", (0, 1, 1, 0, 1), **settings),
        "inpaint": Asked("inpaint", (1, 1), picture=picture, cells=CELLS, **settings),
        "vary": Asked("vary", (0, 1, 0), picture=picture, step=2, **settings),
        "blend": Asked("blend", (0, 1), **settings),
    }


def pictures_of(drawing, model: RDPM) -> np.ndarray:
    """What is drawn in the end, (N, H, W, 3)."""
    last = {}

    def keep(t: int, rows: range, images: np.ndarray) -> None:
        if t == model.generator.config.num_steps:
            last.update(zip(rows, images, strict=True))

    drawing.draw(model, keep)
    return np.stack([last[row] for row in range(len(drawing))])


@pytest.mark.parametrize("method", ["sample", "inpaint", "vary", "blend"])
def test_the_python_makes_the_same_pictures_again(method, asked, model, run, digit, tmp_path, monkeypatch):
    drawing = drawing_of(asked[method], model)
    pictures = pictures_of(drawing, model)
    assert len(np.unique(pictures, axis=0)) > 1
    monkeypatch.chdir(tmp_path)
    Image.fromarray(digit).save("picture.png")
    exec(python_of(drawing, asked[method], model, repr(run)), {})
    saved = [np.asarray(Image.open(f"image-{number}.png")) for number in range(len(drawing))]
    assert np.array_equal(np.stack(saved), pictures)
    assert not (tmp_path / f"image-{len(drawing)}.png").exists()


def test_the_pictures_are_those_of_the_methods(asked, model, digit):
    settings = {"guidance": 0.5, "temperature": 0.75}
    mask = np.array([list(row) for row in CELLS]) == "1"
    images, mask = np.stack([digit] * 3), np.kron(mask, np.ones((2, 2), bool))
    expected = {
        "sample": model.sample([0, 1, 1, 0, 1], seed=[5, 6, 7, 8, 9], **settings),
        "inpaint": model.inpaint(images[:2], np.stack([mask] * 2), [1, 1], seed=[5, 6], **settings),
        "vary": model.vary(images, [0, 1, 0], step=2, seed=[5, 6, 7], **settings),
        "blend": model.blend([0] * 11, [1] * 11, WEIGHTS, seed=[5] * 11, **settings),
    }
    for method, images in expected.items():
        assert np.array_equal(pictures_of(drawing_of(asked[method], model), model), images), method


@pytest.mark.parametrize("method", ["sample", "inpaint", "vary", "blend"])
def test_joined_drawings_are_the_drawings(method, asked, model):
    other = {"sample": {"labels": (1,)}, "inpaint": {"cells": CELLS[::-1]}, "vary": {"labels": (1,)}, "blend": {}}
    requests = [asked[method], replace(asked[method], seed=900, guidance=2.0, temperature=0.0, **other[method])]
    drawings = [drawing_of(request, model) for request in requests]
    assert drawings[0].joins(drawings[1])
    alone = np.concatenate([pictures_of(drawing, model) for drawing in drawings])
    assert np.array_equal(pictures_of(joined(drawings), model), alone)


def test_other_methods_and_other_steps_do_not_join(asked, model):
    drawings = [drawing_of(request, model) for request in (*asked.values(), replace(asked["vary"], step=1))]
    assert not any(a.joins(b) for a in drawings for b in drawings if a is not b)


@pytest.mark.parametrize(
    ("method", "change", "named"),
    [
        ("sample", {"labels": ()}, "there are 0 classes"),
        ("sample", {"labels": (0,) * 17}, "there are 17 classes"),
        ("blend", {"labels": (0,)}, "there are 1 classes for blend; give 2"),
        ("sample", {"labels": (2,)}, "class 2 is none of this model; use 0 to 1"),
        ("vary", {"labels": (-1,)}, "class -1"),
        ("sample", {"seed": -1}, "seed is -1"),
        ("sample", {"seed": 2**60}, "seed is 1152921504606846976"),
        ("sample", {"guidance": float("nan")}, "guidance is nan"),
        ("sample", {"temperature": -0.5}, "temperature is -0.5"),
        ("vary", {"step": 4}, "step is 4; use 0 to 3"),
        ("vary", {"picture": "§"}, "not in base64"),
        ("vary", {"picture": ""}, "no picture"),
        ("inpaint", {"cells": ("11",)}, "not 4 rows of 4 cells"),
        ("inpaint", {"cells": ("1x00",) * 4}, "not 4 rows of 4 cells"),
        ("inpaint", {"cells": ("0000",) * 4}, "no cell is painted"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_its_value(method, change, named, asked, model):
    with pytest.raises(ValueError, match=named):
        drawing_of(replace(asked[method], **change), model)


@pytest.mark.parametrize("tree", [[], 3, {}, {"method": "erase", "labels": [0]}, {"method": "sample", "labels": ["a"]}])
def test_a_request_of_another_form_is_refused(tree):
    with pytest.raises(ValueError):
        from_dict(Asked, tree)
