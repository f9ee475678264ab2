"""Encoded images to pixels: what is rejected and why, and what becomes of colours, transparency and rotation."""

import io

import numpy as np
import pytest
from PIL import Image, ImageChops

from rdpm.pipeline.images import decode
from rdpm.pipeline.images.decode import (
    Reject,
    center_view,
    decode_views,
    open_picture,
)  # fmt: skip
from tests.pipeline.images.pictures import coordinates, encode, noisy, smooth


def pixels_of(data: bytes, channels: int = 3) -> np.ndarray:
    return np.asarray(open_picture(data, channels)).astype(int)


JPEG, PNG = encode(noisy(40, 30), "JPEG"), encode(noisy(40, 30))


BAD = {
    "empty": b"",
    "web page named .jpg": b"<!DOCTYPE html><html><body>404</body></html>",
    "zeros": bytes(500),
    "jpeg's first bytes": JPEG[:10],
    "half a jpeg": JPEG[: len(JPEG) // 2],
    "most of a jpeg": JPEG[: len(JPEG) * 9 // 10],
    "half a png": PNG[: len(PNG) // 2],
    "damaged png": PNG[:60] + bytes([PNG[60] ^ 255]) + PNG[61:],
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_what_is_no_complete_image_is_rejected_with_a_reason(data):
    with pytest.raises(Reject) as rejected:
        center_view(data, 8, 3)
    assert 3 < len(str(rejected.value)) <= 200
    assert "\n" not in str(rejected.value)


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_the_reason_depends_only_on_the_bytes(data):
    """Reasons are stored, and a retry must store the same bytes."""
    reasons, held = set(), []
    for size in range(3):
        held.append(bytearray(10_000 * (size + 1)))  # so that no address is used twice
        with pytest.raises(Reject) as rejected:
            open_picture(bytes(data), 3)
        reasons.add(str(rejected.value))
        held.append(rejected)
    assert len(reasons) == 1
    assert "0x" not in reasons.pop()


def test_damage_of_any_kind_gives_an_image_or_a_reject_and_no_other_error():
    random = np.random.default_rng(1)
    formats = {"JPEG": {}, "PNG": {}, "GIF": {}, "WEBP": {}, "TIFF": {"compression": "tiff_lzw"}, "BMP": {}}
    rejected = 0
    for fmt, options in formats.items():
        good = encode(noisy(16, 12), fmt, **options)
        for _ in range(60):
            bad = bytearray(good)
            for place in random.integers(0, min(len(bad), 400), 3):
                bad[place] = random.integers(256)
            try:
                assert center_view(bytes(bad), 8, 3).shape == (8, 8, 3)
            except Reject:
                rejected += 1
    assert rejected > 30


def test_grey_is_the_same_in_every_channel_of_rgb():
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    found = pixels_of(encode(Image.fromarray(levels)))
    assert (found == levels[..., None]).all()
    assert center_view(encode(Image.fromarray(levels)), 8, 1).tolist() == levels[..., None].tolist()


def test_rgb_in_one_channel_is_its_luma():
    found = pixels_of(encode(noisy(8, 8)), channels=1)
    luma = np.asarray(noisy(8, 8)) @ [0.299, 0.587, 0.114]
    assert np.abs(found - luma).max() <= 1


def test_cmyk_keeps_its_colours():
    found = pixels_of(encode(smooth(32, 32).convert("CMYK"), "JPEG", quality=95))
    assert np.abs(found - np.asarray(smooth(32, 32))).max() < 20


def test_the_marker_of_a_cmyk_jpeg_decides_whether_its_inks_are_inverted():
    """With Adobe's marker 255 means no ink, without it 255 means full ink (as in libjpeg and browsers)."""
    adobe = encode(smooth(32, 32).convert("CMYK"), "JPEG", quality=95)
    start = adobe.index(b"\xff\xee\x00\x0eAdobe")
    plain = adobe[:start] + adobe[start + 16 :]
    inverse = np.asarray(ImageChops.invert(Image.open(io.BytesIO(adobe))).convert("RGB")).astype(int)
    assert np.abs(pixels_of(plain) - inverse).max() <= 2
    assert np.abs(pixels_of(plain) - pixels_of(adobe)).max() > 100


def test_grey_pictures_with_alpha_and_one_bit_pictures_are_decoded_as_they_look():
    grey = Image.fromarray(np.array([[[90, 255], [90, 0]]], np.uint8), "LA")
    assert pixels_of(encode(grey))[0].tolist() == [[90] * 3, [255] * 3]
    bits = Image.fromarray(np.array([[True, False]]))
    assert pixels_of(encode(bits))[0].tolist() == [[255] * 3, [0] * 3]


def test_transparency_becomes_white():
    colours = np.array([[[200, 0, 40, 0], [200, 0, 40, 255], [200, 0, 40, 128]]], np.uint8)
    found = pixels_of(encode(Image.fromarray(colours)))[0]
    assert found[0].tolist() == [255, 255, 255]
    assert found[1].tolist() == [200, 0, 40]
    assert np.abs(found[2] - (np.array([200, 0, 40]) * 128 + 255 * 127) / 255).max() <= 1


def test_a_transparent_palette_entry_is_white_and_the_others_keep_their_colours():
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putdata([0, 1])
    assert pixels_of(encode(picture, transparency=0))[0].tolist() == [[255, 255, 255], [200, 100, 50]]
    assert pixels_of(encode(picture))[0].tolist() == [[10, 20, 30], [200, 100, 50]]


def test_a_transparent_colour_of_an_rgb_png_is_white():
    picture = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert pixels_of(encode(picture, transparency=(1, 2, 3)))[0].tolist() == [[255, 255, 255], [4, 5, 6]]


def test_of_sixteen_bits_the_high_byte_is_kept():
    values = np.array([[0x0000, 0x00FF, 0x0100, 0xABCD, 0xFF00, 0xFFFF]], np.uint16)
    found = pixels_of(encode(Image.fromarray(values)))
    assert found[0, :, 0].tolist() == [0x00, 0x00, 0x01, 0xAB, 0xFF, 0xFF]
    assert (found == found[..., :1]).all()


# Orientation tag to what turns the stored pixels upright (Exif 2.32, section 4.6.4).
UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_rotation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = coordinates(9, 5)
    data = encode(stored, exif=exif)
    upright = UPRIGHT[orientation](np.asarray(stored))
    assert np.array_equal(pixels_of(data), upright)
    decoded = decode_views(data, 5, 3, ["center"])
    assert (decoded.height, decoded.width) == upright.shape[:2]


def test_of_an_animation_the_first_frame_is_taken():
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("#ff0000", "#00ff00", "#0000ff")]
    for fmt, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True})):
        data = encode(frames[0], fmt, save_all=True, append_images=frames[1:], duration=50, **options)
        assert (pixels_of(data) == [255, 0, 0]).all(), fmt


def test_a_picture_of_too_many_pixels_is_rejected_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 100)
    assert center_view(encode(noisy(10, 10)), 8, 3).shape == (8, 8, 3)
    bomb = encode(Image.new("1", (5000, 5000)))
    assert len(bomb) < 10_000
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("the bomb was decoded"))
    for data, size in ((bomb, "5000 x 5000"), (encode_header_of(11, 10), "11 x 10")):
        with pytest.raises(Reject, match=f"{size} pixels, more than 100"):
            open_picture(data, 3)


def encode_header_of(width: int, height: int) -> bytes:
    """An uncompressed picture, written by hand as a portable grey map."""
    return f"P5 {width} {height} 255\n".encode() + bytes(width * height)
