"""Models in bf16: which weights are cast, that their owner keeps them, and what stays float32."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import jaxtyping
import numpy as np
import pytest
import torch

from rdpm.models.generator import Generator
from rdpm.models.sampler import SamplerConfig, guided_logits, modulations_of, sample
from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.inference.precision import decoder_in, generator_in
from rdpm.pipeline.inference.rdpm import RDPM


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """Noise on weights that would start at zero."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def models(exports) -> tuple:
    """A generator and its tokenizer, in memory."""
    return randomized(Generator(exports.generator_config)), randomized(Tokenizer(exports.tokenizer_config))


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Type checks off, as in production: compilers cannot see through them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def types(model: torch.nn.Module) -> dict[str, torch.dtype]:
    return {name.replace("layer.", ""): weight.dtype for name, weight in model.named_parameters()}


def test_only_products_of_the_hidden_state_are_in_bf16(models):
    generator, tokenizer = models
    for name, dtype in types(generator_in("bf16", generator)).items():
        assert dtype == (torch.bfloat16 if name.startswith(("transformer.blocks.", "project.")) else torch.float32), (
            name
        )
    for name, dtype in types(decoder_in("bf16", tokenizer.decoder)).items():
        assert dtype == (torch.float32 if name.startswith("last.") else torch.bfloat16), name
    assert generator_in("fp32", generator) is generator
    assert decoder_in("fp32", tokenizer.decoder) is tokenizer.decoder


def test_the_owner_of_the_models_keeps_them_as_they_are(models):
    generator, tokenizer = models
    before = copy.deepcopy([model.state_dict() for model in models])
    RDPM(generator, tokenizer, batch=2, precision="bf16", device="cpu").sample([0, 1, 1])
    for model, state in zip(models, before, strict=True):
        assert model.state_dict().keys() == state.keys()
        for name, value in model.state_dict().items():
            assert value.dtype == state[name].dtype, name
            assert torch.equal(value, state[name]), name


@torch.no_grad()
def test_logits_and_pixels_are_not_rounded_to_bf16(models):
    generator, tokenizer = models
    space = generator.config
    latents = torch.randn(2, space.code_dim, space.grid, space.grid)
    labels = torch.tensor([0, 1])

    def logits(model: Generator) -> torch.Tensor:
        return guided_logits(model, latents, latents, modulations_of(model, labels)[1], labels + 1, None)

    images = decoder_in("bf16", tokenizer.decoder)(latents)
    pairs = (logits(generator_in("bf16", generator)), logits(generator)), (images, tokenizer.decode(latents))
    for values, exact in pairs:
        assert values.dtype == torch.float32
        assert (values != values.bfloat16().float()).float().mean() > 0.9
        torch.testing.assert_close(values, exact, atol=0.05 * exact.abs().max().item(), rtol=0)


def test_an_image_in_bf16_does_not_depend_on_its_neighbours(models):
    generator, tokenizer = generator_in("bf16", models[0]), models[1]
    labels, seeds = torch.tensor([0, 1, 1, 0]), torch.arange(4)
    book, config = tokenizer.quantizer.codebook, SamplerConfig(guidance=1.5)
    codes = sample(generator, book, labels, seeds, config).codes
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(sample(generator, book, labels[order], seeds[order], config).codes, codes[order])


def test_flash_attn_in_fp32_is_refused_in_one_sentence(models, monkeypatch):
    monkeypatch.setattr("rdpm.models.generator.check_backend", lambda backend: None)  # where it is not installed
    generator = Generator(replace(models[0].config, attention="flash_attn"))
    with pytest.raises(
        ValueError, match="attention is flash_attn, which computes in bf16 only; use precision bf16, or"
    ):
        RDPM(generator, models[1], device="cpu")
    assert RDPM(generator, models[1], device="cpu", precision="bf16").batch == 16


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_interface_draws_the_uncompiled_images(unchecked, models, precision):
    """Up to rounding; also with callbacks, edits and settings per image. Compiled twice, the bytes are equal."""
    torch._dynamo.reset()
    settings = {"guidance": [0.0, 2.0, 1.0], "temperature": 0.8, "seed": 3}
    plain, compiled, again = (
        RDPM(*models, batch=2, precision=precision, compile=each, device="cpu") for each in (False, True, True)
    )
    shown: dict = {}
    images = compiled.sample(
        [0, 1, 1], callback=lambda t, rows, part: shown.update({(t, rows.start): part}), **settings
    )
    assert np.abs(images.astype(int) - plain.sample([0, 1, 1], **settings)).mean() < 1
    assert np.array_equal(np.concatenate([shown[3, 0], shown[3, 2]]), images)
    assert np.array_equal(again.sample([0, 1, 1], **settings), images)
    kept = compiled.vary(images, [0, 1, 1], 3)
    assert np.array_equal(kept, compiled.decode(compiled.encode(images)))
    assert np.array_equal(compiled.encode(images), plain.encode(images))
