"""Fidelity metrics are their formulas, and reconstructions are the tokenizer's, however images are cut into calls."""

import hashlib
import itertools

import numpy as np
import pytest
import torch
from torchvision.models.vgg import cfgs, make_layers

from rdpm.models import losses
from rdpm.models.autoencoder import AutoencoderConfig
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.noise import child_seeds
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig, from_pixels, to_pixels
from rdpm.pipeline.evaluation import image_sets
from rdpm.pipeline.evaluation.classifier import Classifier, ClassifierConfig
from rdpm.pipeline.evaluation.distribution import frechet_of
from rdpm.pipeline.evaluation.feature_statistics import take_statistics
from rdpm.pipeline.evaluation.features import ClassifierExtractor
from rdpm.pipeline.evaluation.fidelity import (
    PAIRS,
    POOLED,
    RunningFidelity,
    code_counts,
    lpips,
    perplexity,
    psnr,
    reconstruct,
    ssim,
)
from rdpm.pipeline.evaluation.image_sets import ArchiveImages
from rdpm.pipeline.evaluation.metrics import tokenizer_metrics
from rdpm.pipeline.inference.codec import Codec


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


def _metrics(real, fake, threads=1):
    fidelity = RunningFidelity(threads)
    fidelity.add(real, fake)
    return fidelity.metrics()


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
    metrics = _metrics(real, fake)
    assert set(metrics) == {*PAIRS, POOLED}
    assert metrics["psnr"] == psnr(real, fake)
    assert metrics["ssim"] == ssim(real, fake)
    errors = ((real.astype(float) - fake) ** 2).mean(axis=(1, 2, 3))
    assert metrics[POOLED] == pytest.approx(10 * np.log10(255**2 / errors.mean()), abs=1e-9)
    assert metrics["psnr"] == pytest.approx((10 * np.log10(255**2 / errors)).mean(), abs=1e-9)
    assert metrics[POOLED] < metrics["psnr"]  # Jensen's inequality
    assert metrics["psnr_luma"] > metrics["psnr"]  # the noise of three channels averages out
    assert metrics["psnr_uint8_wrap"] > metrics["psnr"]
    assert metrics["ssim_range2"] > metrics["ssim"]
    assert metrics["ssim_gaussian_signed"] < metrics["ssim_gaussian"]


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


def test_parts_and_threads_do_not_change_metrics():
    real, fake = _photos(16)
    at_once = _metrics(real, fake)
    fidelity = RunningFidelity(2)
    for i in range(2):
        fidelity.add(real[i : i + 1], fake[i : i + 1])
    assert fidelity.metrics() == at_once == _metrics(real, fake, threads=2)


def test_conventions_that_do_not_fit_the_images_are_left_out():
    assert set(_metrics(*_photos(8))) == {POOLED, *(name for name, c in PAIRS.items() if c.window <= 7)}
    assert not any("luma" in name for name in _metrics(*_photos(16, channels=1)))


@pytest.fixture(scope="module")
def perceptual(tmp_path_factory):
    """LPIPS with a VGG16 of made weights."""
    path = tmp_path_factory.mktemp("lpips") / "vgg16.pth"
    torch.manual_seed(0)
    trunk = make_layers(cfgs["D"], batch_norm=False).state_dict()
    torch.save({f"features.{name}": value for name, value in trunk.items()}, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "VGG16_SHA256_PREFIX", hashlib.sha256(path.read_bytes()).hexdigest()[:8])
        return losses.PerceptualLoss(str(path))


@pytest.mark.slow
def test_lpips_is_the_mean_over_images_for_any_batch(perceptual):
    real, fake = (np.concatenate([x, x[:1]]) for x in _photos(16))
    each = [lpips(perceptual, real[i : i + 1], fake[i : i + 1], 1) for i in range(3)]
    assert min(each) > 0
    assert each[0] != pytest.approx(each[1], rel=1e-2)
    for batch in (1, 2, 3):
        assert lpips(perceptual, real, fake, batch) == pytest.approx(np.mean(each), rel=1e-5)
    assert lpips(perceptual, real, real, 2) == 0


