import numpy as np
import pytest
import torch

from models.autoencoder import AutoencoderConfig
from models.codebook import QuantizerConfig
from models.noise import child_seeds
from models.tokenizer import Tokenizer, TokenizerConfig, from_pixels, to_pixels
from pipeline.evaluation.reconstruction import code_counts, decode_codes, encode_images, perplexity, psnr, ssim


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
