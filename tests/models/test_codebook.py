"""A codebook of moving averages: one update per iteration, from everything observed."""

import pytest
import torch

from rdpm.models.codebook import Codebook, QuantizerConfig
from rdpm.models.quantizer import Quantizer
from rdpm.models.schedule import Schedule

K, D = 6, 3


def make(**settings) -> Codebook:
    torch.manual_seed(0)
    return Codebook(QuantizerConfig(K, D, update="ema", **settings))


def update(codebook: Codebook, noisy: torch.Tensor, codes: torch.Tensor, weights: torch.Tensor) -> None:
    codebook.observe(noisy, codes, weights)
    codebook.follow(codebook.seen.clone(), codebook.recent.clone())


def test_vectors_are_the_ratio_of_both_moving_averages() -> None:
    codebook = make(decay=0.8, dead_below=0.01)
    sums, counts = codebook.vectors.clone(), torch.ones(K)
    for turn in range(5):
        torch.manual_seed(10 + turn)
        noisy, codes, weights = torch.randn(40, D), torch.randint(0, K, (40,)), torch.rand(40)
        update(codebook, noisy, codes, weights)
        for k in range(K):
            chosen = codes == k
            sums[k] = 0.8 * sums[k] + 0.2 * (weights[chosen, None] * noisy[chosen]).sum(0)
            counts[k] = 0.8 * counts[k] + 0.2 * weights[chosen].sum()
        torch.testing.assert_close(codebook.vectors, sums / counts[:, None])


def test_vectors_converge_to_the_mean_of_the_latents_that_chose_them() -> None:
    codebook = make(decay=0.5)
    noisy, codes = torch.randn(600, D), torch.arange(600) % K
    for _ in range(40):
        update(codebook, noisy, codes, torch.ones(600))
    means = torch.stack([noisy[codes == k].mean(0) for k in range(K)])
    torch.testing.assert_close(codebook.vectors, means, atol=1e-5, rtol=0)


def test_an_unused_code_restarts_from_the_data() -> None:
    codebook = make(decay=0.5)
    noisy, codes = torch.randn(60, D), torch.arange(60) % (K - 1)
    for _ in range(3):
        update(codebook, noisy, codes, torch.ones(60))
    rows = (noisy == codebook.vectors[K - 1]).all(1)
    assert rows.any()
    assert codebook.ema_counts[K - 1] == 1.0


def test_micro_batches_and_ranks_add_up() -> None:
    whole, parts = make(), make()
    noisy, codes, weights = torch.randn(64, D), torch.randint(0, K, (64,)), torch.rand(64)
    whole.observe(noisy, codes, weights)
    for part in range(4):
        rows = slice(16 * part, 16 * (part + 1))
        parts.observe(noisy[rows], codes[rows], weights[rows])
    torch.testing.assert_close(whole.seen, parts.seen)
    recent = noisy[:K]
    whole.follow(whole.seen.clone(), recent)
    parts.follow(parts.seen.clone(), recent)
    torch.testing.assert_close(whole.vectors, parts.vectors)
    assert not whole.seen.any()


def test_the_quantizer_observes_every_step_with_its_weight_in_training_only() -> None:
    torch.manual_seed(0)
    quantizer = Quantizer(QuantizerConfig(K, D, update="ema"), Schedule(num_steps=4))
    latents = torch.randn(2, D, 3, 3)
    quantizer.eval()(latents, lambda t: torch.zeros_like(latents))
    assert not quantizer.codebook.seen.any()
    quantizer.train()(latents, lambda t: torch.zeros_like(latents))
    assert quantizer.codebook.seen[:, -1].sum().item() == pytest.approx(18 * quantizer.gamma.sum().item(), rel=1e-5)


def test_averaged_vectors_are_no_parameters_but_are_in_the_state_dict() -> None:
    codebook = make()
    assert {name for name, _ in codebook.named_parameters()} == {"bias.weight"}
    assert {"vectors", "ema_counts", "ema_sums", "bias.weight"} == set(codebook.state_dict())


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_a_decay_outside_0_to_1_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        make(decay=decay)
