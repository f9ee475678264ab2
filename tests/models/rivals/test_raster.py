"""The raster transformer is causal, and draws what its logits say."""

import torch

from rdpm.models.noise import child_seeds
from rdpm.models.rivals.raster import before
from rdpm.models.sampler import SamplerConfig, step_settings

CPU = torch.device("cpu")


def test_logits_at_a_position_do_not_depend_on_its_code_nor_on_later_ones(make_rival, make_quantizer, randomize):
    rival, codebook = randomize(make_rival("raster")).eval(), make_quantizer("raster").codebook
    codes, labels = torch.randint(16, (2, 4, 4)), torch.tensor([0, 1])
    with torch.no_grad():
        logits = rival(before(codebook, codes), labels)
        for place in range(16):
            changed = codes.flatten(1).clone()
            changed[:, place:] = (changed[:, place:] + 1 + torch.arange(16 - place)) % 16
            others = rival(before(codebook, changed.view_as(codes)), labels)
            torch.testing.assert_close(others[:, : place + 1], logits[:, : place + 1])
            if place < 15:
                assert not torch.allclose(others[:, place + 1 :], logits[:, place + 1 :])


def test_the_most_likely_codes_are_those_of_their_own_logits(make_rival, make_quantizer, randomize):
    """At temperature 0, teacher forcing with the drawn codes gives the drawn codes again."""
    rival, codebook = randomize(make_rival("raster")).eval(), make_quantizer("raster").codebook
    labels, seeds = torch.tensor([0, 1, 2]), child_seeds(0, torch.arange(3))
    with torch.no_grad():
        drawn = rival.draw(codebook, labels, seeds, step_settings([SamplerConfig(temperature=0.0)] * 3, 16, CPU))
        logits = rival(before(codebook, drawn.codes[:, 0]), labels)
    assert torch.equal(logits.argmax(-1), drawn.codes[:, 0].flatten(1))
