"""What the tokenizer's training compiles is one graph each, in which nothing runs as Python."""

import pytest
import torch

from rdpm.models.autoencoder import AutoencoderConfig, Decoder, Encoder
from rdpm.models.discriminator import Discriminator, DiscriminatorConfig
from rdpm.models.losses import PerceptualLoss

SIZES = AutoencoderConfig(channels=4, multipliers=(1, 1), num_res_blocks=1, attention_factors=(2,), groups=2)
PARTS = {
    "encoder": (lambda: Encoder(SIZES, 6), (2, 3, 16, 16)),
    "decoder": (lambda: Decoder(SIZES, 6).layers, (2, 6, 8, 8)),
    "discriminator": (lambda: Discriminator(DiscriminatorConfig(4), 3), (2, 3, 32, 32)),
    "lpips": (lambda: PerceptualLoss(None), (2, 3, 32, 32)),
}


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_one_graph(unchecked, part):
    """A break of the graph would be an error."""
    make, shape = PARTS[part]
    module, images = make(), torch.rand(shape)
    inputs = (images, 1 - images) if part == "lpips" else (images,)
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="eager", fullgraph=True, dynamic=False)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(*inputs), module(*inputs))
