"""The quantizer against Algorithm 1 and Eq. 4 written out."""

import pytest
import torch
import torch.nn.functional as F

import rdpm.models.codebook as codebook_module
from rdpm.models.codebook import Codebook, QuantizerConfig
from rdpm.models.noise import Stream, normal
from rdpm.models.quantizer import Quantizer, mix, straight_through
from rdpm.models.schedule import Schedule

bias_on_and_off = pytest.mark.parametrize("bias", [True, False], ids=["bias", "plain"])


def make_quantizer(bias=True, size=64, dim=8, schedule=None):
    quantizer = Quantizer(QuantizerConfig(size, dim, bias), schedule or Schedule(num_steps=5))
    if bias:
        torch.nn.init.normal_(quantizer.codebook.bias.weight, std=0.05)
    return quantizer


def make_latents(b=3, d=8, h=4, w=6):
    return F.layer_norm(torch.randn(b, h, w, d), (d,)).permute(0, 3, 1, 2).contiguous()


def noise_like(latents):
    """eps_t as the tokenizer draws it."""
    return lambda t: normal(torch.arange(len(latents)), t, tuple(latents.shape[1:]), Stream.TOKENIZER)


def exact_distances(points, vectors):
    """Squared distances (positions, K) in float64, by their definition."""
    points = points.double().permute(0, 2, 3, 1).flatten(0, 2)
    return (points.unsqueeze(1) - vectors.double().unsqueeze(0)).square().sum(-1)


@pytest.mark.parametrize(("size", "dim", "scale"), [(2, 1, 1.0), (64, 8, 1.0), (500, 32, 1.0), (64, 8, 100.0)])
def test_nearest_is_the_brute_force_minimum(size, dim, scale):
    codebook = Codebook(QuantizerConfig(size, dim))
    points = torch.randn(5, dim, 7, 6) * scale
    distances = exact_distances(points, codebook.vectors.detach())
    chosen = codebook.nearest(points)
    assert chosen.shape == (5, 7, 6)
    two = distances.topk(2, largest=False).values
    clear = two[:, 1] - two[:, 0] > 1e-5 * scale
    assert clear.float().mean() > 0.99
    assert torch.equal(chosen.flatten()[clear], distances.argmin(1)[clear])


@pytest.mark.parametrize("rows", [1, 5, 33, 100])
@pytest.mark.parametrize("size", [64, 1024])
def test_nearest_does_not_depend_on_its_chunks(monkeypatch, rows, size):
    codebook = Codebook(QuantizerConfig(size, 8))
    points = torch.randn(3, 8, 4, 6)
    whole = codebook.nearest(points)
    monkeypatch.setattr(codebook_module, "_FEWEST_ROWS", rows)
    monkeypatch.setattr(codebook_module, "_CPU_DISTANCES", 1)
    assert torch.equal(codebook.nearest(points), whole)


def test_of_equally_near_codes_the_first_is_chosen():
    codebook = Codebook(QuantizerConfig(2048, 4))
    with torch.no_grad():
        codebook.vectors[1024:] = codebook.vectors[:1024]
    points = torch.randn(3, 4, 5, 5)
    chosen = codebook.nearest(points)
    assert chosen.max() < 1024
    values = torch.randint(0, 9, (60, 2048)).float()  # every value many times
    assert torch.equal(codebook_module._first_largest(values), values.argmax(1))


def test_the_loop_is_the_same_under_bf16_autocast():
    quantizer, latents = make_quantizer(), make_latents()
    expected = quantizer.quantize(latents, noise_like(latents))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(quantizer.codebook.nearest(latents), quantizer.codebook.nearest(latents.float()))
        result = quantizer.quantize(latents, noise_like(latents))
        rebuilt = quantizer.codebook.accumulated(result.codes, 5)
    for name in ("codes", "accumulated", "before", "noise"):
        assert torch.equal(getattr(result, name), getattr(expected, name))
    assert torch.equal(rebuilt, expected.accumulated)


