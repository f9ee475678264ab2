"""Untrained exports and the identity of made-up token stores: speed does not depend on the values of weights."""

import torch

from rdpm.models.generator import Generator, GeneratorConfig
from rdpm.models.noise import NOISE_VERSION
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.pipeline.exports.weights import save_export
from rdpm.pipeline.foundation.config import identity_of
from rdpm.storage_schemas.cards import GeneratorOrigin, ModelCard, TokenizerOrigin
from rdpm.storage_schemas.tokens import TokenIdentity


def class_names(count: int) -> tuple[str, ...]:
    """Names of so many classes."""
    return tuple(str(label) for label in range(count))


def export_tokenizer(folder: str, config: TokenizerConfig, num_classes: int) -> ModelCard:
    """An untrained tokenizer."""
    weights = Tokenizer(config).state_dict()
    return save_export(
        folder, "tokenizer", config, weights, TokenizerOrigin("untrained", class_names(num_classes)), {}, 0
    )


def export_generator(folder: str, config: GeneratorConfig, tokenizer: ModelCard) -> ModelCard:
    """An untrained generator of a tokenizer's codes, whose logits are random instead of zero."""
    generator = Generator(config)
    torch.nn.init.normal_(generator.head.weight, std=0.02)
    torch.nn.init.zeros_(generator.transformer.adaln.bias)  # else the head would see zeros
    made_from = GeneratorOrigin(tokenizer.digest, (), class_names(config.num_classes))
    return save_export(folder, "generator", config, generator.state_dict(), made_from, {}, 0)


def token_identity(num_classes: int = 1000) -> TokenIdentity:
    """The identity of a store of random codes of the paper's tokenizer."""
    return TokenIdentity(
        tokenizer_digest="untrained",
        tokenizer_config=identity_of(TokenizerConfig()),
        noise_version=NOISE_VERSION,
        source_digest="random",
        classes=class_names(num_classes),
        views=("center",),
        seed=0,
        encoder_batch=64,
        precision="fp32",
        compile=False,
        device="cpu",
    )
