"""The benchmark of the tokenizer's step runs every part of it and counts its products."""

import pytest
import torch

from benchmarks.products import total_flops
from benchmarks.tokenizer import Bench, products_of
from rdpm.models.autoencoder import AutoencoderConfig
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.discriminator import DiscriminatorConfig
from rdpm.models.schedule import Schedule
from rdpm.models.tokenizer import TokenizerConfig
from rdpm.pipeline.training.tokenizer.config import LossConfig, TrainTokenizerConfig

SIZES = AutoencoderConfig(channels=8, multipliers=(1, 1), num_res_blocks=1, attention_factors=(), groups=4)


@pytest.mark.slow
def test_the_products_of_a_step_are_those_of_its_parts() -> None:
    model = TokenizerConfig(32, SIZES, QuantizerConfig(64, 8), Schedule(num_steps=3))
    config = TrainTokenizerConfig(
        images="", out="", batch=2, micro_batch=2, model=model, loss=LossConfig(perceptual="none"),
        discriminator=DiscriminatorConfig(8),
    )  # fmt: skip
    bench = Bench(config, torch.device("cpu"))
    before = {name: value.clone() for name, value in bench.tokenizer.named_parameters()}
    products = products_of(bench, "bf16")
    assert {product.dtype for product in products} == {torch.bfloat16}
    assert all((value != before[name]).any() for name, value in bench.tokenizer.named_parameters())
    parts = sum(total_flops(products_of(part, "bf16")) for part in bench.parts.values())
    assert parts == pytest.approx(total_flops(products), rel=0.02)
