"""What `rdpm init` sees of pictures."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdpm.pipeline.images.listing import list_images
from rdpm.pipeline.images.sources.source import open_source
from rdpm.pipeline.projects.choice import held_out
from rdpm.pipeline.projects.pictures import Pictures, look_at
from rdpm.pipeline.projects.sentences import about_pictures


def lay(root: Path, name: str, width: int, height: int, colour: bool) -> None:
    """One picture of noise."""
    pixels = np.random.default_rng(len(name) + width).integers(0, 256, (height, width, 3), np.uint8)
    pixels = pixels if colour else np.repeat(pixels[..., :1], 3, axis=2)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(buffer.getvalue())


def look(root: Path, seconds: float = 60.0) -> Pictures:
    return look_at(list_images(str(root)), open_source(str(root)).containers, seconds)


def test_counts_sizes_colour_and_reasons(tmp_path):
    for number in range(12):
        lay(tmp_path, f"big/{number:02d}.png", 90 + number, 40 + number, colour=False)
    for number in range(3):
        lay(tmp_path, f"small/{number}.png", 20, 30, colour=False)
    (tmp_path / "small" / "broken.png").write_bytes(b"no picture")
    found = look(tmp_path)
    assert found.counts == {"big": 12, "small": 4}
    assert (found.total, found.looked, found.complete, found.kind) == (16, 16, True, "class folders")
    assert found.short_sides == (20, 44, 51)
    assert found.grey
    assert list(found.unusable) == ["small/broken.png"]
    said = " ".join(about_pictures(found))
    assert "1 cannot be used and are left out, the first is small/broken.png (cannot identify image file" in said
    assert "16 pictures are few" in said
    lay(tmp_path, "small/colour.png", 20, 30, colour=True)
    assert not look(tmp_path).grey


def test_when_the_time_is_over_the_rest_is_not_looked_at(tmp_path):
    for number in range(130):
        lay(tmp_path, f"a/{number:03d}.png", 16, 16, colour=True)
    found = look(tmp_path, seconds=0.0)
    assert 0 < found.looked < found.total == 130
    assert any("only 64 were looked at" in sentence for sentence in about_pictures(found))


def test_one_class_uneven_classes_and_lone_pictures_are_said(tmp_path):
    for number in range(12):
        lay(tmp_path, f"many/{number}.png", 16, 16, colour=True)
    assert any("all pictures are of one class (many)" in sentence for sentence in about_pictures(look(tmp_path)))
    lay(tmp_path, "one/1.png", 16, 16, colour=True)
    found = look(tmp_path)
    said = " ".join(about_pictures(found))
    assert "uneven" in said
    assert "class one has one picture" in said
    assert held_out(found) == {"many": 4, "one": 0}


def test_too_few_and_no_usable_pictures_are_refused(tmp_path):
    for number in range(9):
        (tmp_path / "a").mkdir(exist_ok=True)
        (tmp_path / "a" / f"{number}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="hold 9 pictures; give at least 10"):
        look(tmp_path)
    (tmp_path / "a" / "9.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 10 pictures of .* can be used: a/0.png \(empty file\)"):
        look(tmp_path)