@bias_on_and_off
@pytest.mark.parametrize("kind", ["pow", "sin", "linear"])
def test_the_loop_is_algorithm_1(bias, kind):
    schedule = Schedule(kind, 6)
    quantizer, v = make_quantizer(bias, schedule=schedule), make_latents()
    result = quantizer.quantize(v, noise_like(v))
    vectors = quantizer.codebook.vectors.detach().double()
    residual, quantized, accumulated = v.double(), torch.zeros(v.shape).double(), torch.zeros(v.shape).double()
    for t in range(1, 7):
        eps = noise_like(v)(t)
        torch.testing.assert_close(result.before[:, t - 1].double(), accumulated, atol=1e-5, rtol=0)
        assert torch.equal(result.noise[:, t - 1], eps)
        residual = residual - quantized
        noisy = schedule.alpha[t - 1].double() * residual + schedule.beta[t - 1].double() * eps.double()
        codes = exact_distances(noisy, vectors).argmin(1).view(3, 4, 6)
        assert torch.equal(result.codes[:, t - 1], codes)
        quantized = vectors[codes].permute(0, 3, 1, 2)
        if bias:
            quantized = quantized + F.conv2d(quantized, quantizer.codebook.bias.weight.detach().double(), padding=1)
        accumulated = accumulated + quantized
    torch.testing.assert_close(result.accumulated.double(), accumulated, atol=1e-5, rtol=0)


@bias_on_and_off
@pytest.mark.parametrize("num_steps", [1, 2, 10])
def test_residual_minus_quantized_plus_accumulated_is_the_latent(bias, num_steps):
    """What is left and what was accumulated make up the latent: z_T - v'_T + z'_T = v."""
    quantizer, v = make_quantizer(bias, schedule=Schedule(num_steps=num_steps)), make_latents()
    result = quantizer.quantize(v, noise_like(v))
    residual = mix(v, result.before[:, -1], result.noise[:, -1], 1.0, 0.0)
    quantized = quantizer.codebook.phi(quantizer.codebook.look_up(result.codes[:, -1]))
    torch.testing.assert_close(residual - quantized + result.accumulated, v, atol=1e-5, rtol=0)


def test_the_last_step_sees_no_noise():
    quantizer, v = make_quantizer(), make_latents()
    noise_at = noise_like(v)
    usual = quantizer.quantize(v, noise_at)
    other = quantizer.quantize(v, lambda t: noise_at(t) if t < 5 else 100 * noise_at(t))
    assert torch.equal(usual.codes, other.codes)
    first = quantizer.quantize(v, lambda t: noise_at(t) if t > 1 else -noise_at(t))
    assert not torch.equal(usual.codes[:, 0], first.codes[:, 0])


@bias_on_and_off
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("size", "dim", "grid", "b"), [(64, 8, 4, 3), (256, 32, 16, 2)], ids=["small", "paper"])
def test_codes_rebuild_what_the_loop_accumulated_bit_for_bit(bias, memory_format, size, dim, grid, b):
    """Part of invariant 1. The encoder's LayerNorm leaves latents channels-last."""
    quantizer = make_quantizer(bias, size, dim)
    v = make_latents(b, dim, grid, grid).to(memory_format=memory_format)
    result = quantizer.quantize(v, noise_like(v))
    for step in range(5):
        assert torch.equal(quantizer.codebook.accumulated(result.codes, step), result.before[:, step])
    assert torch.equal(quantizer.codebook.accumulated(result.codes, 5), result.accumulated)
    assert not result.before[:, 0].any()


def test_each_image_may_stop_at_its_own_step():
    quantizer, v = make_quantizer(), make_latents(b=6)
    codebook, codes = quantizer.codebook, quantizer.quantize(v, noise_like(v)).codes
    steps = torch.tensor([0, 5, 2, 1, 4, 3])
    together = codebook.accumulated(codes, steps)
    for i, step in enumerate(steps.tolist()):
        assert torch.equal(together[i], codebook.accumulated(codes, step)[i])
        alone = codebook.accumulated(codes[i : i + 1], step)[0]
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=0)


def test_an_image_does_not_depend_on_its_batch():
    quantizer, v = make_quantizer(), make_latents(b=5)
    result = quantizer.quantize(v, noise_like(v))
    for i in range(5):
        one = quantizer.quantize(v[i : i + 1], lambda t, i=i: noise_like(v)(t)[i : i + 1])
        assert torch.equal(one.codes[0], result.codes[i])
        torch.testing.assert_close(one.accumulated[0], result.accumulated[i], atol=1e-5, rtol=0)


@bias_on_and_off
def test_phi_is_linear(bias):
    phi = make_quantizer(bias).codebook.phi
    x, y = torch.randn(2, 2, 8, 4, 6)
    torch.testing.assert_close(phi(2 * x - 3 * y), 2 * phi(x) - 3 * phi(y), atol=1e-5, rtol=0)
    assert not phi(torch.zeros_like(x)).any()


