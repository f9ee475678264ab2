"""The tokenizer as a whole: images to codes and back."""

import pytest
import torch

from rdpm.models.autoencoder import AutoencoderConfig
from rdpm.models.tokenizer import TokenizerConfig, from_pixels, to_pixels


@pytest.fixture
def images():
    return torch.rand(5, 3, 16, 16) * 2 - 1


SEEDS = torch.tensor([3, -1, 0, 2**62, 17])


def test_codes_and_latents_have_the_configured_shapes(tokenizer, images):
    result = tokenizer.encode(images, SEEDS)
    assert result.codes.shape == (5, 4, 4, 4)
    assert result.codes.min() >= 0
    assert result.codes.max() < 64
    assert result.accumulated.shape == (5, *tokenizer.config.latent_shape)
    assert tokenizer.decode(result.accumulated).shape == images.shape


def test_an_image_is_encoded_the_same_in_any_batch(tokenizer, images):
    whole = tokenizer.encode(images, SEEDS)
    order = torch.tensor([4, 2, 0, 1, 3])
    shuffled = tokenizer.encode(images[order], SEEDS[order])
    assert torch.equal(shuffled.codes, whole.codes[order])
    for i in range(5):
        alone = tokenizer.encode(images[i : i + 1], SEEDS[i : i + 1])
        assert torch.equal(alone.codes[0], whole.codes[i])
        assert torch.equal(alone.noise[0], whole.noise[i])
        torch.testing.assert_close(alone.accumulated[0], whole.accumulated[i], atol=1e-5, rtol=0)


def test_codes_are_a_function_of_image_and_seed(tokenizer, images):
    codes = tokenizer.encode(images, SEEDS).codes
    assert torch.equal(tokenizer.encode(images, SEEDS).codes, codes)
    assert not torch.equal(tokenizer.encode(images, SEEDS + 1).codes, codes)
    assert not torch.equal(tokenizer.encode(-images, SEEDS).codes, codes)


def test_training_reconstructs_what_encoding_and_decoding_give(tokenizer, images):
    out = tokenizer(images, SEEDS)
    result = tokenizer.encode(images, SEEDS)
    assert torch.equal(out["codes"], result.codes)
    torch.testing.assert_close(out["reconstruction"], tokenizer.decode(result.accumulated), atol=1e-5, rtol=1e-5)
    assert torch.equal(tokenizer.decoder.last(out["features"]), out["reconstruction"])


def test_training_returns_the_quantizers_loss(tokenizer, images):
    out = tokenizer(images, SEEDS)
    latents = tokenizer.encoder(images)
    commitment, codebook = tokenizer.quantizer.loss(latents, tokenizer.quantize(latents, SEEDS))
    torch.testing.assert_close(out["commitment"], commitment)
    torch.testing.assert_close(out["codebook"], codebook)


def test_the_reconstruction_moves_encoder_and_decoder_but_not_the_codebook(tokenizer, images):
    """The straight-through estimator passes the gradient from the decoder's input to the encoder's output."""
    tokenizer(images, SEEDS)["reconstruction"].square().mean().backward()
    for part in (tokenizer.encoder, tokenizer.decoder):
        assert all(weight.grad is not None and weight.grad.any() for weight in part.parameters())
    assert all(weight.grad is None for weight in tokenizer.quantizer.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_activations_are_channels_last_in_training_on_a_gpu(tokenizer, images):
    """From the first layer of the encoder to the decoder's picture; the values are those of a CPU."""
    norm = torch.nn.GroupNorm(2, 8).cuda()(torch.randn(2, 8, 4, 4, device="cuda").to(memory_format=torch.channels_last))
    if not norm.is_contiguous(memory_format=torch.channels_last):
        pytest.skip("this PyTorch's GroupNorm is not channels-last on a GPU: 2.11 is not, 2.15 has kernels for it")
    expected = tokenizer(images, SEEDS)
    tokenizer.cuda()
    formats = []
    for layer in tokenizer.modules():
        if isinstance(layer, torch.nn.Conv2d) and layer is not tokenizer.quantizer.codebook.bias:
            layer.register_forward_hook(
                lambda *given: formats.append(given[-1].is_contiguous(memory_format=torch.channels_last))
            )
    out = tokenizer(images.cuda(), SEEDS.cuda())
    assert all(formats)
    same = (out["codes"].cpu() == expected["codes"]).all((1, 2, 3))  # TF32 in the encoder may change a code
    assert same.any()
    difference = out["reconstruction"].cpu()[same] - expected["reconstruction"][same]
    assert difference.abs().max() < 0.05


def test_codes_rebuild_the_accumulated_latents_bit_for_bit(tokenizer, images):
    result = tokenizer.encode(images, SEEDS)
    assert torch.equal(tokenizer.quantizer.codebook.accumulated(result.codes, 4), result.accumulated)


def test_all_256_pixel_values_survive_the_round_trip():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    images = from_pixels(pixels)
    assert images.min() == -1
    assert images.max() == 1
    assert torch.equal(to_pixels(images), pixels)


def test_pixels_are_clamped_and_rounded_to_the_nearest():
    images = torch.tensor([-7.0, -1.0, -0.999, 0.0, 0.999, 1.0, 7.0]).view(1, 1, 1, 7)
    assert to_pixels(images).flatten().tolist() == [0, 0, 0, 128, 255, 255, 255]
    grid = torch.linspace(-1, 1, 1001).view(1, 1, 1, -1)
    assert (from_pixels(to_pixels(grid)) - grid).abs().max() <= 1 / 255 + 1e-6


@pytest.mark.parametrize(("size", "multipliers"), [(250, (1, 1, 2, 2, 4)), (15, (1, 1)), (6, (1, 1, 1))])
def test_an_image_size_that_is_no_multiple_of_the_factor_is_refused_with_its_value(size, multipliers):
    config = AutoencoderConfig(multipliers=multipliers)
    with pytest.raises(ValueError, match=rf"image_size {size} is not a multiple of the factor {config.factor}"):
        TokenizerConfig(image_size=size, autoencoder=config)


def test_the_default_is_the_papers():
    config = TokenizerConfig()
    assert config.grid == 16
    assert config.latent_shape == (32, 16, 16)
    assert config.quantizer.codebook_size == 4096
    assert config.schedule.num_steps == 10
