"""Windows of pictures: the fixed views, as ADM and LlamaGen cut them, and random ones."""

import numpy as np
import pytest
from PIL import Image

from rdpm.pipeline.images import decode
from rdpm.pipeline.images.decode import (
    VIEWS,
    Reject,
    center_view,
    decode_views,
    open_picture,
    random_view,
    resize_short_side,
    view_names,
)  # fmt: skip
from tests.pipeline.images.pictures import coordinates, encode, noisy, smooth


def random_pixels(*arguments, **options) -> np.ndarray:
    """Only the window."""
    return random_view(*arguments, **options).pixels[0]


def center_crop_arr(picture: Image.Image, image_size: int) -> np.ndarray:
    """guided-diffusion's rule (Dhariwal and Nichol 2021, image_datasets.py), written out here as the reference."""
    while min(*picture.size) >= 2 * image_size:
        picture = picture.resize(tuple(x // 2 for x in picture.size), resample=Image.BOX)
    scale = image_size / min(*picture.size)
    picture = picture.resize(tuple(round(x * scale) for x in picture.size), resample=Image.BICUBIC)
    pixels = np.array(picture)
    top, left = (pixels.shape[0] - image_size) // 2, (pixels.shape[1] - image_size) // 2
    return pixels[top : top + image_size, left : left + image_size]


SHAPES = [(64, 64), (65, 127), (128, 64), (200, 333), (333, 200), (31, 17), (63, 640), (257, 129), (16, 16), (15, 90)]


@pytest.mark.parametrize(("width", "height"), SHAPES)
@pytest.mark.parametrize("size", [16, 64])
def test_the_center_view_is_adms_center_crop(width, height, size):
    picture = noisy(width, height)
    found = decode_views(encode(picture), size, 3, ["center"])
    expected = center_crop_arr(picture, size)
    assert found.pixels.shape == (1, *expected.shape) == (1, size, size, 3)
    assert np.abs(found.pixels[0].astype(int) - expected).max() <= 1
    assert (found.width, found.height) == (width, height)


def test_the_flip_view_is_the_mirrored_center_view():
    for width, height in SHAPES:
        data = encode(noisy(width, height))
        center, flip = decode_views(data, 16, 3, ["center", "flip"]).pixels
        assert np.array_equal(center, center_view(data, 16, 3))
        assert np.array_equal(flip, center[:, ::-1])
        assert not np.array_equal(flip, center)


def five_crop(picture: np.ndarray, size: int) -> list[np.ndarray]:
    """torchvision's five windows, written out: the corners in reading order and the middle."""
    far_y, far_x = picture.shape[0] - size, picture.shape[1] - size
    corners = [(0, 0), (0, far_x), (far_y, 0), (far_y, far_x), (far_y // 2, far_x // 2)]
    return [picture[y : y + size, x : x + size] for y, x in corners]


@pytest.mark.parametrize("scale", ["1.1", "1.05"])
@pytest.mark.parametrize(("width", "height"), [(500, 375), (333, 480), (64, 64)])
def test_ten_crop_is_the_corners_and_the_middle_of_adms_square_and_their_mirror_images(width, height, scale):
    picture, size = noisy(width, height), 64
    names = view_names((f"ten-crop-{scale}",))
    assert len(names) == len(set(names)) == 10
    found = decode_views(encode(picture), size, 3, names).pixels
    side = int(size * float(scale))
    windows = five_crop(center_crop_arr(picture, side), size)
    for number, window in enumerate(windows):
        assert np.abs(found[number].astype(int) - window).max() <= 1
        assert np.array_equal(found[number + 5], found[number][:, ::-1])
        assert VIEWS[names[number + 5]].flip


def test_an_image_is_decoded_once_for_all_its_views(monkeypatch):
    data, opened = encode(noisy(100, 80)), []
    alone = {name: decode_views(data, 32, 3, [name]).pixels[0] for name in VIEWS}
    monkeypatch.setattr(decode, "open_picture", lambda *a: opened.append(1) or open_picture(*a))
    together = decode_views(data, 32, 3, list(VIEWS)).pixels
    assert len(opened) == 1
    assert all(np.array_equal(pixels, alone[name]) for pixels, name in zip(together, VIEWS, strict=True))


def test_the_short_side_gets_the_size_and_the_long_side_never_less():
    for width, height in SHAPES:
        small = resize_short_side(noisy(width, height), 16)
        assert min(small.size) == 16
        assert (small.width >= small.height) == (width >= height) or small.width == small.height


LAST = np.nextafter(np.float32(1), np.float32(0))


@pytest.mark.parametrize(("width", "height"), [(8, 20), (20, 8), (8, 8), (250, 8), (8, 256)])
def test_random_windows_stay_inside_reach_every_position_and_are_cut_where_they_say(width, height):
    data = encode(coordinates(width, height))
    places = set()
    for u in np.append(np.linspace(0, 1, 300, endpoint=False, dtype=np.float32), LAST):
        view = random_pixels(data, 8, 3, np.array([u, u, 0.9], np.float32), flips=True)
        left, top = int(view[0, 0, 0]), int(view[0, 0, 1])
        places.add((left, top))
        assert np.array_equal(view, np.asarray(coordinates(width, height))[top : top + 8, left : left + 8])
    assert len(places) == max(width, height) - 7  # from edge to edge; the other side has one position


def test_the_two_sides_are_drawn_independently():
    data = encode(smooth(64, 16))
    tall = encode(smooth(16, 64))
    for u in (0.1, 0.7):
        assert np.array_equal(*(random_pixels(data, 16, 3, np.array([u, v, 0.9]), True) for v in (0.0, 0.8)))
        assert np.array_equal(*(random_pixels(tall, 16, 3, np.array([v, u, 0.9]), True) for v in (0.0, 0.8)))


def test_a_random_view_flips_below_one_half_and_only_on_request():
    data = encode(noisy(24, 16))
    straight = random_pixels(data, 16, 3, np.array([0.3, 0.0, 0.5]), flips=True)
    mirrored = random_pixels(data, 16, 3, np.array([0.3, 0.0, 0.49]), flips=True)
    assert np.array_equal(mirrored, straight[:, ::-1])
    assert np.array_equal(random_pixels(data, 16, 3, np.array([0.3, 0.0, 0.0]), flips=False), straight)


def test_a_thin_picture_that_would_become_huge_is_rejected(monkeypatch):
    """1 x 300 has few pixels; with its short side at 256 it has 20 million."""
    monkeypatch.setattr(decode, "MAX_PIXELS", 1_000_000)
    with pytest.raises(Reject, match="1 x 300"):
        center_view(encode(noisy(1, 300)), 256, 3)
