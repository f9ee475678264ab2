import numpy as np
import pytest
import torch

from models.autoencoder import AutoencoderConfig
from models.codebook import QuantizerConfig
from models.noise import child_seeds
from models.tokenizer import Tokenizer, TokenizerConfig, from_pixels, to_pixels
from pipeline.evaluation.reconstruction import (
    PAIRS,
    POOLED,
    RunningFidelity,
    code_counts,
    decode_codes,
    encode_images,
    lpips,
    perplexity,
    psnr,
    ssim,
)


def _pair(values):
    real = np.zeros((len(values), 8, 8, 3), np.uint8)
    return real, np.stack([np.full((8, 8, 3), value, np.uint8) for value in values])


def test_psnr_of_known_errors():
    assert psnr(*_pair([1])) == pytest.approx(48.130803608679, abs=1e-9)  # 20 log10 255
    assert psnr(*_pair([255])) == pytest.approx(0, abs=1e-12)  # no wrap-around of uint8
    assert psnr(*_pair([51])) == pytest.approx(20 * np.log10(5), abs=1e-9)


def test_psnr_is_the_mean_over_images_of_decibels():
    real, fake = _pair([1, 51])
    assert psnr(real, fake) == pytest.approx((psnr(real[:1], fake[:1]) + psnr(real[1:], fake[1:])) / 2)
    assert psnr(real, fake) == psnr(fake, real)


def test_ssim_is_one_for_equal_images_and_the_formula_on_one_window():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, size=(2, 1, 7, 7, 1)).astype(np.uint8)
    assert ssim(a, a) == pytest.approx(1)
    x, y = a.ravel().astype(float), b.ravel().astype(float)
    covariance = np.cov(x, y)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * x.mean() * y.mean() + c1) * (2 * covariance[0, 1] + c2)
    expected /= (x.mean() ** 2 + y.mean() ** 2 + c1) * (covariance[0, 0] + covariance[1, 1] + c2)
    assert ssim(a, b) == pytest.approx(expected, abs=1e-9)


def _figures(real, fake, threads=1):
    fidelity = RunningFidelity(threads)
    fidelity.add(real, fake)
    return fidelity.figures()


