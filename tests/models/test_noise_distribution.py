"""Noise: its distribution, over ten million draws and at the ends of its range."""

import math

import pytest
import torch

import rdpm.models.noise as noise_module
from rdpm.models.noise import (
    Stream,
    child_seeds,
    gumbel,
    normal,
    normal_quantiles,
    uniform,
)


@pytest.fixture(scope="module")
def draws():
    """More than 10^7 normals: 160 images of 65,536."""
    seeds = child_seeds(123, torch.arange(160))
    return torch.cat([normal(part, 3, (65536,), Stream.TOKENIZER) for part in seeds.split(16)])


def two_quantile_moments() -> dict[int, float]:
    """Moments 1 to 6 of (a + b) / sqrt(2) for independent a and b from the table of quantiles."""
    q = normal_quantiles().double()
    m2, m4, m6 = (q.pow(k).mean().item() for k in (2, 4, 6))
    return {1: 0.0, 2: m2, 3: 0.0, 4: (2 * m4 + 6 * m2 * m2) / 4, 5: 0.0, 6: (2 * m6 + 30 * m4 * m2) / 8}


def test_the_two_quantile_construction_is_nearly_normal():
    moments = two_quantile_moments()
    assert moments[2] == pytest.approx(1, abs=3e-5)
    assert moments[4] / moments[2] ** 2 == pytest.approx(2.9996, abs=5e-5)
    assert moments[6] == pytest.approx(15, rel=1e-3)
    table = normal_quantiles()
    assert torch.equal(table, -table.flip(0))
    assert (table.diff() > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("order", range(1, 7))
def test_moments_of_ten_million_normals_are_within_five_sigma(draws, order):
    gaussian = {2: 1, 4: 3, 6: 15, 8: 105, 10: 945, 12: 10395}
    variance = gaussian[2 * order] - gaussian.get(order, 0) ** 2
    error = draws.double().pow(order).mean().item() - two_quantile_moments()[order]
    assert abs(error) < 5 * math.sqrt(variance / draws.numel())


@pytest.mark.slow
def test_ten_million_normals_pass_kolmogorov_smirnov(draws):
    n = draws.numel()
    assert n >= 10**7
    cdf = torch.special.ndtr(draws.flatten().sort().values.double())
    grid = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum((grid[1:] - cdf).max(), (cdf - grid[:-1]).max()).item()
    assert distance < 1.628 / math.sqrt(n) + 1e-5  # 1% critical value, and room for the construction


def test_normals_stay_below_the_documented_bound(draws):
    assert 4.5 < draws.abs().max() < 6.2


def correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    return torch.corrcoef(torch.stack([x.flatten(), y.flatten()]).double())[0, 1].item()


@pytest.mark.slow
@pytest.mark.parametrize("lag", [1, 2, 3, 4, 16, 256])
def test_neighbouring_elements_are_uncorrelated(draws, lag):
    x, y = draws[:64, lag:], draws[:64, :-lag]
    assert abs(correlation(x, y)) < 5 / math.sqrt(x.numel())
    assert abs(correlation(x.square(), y.square())) < 5 / math.sqrt(x.numel())


def test_images_are_uncorrelated(draws):
    matrix = torch.corrcoef(draws[:64])
    assert (matrix - torch.eye(64)).abs().max() < 5.5 / math.sqrt(draws.shape[1])  # 2016 pairs


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, 1, Stream.TOKENIZER), (0, 2, Stream.TOKENIZER)),
        ((0, 1, Stream.TOKENIZER), (0, 1, Stream.SAMPLER)),
        ((0, 1, Stream.TOKENIZER), (1, 1, Stream.TOKENIZER)),
        ((0, 1, Stream.TOKENIZER), (2**32, 1, Stream.TOKENIZER)),
        ((0, 1, Stream.TOKENIZER), (-1, 1, Stream.TOKENIZER)),
    ],
    ids=["step", "stream", "seed", "high half of the seed", "complement of the seed"],
)
def test_addresses_that_differ_in_one_part_are_uncorrelated(one, other):
    n = 1 << 20
    x, y = (normal(torch.tensor([seed]), step, (n,), stream) for seed, step, stream in (one, other))
    assert abs(correlation(x, y)) < 5 / math.sqrt(n)
    assert abs(correlation(x.square(), y.square())) < 5 / math.sqrt(n)


def test_a_million_uniforms_are_uniform_and_inside_the_interval():
    u = uniform(child_seeds(9, torch.arange(16)), 1, (65536,), Stream.LABEL_DROPOUT).double().flatten()
    n = u.numel()
    assert u.min() > 0
    assert u.max() < 1
    assert u.mean().item() == pytest.approx(1 / 2, abs=5 / math.sqrt(12 * n))
    assert u.var().item() == pytest.approx(1 / 12, abs=5 / math.sqrt(180 * n))
    odd = u * 2**24
    assert torch.equal(odd % 2, torch.ones_like(odd))


def test_a_million_gumbels_follow_their_distribution():
    g = gumbel(child_seeds(9, torch.arange(16)), 1, (65536,), Stream.GUMBEL).double().flatten()
    n, variance = g.numel(), math.pi**2 / 6
    assert g.isfinite().all()
    assert g.mean().item() == pytest.approx(0.5772156649, abs=5 * math.sqrt(variance / n))
    assert g.var().item() == pytest.approx(variance, abs=5 * variance * math.sqrt(4.4 / n))  # kurtosis 5.4
    cdf = torch.exp(-torch.exp(-g.sort().values))
    assert (cdf - torch.arange(1, n + 1) / n).abs().max() < 1.628 / math.sqrt(n)


def test_the_extreme_words_give_finite_values(monkeypatch):
    extremes = torch.tensor([[0, 1, 2**31, 2**32 - 129, 2**32 - 128, 2**32 - 1]])
    monkeypatch.setattr(noise_module, "random_words", lambda seeds, step, stream, count, first=0: extremes)
    seed = torch.tensor([0])
    u = uniform(seed, 0, (6,), Stream.STEP)
    assert ((u > 0) & (u < 1)).all()
    g = gumbel(seed, 0, (6,), Stream.GUMBEL)
    assert g.isfinite().all()
    assert g[0, 0] == pytest.approx(33 * math.log(2), abs=1e-5)  # the upper tail reaches a word of 0
    assert g[0, -1] == pytest.approx(-math.log(24 * math.log(2)), abs=1e-5)
    x = normal(seed, 0, (6,), Stream.TOKENIZER)
    assert x[0, 0] == -x[0, -1]
    assert -6.2 < x[0, 0] < -6
