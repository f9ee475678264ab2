"""On a GPU where TF32 is allowed: what must be exact to float32 is computed in float32 all the same."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from rdpm.models.autoencoder import AutoencoderConfig
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.noise import Stream, child_seeds, normal
from rdpm.models.precision import full_precision
from rdpm.models.schedule import Schedule
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.pipeline.inference.codec import Codec

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICE = torch.device("cuda")
TIGHT = 2e-6  # of the largest value; TF32 keeps 10 bits, so it is off by 2e-4 and more
BACKENDS: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)


@pytest.fixture(autouse=True)
def fast_products() -> Iterator[None]:
    """TF32 wherever PyTorch may use it; for convolutions that is its default."""
    former = [backend.fp32_precision for backend in BACKENDS]
    for backend in BACKENDS:
        backend.fp32_precision = "tf32"
    yield
    for backend, precision in zip(BACKENDS, former, strict=True):
        backend.fp32_precision = precision


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A tokenizer of 32 x 32 images with 16 x 16 codes, on the CPU."""
    torch.manual_seed(0)
    sizes = AutoencoderConfig(channels=32, multipliers=(1, 2), num_res_blocks=1, attention_factors=(2,), groups=8)
    made = Tokenizer(TokenizerConfig(32, sizes, QuantizerConfig(256, 16), Schedule(num_steps=4)))
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight) * 0.02)
    return made.eval()


def assert_as_in_float64(found: torch.Tensor, expected: torch.Tensor, times: float = 1) -> None:
    """Equal up to the rounding of float32."""
    assert (found.double().cpu() - expected).abs().max() <= times * TIGHT * expected.abs().max()


def test_tf32_is_what_this_guards_against() -> None:
    one, other = torch.randn(2, 256, 256, device=DEVICE)
    assert ((one @ other).double() - one.double() @ other.double()).abs().max() > 1e-3


def test_the_accumulated_latents_of_codes_are_computed_in_float32(tokenizer) -> None:
    """phi of their sums, as sampling and training rebuild it."""
    codes = np.random.default_rng(0).integers(0, 256, (6, 4, 16, 16)).astype(np.uint16)
    exact = copy.deepcopy(tokenizer).double()
    with torch.no_grad():
        weight = exact.quantizer.codebook.bias.weight
        total = exact.quantizer.codebook.vectors[torch.from_numpy(codes.astype(np.int64))].sum(1).movedim(-1, 1)
        expected = total + torch.nn.functional.conv2d(total, weight, padding=1)
    found = Codec(copy.deepcopy(tokenizer), batch=4, device=DEVICE).accumulate(codes)
    assert_as_in_float64(torch.from_numpy(found), expected)


def test_encoder_and_decoder_are_computed_in_float32(tokenizer) -> None:
    """The codec's latents have the bits of half precision, and its pixels those of bytes: almost all are equal."""
    pixels = np.random.default_rng(1).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8)
    seeds = child_seeds(3, torch.arange(6)).numpy()
    on_cpu = Codec(copy.deepcopy(tokenizer), batch=4, device=torch.device("cpu"))
    on_gpu = Codec(copy.deepcopy(tokenizer), batch=4, device=DEVICE)
    one, other = on_cpu.encode(pixels, seeds), on_gpu.encode(pixels, seeds)
    largest = np.abs(one.latents).max()
    assert np.abs(one.latents.astype(float) - other.latents).max() <= 2 * np.finfo(np.float16).eps * largest
    assert (one.codes[:, 0] == other.codes[:, 0]).mean() > 0.995  # later steps follow from the first
    assert (on_cpu.decode(one.codes) == on_gpu.decode(one.codes)).mean() > 0.99


def test_codes_are_the_nearest_ones_in_float32(tokenizer) -> None:
    """Where two codes are equally near up to the rounding of float32, either may be chosen; TF32 would often err."""
    codebook, noisy = tokenizer.quantizer.codebook, normal(torch.arange(8), 1, (16, 16, 16), Stream.TOKENIZER)
    on_gpu = copy.deepcopy(codebook).to(DEVICE)
    with full_precision():
        codes = on_gpu.nearest(noisy.to(DEVICE)).cpu()
    points = noisy.permute(0, 2, 3, 1).reshape(-1, 16).double()
    distances = torch.cdist(points, codebook.vectors.detach().double())
    chosen = distances.gather(1, codes.view(-1, 1)).squeeze(1)
    assert (chosen - distances.min(1).values).max() < 1e-4
