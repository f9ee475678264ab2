"""Attention against its formula, and the choice of a kernel."""

import importlib.util

import pytest
import torch

from rdpm.models.attention import attend, check_backend

HAS_FLASH = importlib.util.find_spec("flash_attn") is not None


def formula(q, k, v):
    """softmax(q k^T / sqrt(dim)) v in float64."""
    q, k, v = q.double(), k.double(), v.double()
    weights = torch.exp(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5)
    return weights / weights.sum(-1, keepdim=True) @ v


@pytest.mark.parametrize("shape", [(1, 1, 1, 4), (2, 3, 16, 64), (2, 1, 33, 20)], ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str
)
@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_attend_is_softmax_attention(shape, dtype, tolerance, backend):
    q, k, v = (torch.randn(shape).to(dtype) for _ in range(3))
    out = attend(q, k, v, backend)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), formula(q, k, v), atol=tolerance, rtol=tolerance)


def test_positions_without_order_are_interchangeable():
    q, k, v = torch.randn(3, 2, 3, 10, 8)
    order = torch.randperm(10)
    torch.testing.assert_close(attend(q, k[:, :, order], v[:, :, order]), attend(q, k, v), atol=1e-6, rtol=1e-5)


def test_heads_and_images_do_not_mix():
    q, k, v = torch.randn(3, 2, 3, 10, 8)
    alone = attend(q[1:, 2:], k[1:, 2:], v[1:, 2:])
    torch.testing.assert_close(attend(q, k, v)[1:, 2:], alone, atol=1e-6, rtol=1e-5)


def test_kernels_give_the_same_gradients():
    grads = []
    for backend in ("sdpa", "math"):
        inputs = [torch.randn(2, 3, 10, 8, generator=torch.Generator().manual_seed(i)) for i in range(3)]
        leaves = [x.requires_grad_() for x in inputs]
        attend(*leaves, backend).square().sum().backward()
        grads.append([leaf.grad for leaf in leaves])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_pytorchs_own_kernels_are_always_available(backend):
    check_backend(backend)
    x = torch.randn(1, 1, 4, 8)
    assert attend(x, x, x, backend).shape == x.shape


@pytest.mark.skipif(HAS_FLASH, reason="flash-attn is installed")
def test_flash_attn_is_refused_where_it_is_not_installed():
    with pytest.raises(ValueError, match="attention is flash_attn but flash-attn is not installed"):
        check_backend("flash_attn")


def test_an_unknown_kernel_is_refused_with_its_name(unchecked):
    with pytest.raises(ValueError, match="'xformers'"):
        check_backend("xformers")


@pytest.mark.gpu
@pytest.mark.skipif(not (HAS_FLASH and torch.cuda.is_available()), reason="needs flash-attn and a CUDA device")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_flash_attn_equals_sdpa(dtype):
    """flash-attn computes what SDPA computes."""
    q, k, v = torch.randn(3, 2, 12, 256, 64, device="cuda").to(dtype)
    out = attend(q, k, v, "flash_attn")
    torch.testing.assert_close(out, attend(q, k, v, "sdpa"), atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(out.double(), formula(q, k, v), atol=2e-2, rtol=2e-2)


@pytest.mark.gpu
@pytest.mark.skipif(not (HAS_FLASH and torch.cuda.is_available()), reason="needs flash-attn and a CUDA device")
@pytest.mark.parametrize("deterministic", [False, True], ids=["fast", "deterministic"])
def test_flash_attn_has_the_gradients_of_sdpa(deterministic):
    """Also in the deterministic mode, in which two passes give the same bits."""
    values = torch.randn(3, 2, 12, 256, 64, device="cuda").bfloat16()
    weight = torch.randn(2, 12, 256, 64, device="cuda").bfloat16()

    def gradients(backend):
        q, k, v = (value.clone().requires_grad_() for value in values)
        (attend(q, k, v, backend) * weight).sum().backward()
        return torch.stack([q.grad, k.grad, v.grad])

    torch.use_deterministic_algorithms(deterministic)
    try:
        found, again = gradients("flash_attn"), gradients("flash_attn")
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(found, gradients("sdpa"), atol=5e-2, rtol=5e-2)
    assert not deterministic or torch.equal(found, again)
