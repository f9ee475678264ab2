"""Crops of real pictures: which places may be trained on and which are held out, and what is drawn from them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdpm.pipeline.images.photos import CLASSES, LEAST_CONTRAST, MARGIN, choose_crops, digest_of, load_pictures, places


@pytest.fixture(scope="module")
def pictures() -> dict[str, np.ndarray]:
    return load_pictures()


def covered(mask: np.ndarray, reach: int, shape: tuple[int, int]) -> np.ndarray:
    """Every pixel of windows of `reach` pixels per side that begin where the mask is true."""
    height, width = mask.shape
    down = np.zeros((shape[0], width), bool)
    for shift in range(min(reach, shape[0])):
        rows = min(height, shape[0] - shift)
        down[shift : shift + rows] |= mask[:rows]
    pixels = np.zeros(shape, bool)
    for shift in range(min(reach, shape[1])):
        columns = min(width, shape[1] - shift)
        pixels[:, shift : shift + columns] |= down[:, :columns]
    return pixels


def apart(train: np.ndarray, held_out: np.ndarray, size: int, shape: tuple[int, int]) -> bool:
    """Whether MARGIN pixels lie between all training crops and all held-out crops, given where they begin."""
    around = np.pad(covered(held_out, size, shape), MARGIN)  # a frame lets the margin reach to all sides
    near = covered(around, 2 * MARGIN + 1, (shape[0] + 4 * MARGIN, shape[1] + 4 * MARGIN))
    inside = near[2 * MARGIN : 2 * MARGIN + shape[0], 2 * MARGIN : 2 * MARGIN + shape[1]]
    return not (covered(train, size, shape) & inside).any()


@settings(max_examples=40, deadline=None)
@given(st.integers(64, 150), st.integers(64, 150), st.integers(8, 16), st.integers(0, 2**63))
def test_training_and_held_out_crops_share_no_pixel_and_keep_a_margin(height, width, size, seed):
    allowed = places(height, width, size, seed)
    assert allowed
    assert {mask.shape for mask in allowed.values()} == {(height - size + 1, width - size + 1)}
    assert allowed["val"].any()
    assert apart(allowed["train"], allowed["val"], size, (height, width))


@pytest.mark.parametrize("size", [32, 64])
def test_every_picture_has_places_of_both_splits(pictures, size):
    for name, pixels in pictures.items():
        allowed = places(*pixels.shape[:2], size, 0)
        assert allowed, name
        assert allowed["train"].mean() > 0.2, name
        assert allowed["val"].sum() >= (size + 1) ** 2, name


@pytest.mark.parametrize("size", [32, 64])
def test_crops_are_real_different_and_not_nearly_constant(pictures, size):
    counts = {"train": 30, "val": 10}
    crops = choose_crops(pictures, size, counts, 0)
    assert len(crops) == len(set(crops)) == len(CLASSES) * 40
    for name in CLASSES:
        mine = [crop for crop in crops if crop.picture == name]
        assert {split: sum(crop.split == split for crop in mine) for split in counts} == counts
        masks = {split: np.zeros(pictures[name].shape[:2], bool) for split in counts}
        for crop in mine:
            window = crop.of(pictures[name])
            assert window.shape == (size, size, 3)
            assert window.std((0, 1)).mean() >= LEAST_CONTRAST
            masks[crop.split][crop.top, crop.left] = True
        assert apart(masks["train"], masks["val"], size, pictures[name].shape[:2])


def test_the_seed_alone_decides_and_fewer_crops_are_a_part_of_more(pictures):
    few = {name: pictures[name] for name in ("chelsea", "grass")}
    crops = choose_crops(few, 32, {"train": 20, "val": 5}, 7)
    assert choose_crops(dict(reversed(few.items())), 32, {"train": 20, "val": 5}, 7) == crops
    assert set(choose_crops(few, 32, {"train": 10, "val": 3}, 7)) < set(crops)
    assert not set(choose_crops(few, 32, {"train": 20, "val": 5}, 8)) & set(crops)


def test_pictures_are_in_colour_but_for_the_textures_and_have_a_digest(pictures):
    assert tuple(pictures) == CLASSES
    grey = {name for name, pixels in pictures.items() if (pixels == pixels[..., :1]).all()}
    assert grey == {"brick", "grass", "gravel"}
    assert all(pixels.dtype == np.uint8 and min(pixels.shape[:2]) >= 300 for pixels in pictures.values())
    changed = {**pictures, "brick": 255 - pictures["brick"]}
    assert digest_of(pictures) == digest_of(dict(reversed(pictures.items()))) != digest_of(changed)


def test_a_picture_that_is_too_small_or_too_flat_is_refused_by_name():
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    with pytest.raises(
        ValueError, match=r"image_size is 64, and here has 100 x 100 pixels, fewer than two blocks of 128"
    ):
        choose_crops({"here": noise}, 64, {"train": 1, "val": 1}, 0)
    with pytest.raises(ValueError, match="here has 0 crops of 16 pixels for train, and 4 are asked for"):
        choose_crops({"here": np.full_like(noise, 7)}, 16, {"train": 4, "val": 1}, 0)


def test_a_picture_that_the_package_no_longer_carries_is_named(monkeypatch):
    import skimage.data

    def fetch() -> None:
        raise ModuleNotFoundError("The requested file is part of the scikit-image distribution, but needs pooch")

    monkeypatch.setattr(skimage.data, "astronaut", fetch)
    with pytest.raises(ValueError, match=r"scikit-image .* does not carry its picture 'astronaut' .*install another"):
        load_pictures()