@pytest.mark.parametrize("chunk", [3, 300])
def test_metrics_of_a_tokenizer_are_those_of_all_images_at_once(tmp_path, perceptual, monkeypatch, chunk):
    """In chunks of three, which batches of two do not fill, and with the whole set in one chunk."""
    monkeypatch.setattr(image_sets, "CHUNK", chunk)
    torch.manual_seed(0)
    shape = TokenizerConfig(16, AutoencoderConfig(3, 8, (1, 1), 1, (), 4), QuantizerConfig(16, 4))
    tokenizer = Tokenizer(shape).eval()
    pixels = np.concatenate(_photos(16))
    np.savez(tmp_path / "photos.npz", pixels)
    extractor = ClassifierExtractor(Classifier(ClassifierConfig(num_classes=3, channels=3)).eval(), 4)
    photos = ArchiveImages(str(tmp_path / "photos.npz"), 3)
    originals = take_statistics(photos, extractor, 0, "photos")
    codec = Codec(tokenizer, 2)
    metrics = tokenizer_metrics(codec, extractor, photos, originals, perceptual, seed=5, threads=1)
    expected = reconstruct(codec, pixels, seed=5)
    assert metrics["lpips"] == pytest.approx(lpips(perceptual, pixels, expected.pixels, 4), rel=1e-5)
    assert metrics["psnr"] == pytest.approx(psnr(pixels, expected.pixels), rel=1e-12)
    assert metrics["ssim"] == pytest.approx(ssim(pixels, expected.pixels), rel=1e-12)
    distance = frechet_of(extractor.extract(pixels).features, extractor.extract(expected.pixels).features)
    assert metrics["rfid"] == pytest.approx(distance, rel=1e-6)
    assert metrics["perplexity_by_step"] == perplexity(code_counts(expected.codes, 16)).tolist()


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


def _noisy_images(n):
    return np.random.default_rng(0).integers(0, 256, size=(n, 8, 8, 1)).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4, 16])
def test_at_one_batch_size_codes_do_not_depend_on_the_cuts_between_calls(tokenizer, batch):
    """Images alone, in parts that batches do not fill, and all at once: identical codes and pixels."""
    pixels, codec = _noisy_images(13), Codec(tokenizer, batch)
    at_once = reconstruct(codec, pixels, seed=7, first=10)
    for cuts in (range(1, 13), (5, 7), (4, 8, 12), (12,)):
        edges = [0, *cuts, 13]
        parts = [
            reconstruct(codec, pixels[start:stop], seed=7, first=10 + start)
            for start, stop in itertools.pairwise(edges)
        ]
        assert np.array_equal(np.concatenate([part.codes for part in parts]), at_once.codes)
        assert np.array_equal(np.concatenate([part.pixels for part in parts]), at_once.pixels)


def test_batch_sizes_change_metrics_only_by_rounding(tokenizer):
    pixels = _noisy_images(13)
    results = [reconstruct(Codec(tokenizer, batch), pixels, seed=7) for batch in (1, 4, 16)]
    for result in results[1:]:
        assert (result.codes == results[0].codes).mean() > 0.99
        assert psnr(pixels, result.pixels) == pytest.approx(psnr(pixels, results[0].pixels), rel=1e-3)


def test_a_reconstruction_is_the_tokenizers_one_image_at_a_time(tokenizer):
    pixels = _noisy_images(5)
    result = reconstruct(Codec(tokenizer, 2), pixels, seed=7, first=10)
    with torch.no_grad():
        for i, image in enumerate(torch.from_numpy(pixels).permute(0, 3, 1, 2)):
            expected = tokenizer.encode(from_pixels(image[None]), child_seeds(7, torch.tensor([10 + i])))
            assert np.array_equal(expected.codes[0].numpy(), result.codes[i])
            decoded = to_pixels(tokenizer.decode(expected.accumulated))[0].permute(1, 2, 0).numpy()
            assert np.abs(decoded.astype(int) - result.pixels[i]).max() <= 1


def test_without_any_step_all_codes_decode_to_the_same_image(tokenizer):
    codes = np.random.default_rng(0).integers(0, 16, size=(2, 10, 4, 4)).astype(np.uint16)
    start = Codec(tokenizer, 2).decode(codes, 0)
    assert np.array_equal(start[0], start[1])
    assert start.shape == (2, 8, 8, 1)
    assert start.dtype == np.uint8