def test_phi_adds_one_shared_convolution():
    codebook = make_quantizer().codebook
    x = torch.randn(2, 8, 4, 6)
    torch.testing.assert_close(codebook.phi(x), x + F.conv2d(x, codebook.bias.weight, padding=1))
    fresh = Codebook(QuantizerConfig(64, 8))
    assert torch.equal(fresh.phi(x), x)


def test_without_bias_the_code_vectors_are_the_only_weights():
    assert [name for name, _ in make_quantizer(bias=False).named_parameters()] == ["codebook.vectors"]
    assert {name for name, _ in make_quantizer().named_parameters()} == {"codebook.vectors", "codebook.bias.weight"}


def test_the_gradient_through_the_quantizer_is_one():
    """The gradient through the quantizer is one, whatever loss comes after it."""
    quantizer, v = make_quantizer(), make_latents().requires_grad_()
    result = quantizer.quantize(v, noise_like(v))
    passed = straight_through(v, result.accumulated)
    torch.testing.assert_close(passed, result.accumulated, atol=1e-6, rtol=0)
    upstream = torch.randn(v.shape)
    (grad,) = torch.autograd.grad(passed, v, upstream)
    assert torch.equal(grad, upstream)
    assert not any(getattr(result, name).requires_grad for name in ("codes", "accumulated", "before", "noise"))


def test_straight_through_detaches_the_accumulated_latents():
    v, accumulated = make_latents().requires_grad_(), make_latents().requires_grad_()
    straight_through(v, accumulated).sum().backward()
    assert torch.equal(v.grad, torch.ones_like(v))
    assert accumulated.grad is None


@bias_on_and_off
@pytest.mark.parametrize("weighted", [True, False], ids=["gamma=alpha", "gamma=1"])
def test_the_loss_is_equation_4(bias, weighted):
    schedule = Schedule(num_steps=5, weighted=weighted)
    quantizer, v = make_quantizer(bias, schedule=schedule), make_latents()
    result = quantizer.quantize(v, noise_like(v))
    total, accumulated = torch.zeros(v.shape), torch.zeros(v.shape)
    for t in range(1, 6):
        noisy = schedule.alpha[t - 1] * (v - accumulated) + schedule.beta[t - 1] * noise_like(v)(t)
        quantized = quantizer.codebook.vectors[result.codes[:, t - 1]].permute(0, 3, 1, 2)
        if bias:
            quantized = quantized + F.conv2d(quantized, quantizer.codebook.bias.weight, padding=1)
        total = total + (schedule.alpha[t - 1] if weighted else 1) * (noisy - quantized) ** 2
        accumulated = accumulated + quantized
    for term in quantizer.loss(v, result):
        torch.testing.assert_close(term, total.mean(), atol=0, rtol=1e-5)


def test_the_commitment_term_moves_only_the_latents_and_the_codebook_term_only_the_codebook():
    quantizer, v = make_quantizer(), make_latents().requires_grad_()
    weights = {"latents": v, **dict(quantizer.named_parameters())}
    commitment, codebook = quantizer.loss(v, quantizer.quantize(v, noise_like(v)))

    def moved(loss):
        grads = torch.autograd.grad(loss, list(weights.values()), allow_unused=True, retain_graph=True)
        return {name for name, grad in zip(weights, grads, strict=True) if grad is not None and grad.any()}

    assert moved(commitment) == {"latents"}
    assert moved(codebook) == {"codebook.vectors", "codebook.bias.weight"}


def test_only_used_codes_are_moved():
    quantizer, v = make_quantizer(), make_latents(b=1, h=2, w=2)
    result = quantizer.quantize(v, noise_like(v))
    quantizer.loss(v, result)[1].backward()
    moved = quantizer.codebook.vectors.grad.abs().sum(1).nonzero().flatten()
    assert torch.equal(moved, result.codes.unique())
    assert len(moved) < 64


@pytest.mark.parametrize("size", [65537, 1 << 20, 1, 0, -5])
def test_a_codebook_size_that_does_not_fit_uint16_is_refused_with_its_value(size):
    with pytest.raises(ValueError, match=rf"codebook_size is {size};"):
        QuantizerConfig(codebook_size=size)


def test_the_largest_codebook_fits_uint16():
    assert QuantizerConfig(codebook_size=65536).codebook_size == 65536
