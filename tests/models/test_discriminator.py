"""The PatchGAN discriminator: what each logit sees."""

import itertools

import pytest
import torch
from torch import nn

from rdpm.models.discriminator import Discriminator, DiscriminatorConfig, DiscriminatorPair


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("num_layers", "side"), [(1, 30), (2, 14), (3, 6)])
def test_there_is_one_logit_per_patch(channels, num_layers, side):
    critic = Discriminator(DiscriminatorConfig(4, num_layers), channels)
    assert critic(torch.randn(2, channels, 64, 64)).shape == (2, 1, side, side)


@pytest.mark.parametrize(("num_layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_the_receptive_field_of_a_logit_is_that_of_patchgan(num_layers, patch):
    """16, 34 and 70 pixels, as in pix2pix."""
    critic = Discriminator(DiscriminatorConfig(4, num_layers), 3).eval()
    images = torch.randn(1, 3, 128, 128, requires_grad=True)
    logits = critic(images)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    rows, columns = images.grad[0].abs().sum(0).nonzero().T
    assert rows.max() - rows.min() + 1 == patch
    assert columns.max() - columns.min() + 1 == patch


def test_the_pair_returns_the_discriminators_own_logits():
    step = DiscriminatorPair(DiscriminatorConfig(4), 3).eval()
    real, fake = torch.randn(2, 4, 3, 32, 32)
    on_real, on_fake = step(real, fake)
    assert torch.equal(on_real, step.discriminator(real))
    assert torch.equal(on_fake, step.discriminator(fake))


def test_widths_double_up_to_eight_times_the_first():
    critic = Discriminator(DiscriminatorConfig(4, 5), 3)
    convs = [module for module in critic.modules() if isinstance(module, nn.Conv2d)]
    assert [conv.out_channels for conv in convs] == [4, 8, 16, 32, 32, 32, 1]


def test_convolutions_before_a_batch_norm_have_no_bias():
    layers = list(Discriminator(DiscriminatorConfig(4, 3), 3).layers)
    for layer, after in itertools.pairwise(layers):
        if isinstance(after, nn.BatchNorm2d):
            assert layer.bias is None
        elif isinstance(layer, nn.Conv2d):
            assert layer.bias is not None


def test_weights_start_small_as_in_dcgan():
    for module in Discriminator(DiscriminatorConfig(), 3).modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.mean().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_smallest_image_gives_one_logit_and_a_smaller_one_is_too_small(num_layers):
    config = DiscriminatorConfig(4, num_layers)
    critic = Discriminator(config, 3).eval()
    assert critic(torch.zeros(1, 3, config.smallest, config.smallest)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        critic(torch.zeros(1, 3, config.smallest - 1, config.smallest - 1))
