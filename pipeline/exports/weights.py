"""Exported weights: safetensors beside the card that describes them."""

import dataclasses
import hashlib
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from rdpm.models.attention import Backend
from rdpm.models.generator import Generator, current_parts
from rdpm.models.matching import Matching
from rdpm.models.methods import new_generator
from rdpm.models.noise import NOISE_VERSION
from rdpm.models.rivals.rival import Rival
from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.exports.card import generator_config, read_card, tokenizer_config
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import identity_of
from rdpm.storage_schemas.cards import CARD, WEIGHTS, GeneratorOrigin, ModelCard, TokenizerOrigin


def save_export(
    folder: str,
    kind: str,
    config: Any,
    weights: dict[str, Tensor],
    made_from: TokenizerOrigin | GeneratorOrigin,
    training: dict[str, Any],
    steps: int,
) -> ModelCard:
    """Write the weights in float32, then the card."""
    data = save_tensors({name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()})
    digest = hashlib.sha256(data).hexdigest()
    card = ModelCard(kind, identity_of(config), NOISE_VERSION, made_from, training, steps, digest)
    files.write_bytes(files.join(folder, WEIGHTS), data)
    files.write_json(files.join(folder, CARD), card.to_json())
    return card


def _read_weights(folder: str, card: ModelCard) -> dict[str, Tensor]:
    path = files.join(folder, WEIGHTS)
    if not files.exists(path):
        raise ValueError(f"{folder!r} has no {WEIGHTS}; restore that file or export the model again")
    data = files.read_bytes(path)
    if hashlib.sha256(data).hexdigest() != card.weights_digest:
        raise ValueError(f"the weights in {folder!r} do not match its card; restore them or export the model again")
    return load_tensors(data)


def _ready(model: nn.Module, weights: dict[str, Tensor]) -> None:
    model.load_state_dict(weights)
    model.eval().requires_grad_(False)


def load_tokenizer(folder: str) -> tuple[Tokenizer, ModelCard]:
    """A tokenizer in eval mode, on the CPU, without gradients, and its card."""
    card = read_card(folder, "tokenizer")
    tokenizer = Tokenizer(tokenizer_config(card))
    _ready(tokenizer, _read_weights(folder, card))
    return tokenizer, card


def load_generator(folder: str, attention: Backend = "sdpa") -> tuple[Generator, ModelCard]:
    """RDPM's generator; see `load_model`. Raises ValueError for one of a rival."""
    model, card = load_model(folder, attention)
    if not isinstance(model, Generator):
        raise ValueError(
            f"{folder!r} is a generator of method {model.config.method}, from which only rdpm sample draws; give one "
            "of method rdpm"
        )
    return model, card


def load_model(folder: str, attention: Backend = "sdpa") -> tuple[Generator | Rival, ModelCard]:
    """A generator of any method, with its averaged weights, in eval mode, on the CPU, without gradients, and its card.

    attention: the kernel to use, whichever kernel it was trained with. Raises ValueError when it is not available.
    """
    card = read_card(folder, "generator")
    generator = new_generator(dataclasses.replace(generator_config(card), attention=attention))
    weights = _read_weights(folder, card)
    matching = [weights.pop(f"matching.{name}") for name in ("matrix", "offsets") if f"matching.{name}" in weights]
    _ready(generator, {n: torch.cat([weights[p] for p in parts]) for n, parts in current_parts(weights).items()})
    if matching:
        generator.matching = Matching(*matching)
    return generator, card