def _photos(size, channels=3):
    """Two smooth pictures and noisy copies."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [np.sin(6 * x + c) * np.cos(5 * y - c) for c in range(2 * channels)]
    real = np.stack(waves, axis=-1).reshape(size, size, 2, channels).transpose(2, 0, 1, 3) * 100 + 128
    fake = real + rng.normal(0, 12, real.shape)
    return tuple(v.clip(0, 255).round().astype(np.uint8) for v in (real, fake))


def test_conventions_differ_as_they_are_known_to():
    real, fake = _photos(32)
    found = _figures(real, fake)
    assert set(found) == {*PAIRS, POOLED}
    assert found["psnr"] == psnr(real, fake)
    assert found["ssim"] == ssim(real, fake)
    errors = ((real.astype(float) - fake) ** 2).mean(axis=(1, 2, 3))
    assert found[POOLED] == pytest.approx(10 * np.log10(255**2 / errors.mean()), abs=1e-9)
    assert found["psnr"] == pytest.approx((10 * np.log10(255**2 / errors)).mean(), abs=1e-9)
    assert found[POOLED] < found["psnr"]  # Jensen
    assert found["psnr_luma"] > found["psnr"]  # noise of three channels averages out
    assert found["psnr_uint8_wrap"] > found["psnr"]
    assert found["ssim_range2"] > found["ssim"]
    assert found["ssim_gaussian_signed"] < found["ssim_gaussian"]


def _window_ssim(a, b, weights, data_range, sample):
    """The formula on one window: means, variances and covariance under weights that add up to one."""
    ma, mb = (weights * a).sum(), (weights * b).sum()
    va, vb, cov = ((weights * x * y).sum() - m for x, y, m in ((a, a, ma * ma), (b, b, mb * mb), (a, b, ma * mb)))
    va, vb, cov = (value * sample for value in (va, vb, cov))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    return (2 * ma * mb + c1) * (2 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))


def test_each_ssim_is_its_formula_on_one_window():
    rng = np.random.default_rng(0)
    x = np.arange(11) - 5
    bell = np.exp(-(x**2) / (2 * 1.5**2))
    bell = np.outer(bell, bell) / bell.sum() ** 2
    flat = np.full((7, 7), 1 / 49)
    for name, size, weights, data_range, shift, scale, sample in (
        ("ssim", 7, flat, 255, 0, 1, 49 / 48),
        ("ssim_range2", 7, flat, 2, 0, 1 / 255, 49 / 48),
        ("ssim_gaussian", 11, bell, 255, 0, 1, 1),
        ("ssim_gaussian_signed", 11, bell, 2, -1, 1 / 127.5, 1),
    ):
        a, b = rng.integers(0, 256, size=(2, size, size, 1)).astype(np.uint8)
        u, v = (scale * image[..., 0] + shift for image in (a, b))
        assert PAIRS[name].measure(a, b) == pytest.approx(_window_ssim(u, v, weights, data_range, sample), abs=1e-9)
    a, b = rng.integers(0, 256, size=(2, 11, 11, 3)).astype(np.uint8)
    u, v = (image @ [0.299, 0.587, 0.114] for image in (a, b))
    assert PAIRS["ssim_gaussian_luma"].measure(a, b) == pytest.approx(_window_ssim(u, v, bell, 255, 1), abs=1e-9)


def test_parts_and_threads_do_not_show():
    real, fake = _photos(16)
    whole = _figures(real, fake)
    fidelity = RunningFidelity(2)
    for i in range(2):
        fidelity.add(real[i : i + 1], fake[i : i + 1])
    assert fidelity.figures() == whole == _figures(real, fake, threads=2)


def test_conventions_that_do_not_fit_the_images_are_left_out():
    assert set(_figures(*_photos(8))) == {POOLED, *(name for name, c in PAIRS.items() if c.window <= 7)}
    assert not any("luma" in name for name in _figures(*_photos(16, channels=1)))


class _MeanSquare(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, a, b):
        assert a.abs().max() <= 1
        return ((a - b) ** 2).mean()


def test_lpips_is_a_mean_over_images_whatever_the_batch():
    real, fake = (np.concatenate([x, x[:1]]) for x in _photos(16))
    found = [lpips(_MeanSquare(), real, fake, batch) for batch in (1, 2, 3)]
    expected = ((real / 127.5 - fake / 127.5) ** 2).mean()
    assert found == pytest.approx([expected] * 3, rel=1e-5)


def test_counts_and_perplexity_of_known_codes():
    codes = np.zeros((4, 2, 1, 1), np.int64)
    codes[:, 1, 0, 0] = [0, 1, 2, 3]
    counts = code_counts(codes, 5)
    assert counts.tolist() == [[4, 0, 0, 0, 0], [1, 1, 1, 1, 0]]
    assert perplexity(counts) == pytest.approx([1, 4])


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    shape = TokenizerConfig(8, AutoencoderConfig(1, 8, (1, 1), 1, (), 4), QuantizerConfig(16, 4))
    return Tokenizer(shape).eval()


def test_encoding_and_decoding_are_the_tokenizer_one_image_at_a_time(tokenizer):
    pixels = np.random.default_rng(0).integers(0, 256, size=(5, 8, 8, 1)).astype(np.uint8)
    codes = encode_images(tokenizer, pixels, seed=7, first=10, batch=2)
    back = decode_codes(tokenizer, codes, codes.shape[1], batch=3)
    with torch.no_grad():
        for i, image in enumerate(torch.from_numpy(pixels).permute(0, 3, 1, 2)):
            result = tokenizer.encode(from_pixels(image[None]), child_seeds(7, torch.tensor([10 + i])))
            assert np.array_equal(result.codes[0].numpy(), codes[i])
            decoded = to_pixels(tokenizer.decode(result.accumulated))[0].permute(1, 2, 0).numpy()
            assert np.abs(decoded.astype(int) - back[i]).max() <= 1


def test_no_step_is_no_image(tokenizer):
    codes = np.zeros((2, 10, 4, 4), np.uint16)
    start = decode_codes(tokenizer, codes, 0, batch=2)
    assert np.array_equal(start[0], start[1])
    assert start.shape == (2, 8, 8, 1)
    assert start.dtype == np.uint8
