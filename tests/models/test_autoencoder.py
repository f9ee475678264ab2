"""Shapes, normalization, attention and recomputation of the encoder and the decoder."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from rdpm.models.autoencoder import AttentionBlock, AutoencoderConfig, Decoder, Encoder, ResidualBlock

SMALL = AutoencoderConfig(channels=8, multipliers=(1, 2, 2), num_res_blocks=1, attention_factors=(4,), groups=4)
DIM = 6


@pytest.mark.parametrize(("levels", "factor"), [(1, 1), (2, 2), (4, 8), (5, 16)])
def test_every_level_after_the_first_halves_the_map(levels, factor):
    config = replace(SMALL, multipliers=(1,) * levels)
    assert config.factor == factor
    images = torch.randn(1, 3, 16, 32)
    latents = Encoder(config, DIM)(images)
    assert latents.shape == (1, DIM, 16 // factor, 32 // factor)
    assert Decoder(config, DIM)(latents).shape == images.shape


def test_the_default_is_the_papers_f16():
    assert AutoencoderConfig().factor == 16


@pytest.mark.parametrize("size", [(4, 4), (8, 20), (20, 8), (32, 32)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_multiple_of_the_factor_keep_their_shape(size, channels):
    config = replace(SMALL, in_channels=channels)
    images = torch.randn(2, channels, *size)
    latents = Encoder(config, DIM)(images)
    assert latents.shape == (2, DIM, size[0] // 4, size[1] // 4)
    assert Decoder(config, DIM)(latents).shape == images.shape


def test_latents_have_mean_0_and_variance_1_at_every_position():
    """So they have the scale of the noise (Section 4.2)."""
    latents = Encoder(SMALL, 32)(torch.randn(3, 3, 16, 24))
    torch.testing.assert_close(latents.mean(1), torch.zeros(3, 4, 6), atol=1e-5, rtol=0)
    torch.testing.assert_close(latents.var(1, unbiased=False), torch.ones(3, 4, 6), atol=2e-3, rtol=0)


def test_the_decoder_is_its_last_layer_on_its_features():
    decoder, latents = Decoder(SMALL, DIM), torch.randn(2, DIM, 4, 4)
    assert torch.equal(decoder(latents), decoder.last(decoder.features(latents)))
    assert decoder.last.kernel_size == (3, 3)


@pytest.mark.parametrize(("factors", "encoder", "decoder"), [((), 0, 0), ((4,), 2, 3), ((2, 4), 3, 5), ((16,), 1, 1)])
def test_attention_blocks_are_at_the_configured_factors_and_in_the_middle(factors, encoder, decoder):
    config = replace(SMALL, attention_factors=factors)
    for model, count in ((Encoder(config, DIM), encoder), (Decoder(config, DIM), decoder)):
        assert sum(isinstance(module, AttentionBlock) for module in model.modules()) == count


def test_the_attention_block_is_softmax_attention_over_positions(randomize):
    block = randomize(AttentionBlock(8, 4)).double()
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    q, k, v = block.qkv(block.norm(x)).flatten(2).chunk(3, dim=1)
    weights = torch.softmax(torch.einsum("bcs,bct->bst", q, k) / 8**0.5, dim=-1)
    mixed = torch.einsum("bst,bct->bcs", weights, v).view(2, 8, 3, 5)
    torch.testing.assert_close(block(x), x + block.out(mixed), atol=1e-10, rtol=0)


@pytest.mark.parametrize("model", [Encoder, Decoder])
def test_recomputing_changes_neither_outputs_nor_gradients(model, randomize):
    plain = randomize(model(SMALL, DIM))
    recomputing = model(replace(SMALL, activation_checkpointing=True), DIM)
    recomputing.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 16, 16) if model is Encoder else torch.randn(2, DIM, 4, 4)
    results = []
    for net in (plain, recomputing):
        leaf = x.clone().requires_grad_()
        out = net.train()(leaf)
        out.square().sum().backward()
        results.append([out.detach(), leaf.grad, *(weight.grad for weight in net.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("recompute", "training", "runs"), [(True, True, 2), (False, True, 1), (True, False, 1)])
def test_a_block_is_recomputed_in_backward_only_when_configured_and_training(recompute, training, runs):
    block = ResidualBlock(8, 8, 4, recompute).train(training)
    calls = []
    block.conv1.register_forward_hook(lambda *_: calls.append(1))
    block(torch.randn(1, 8, 4, 4, requires_grad=True)).sum().backward()
    assert len(calls) == runs


def test_gradients_reach_every_pixel_of_the_encoder_and_every_input_of_the_decoder(randomize):
    images = torch.randn(1, 3, 16, 16, requires_grad=True)
    latents = randomize(Encoder(SMALL, DIM))(images)
    (latents * torch.randn_like(latents)).sum().backward()
    assert (images.grad != 0).all()
    leaf = latents.detach().requires_grad_()
    randomize(Decoder(SMALL, DIM))(leaf).square().sum().backward()
    assert (leaf.grad != 0).all()


def test_normalizations_are_those_of_vqgan():
    norms = [module for module in Encoder(SMALL, DIM).modules() if isinstance(module, nn.GroupNorm)]
    assert {(norm.num_groups, norm.eps) for norm in norms} == {(4, 1e-6)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 2}, "in_channels is 2"),
        ({"in_channels": 4}, "in_channels is 4"),
        ({"channels": 10}, "channels 10 must be a multiple of groups 4"),
    ],
    ids=str,
)
def test_an_impossible_config_is_refused_with_its_value(options, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **options)


def test_an_empty_list_of_multipliers_is_refused():
    with pytest.raises(ValueError):
        replace(SMALL, multipliers=())
