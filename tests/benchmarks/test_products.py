"""The yardstick of the benchmarks: the recorded products are those that torch's own counter counts."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.products import gemm_share, product_seconds, recorded, total_flops
from rdpm.models.attention import attend
from rdpm.models.autoencoder import AutoencoderConfig, Decoder
from rdpm.models.generator import Generator, GeneratorConfig, code_loss

CPU = torch.device("cpu")


def generator_step(precision: torch.dtype, backward: bool) -> None:
    """A forward pass of a small generator, and the backward pass of its loss."""
    torch.manual_seed(0)
    model = Generator(GeneratorConfig(depth=2, num_classes=5, num_steps=4, codebook_size=64, code_dim=8, grid=4))
    labels = torch.arange(3)
    latents = torch.randn(3, 8, 4, 4)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is torch.bfloat16):
        logits = model(latents, labels, labels + 1, latents)
    if backward:
        code_loss(logits, torch.zeros(3, 4, 4, dtype=torch.int64)).mean().backward()


def decoder_step(precision: torch.dtype, backward: bool) -> None:
    """A forward pass of a small decoder, and the backward pass of its mean."""
    sizes = AutoencoderConfig(channels=8, multipliers=(1, 2), num_res_blocks=1, attention_factors=(2,), groups=4)
    latents = torch.randn(2, 4, 4, 4, requires_grad=True)
    images = Decoder(sizes, 4).to(precision)(latents.to(precision))
    if backward:
        images.mean().backward()


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("step", [generator_step, decoder_step])
def test_every_product_is_recorded(step, precision, backward):
    with FlopCounterMode(display=False) as counter:
        step(precision, backward)
    with recorded() as products:
        step(precision, backward)
    assert total_flops(products) == counter.get_total_flops()


def test_a_product_is_recorded_as_it_lies_in_memory():
    layer, x = nn.Linear(6, 10, bias=False), torch.randn(4, 3, 6)
    with recorded() as products, torch.no_grad():
        layer(x)
        layer(x.bfloat16().float())
        torch.bmm(x, x.transpose(1, 2))
    assert {(each.batch, each.m, each.k, each.n, each.transposed): count for each, count in products.items()} == {
        (1, 12, 6, 10, (False, True)): 2,
        (4, 3, 6, 3, (False, True)): 1,
    }
    assert product_seconds(products, CPU) > 0


def test_work_that_is_its_products_alone_has_their_flops():
    a, b = torch.randn(64, 32), torch.randn(32, 16)
    with recorded() as products:
        a @ b
    result = gemm_share(lambda: a @ b, products, CPU, rounds=1)
    assert total_flops(products) == 2 * 64 * 32 * 16
    assert result["gemm_share"] > 0
    assert result["product_tflops"] > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_products_of_flash_attn_are_those_of_sdpa():
    pytest.importorskip("flash_attn")
    found = []
    for backend in ("flash_attn", "sdpa"):
        q, k, v = torch.randn(3, 2, 4, 16, 64, device="cuda", dtype=torch.bfloat16).requires_grad_().unbind()
        with recorded() as products:
            attend(q, k, v, backend).sum().backward()
        found.append(products)
    assert found[0] == found[1]
    assert sum(found[0].values()) == 2 + 5
