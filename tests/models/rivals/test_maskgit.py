"""MaskGIT: what is hidden, what is revealed when, and that hidden codes are not seen."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from rdpm.models.noise import child_seeds
from rdpm.models.rivals.maskgit import look, revealed
from rdpm.models.sampler import SamplerConfig, step_settings

CPU = torch.device("cpu")


@pytest.mark.parametrize(("positions", "rounds"), [(16, 1), (16, 10), (16, 16), (256, 8), (7, 3)])
def test_every_round_reveals_something_and_all_reveal_everything(positions, rounds):
    counts = revealed(positions, rounds)
    assert len(counts) == rounds
    assert sum(counts) == positions
    assert min(counts) >= 1


def test_few_are_revealed_at_first_and_many_at_last():
    counts = revealed(256, 8)
    assert counts == sorted(counts)
    assert counts[0] == 256 - int(256 * torch.cos(torch.tensor(torch.pi / 16)))


@pytest.mark.parametrize("rounds", [1, 5, 16])
def test_all_positions_are_filled_and_a_revealed_code_stays(rounds, make_rival, make_quantizer, randomize):
    rival, codebook = randomize(make_rival("maskgit")).eval(), make_quantizer("maskgit").codebook
    seen, forward = [], rival.forward

    def watched(inputs, labels, steps=None):
        seen.append(inputs[:, :, -1] == 0)
        return forward(inputs, labels, steps)

    rival.forward = watched
    labels, seeds = torch.zeros(3, dtype=torch.int64), child_seeds(0, torch.arange(3))
    with torch.no_grad():
        drawn = rival.draw(codebook, labels, seeds, step_settings([SamplerConfig()] * 3, rounds, CPU))
    counts = [0, *torch.tensor(revealed(16, rounds)).cumsum(0).tolist()]
    assert [int(known.sum(1).unique()) for known in seen] == counts[:-1]
    for before, after in pairwise(seen):
        assert (after | ~before).all()
    assert drawn.codes.min() >= 0
    assert drawn.codes.max() < 16


def test_hidden_codes_are_not_seen(make_quantizer):
    codebook = make_quantizer("maskgit").codebook
    hidden = torch.rand(4, 4, 4) < 0.5
    first, second = torch.randint(16, (2, 4, 4, 4))
    same = torch.where(hidden, second, first)
    assert torch.equal(look(codebook, first, hidden), look(codebook, same, hidden))
    assert not torch.equal(look(codebook, first, hidden), look(codebook, second, hidden))


def test_the_loss_counts_hidden_positions_alone(make_rival, make_quantizer, make_rows, randomize):
    rival, quantizer = randomize(make_rival("maskgit")), make_quantizer("maskgit")
    seen, labels, codes, hidden = rival.given(quantizer, make_rows(quantizer, 8, "maskgit")).arguments
    found, logits = rival.loss(seen, labels, codes, hidden), rival(seen, labels)
    for row in range(8):
        mine = hidden[row].flatten()
        expected = F.cross_entropy(logits[row][mine], codes[row].flatten()[mine])
        torch.testing.assert_close(found[row], expected)


def test_the_share_that_is_hidden_follows_the_cosine(make_rival, make_quantizer, make_rows):
    quantizer = make_quantizer("maskgit")
    hidden = make_rival("maskgit").given(quantizer, make_rows(quantizer, 4000, "maskgit")).arguments[3].flatten(1)
    counts = hidden.sum(1).float()
    assert counts.min() == 1
    assert counts.max() == 16
    assert float(counts.mean() / 16) == pytest.approx(2 / torch.pi + 0.5 / 16, abs=0.02)  # rounded up
    assert hidden.float().mean(0).std() < 0.02  # no position is preferred
