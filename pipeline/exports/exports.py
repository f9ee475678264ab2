"""Exported models: safetensors weights beside a card that says what they are."""

import dataclasses
import hashlib

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from rdpm.models.generator import Generator, GeneratorConfig
from rdpm.models.noise import NOISE_VERSION
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import from_dict, to_dict
from rdpm.storage_schemas.cards import CARD, SCHEMA_VERSION, WEIGHTS, ModelCard


def save_export(
    folder: str, kind: str, config: object, weights: dict[str, Tensor], made_from: dict, training: dict, steps: int
) -> ModelCard:
    """Write the weights, then the card."""
    data = save_tensors({name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()})
    digest = hashlib.sha256(data).hexdigest()
    card = ModelCard(kind, to_dict(config), NOISE_VERSION, made_from, training, steps, digest)
    files.write_bytes(files.join(folder, WEIGHTS), data)
    files.write_json(files.join(folder, CARD), dataclasses.asdict(card))
    return card


def read_card(folder: str, kind: str) -> ModelCard:
    """The card of an exported model. Raises ValueError when there is none of this kind or its noise is another."""
    path = files.join(folder, CARD)
    if not files.exists(path):
        raise ValueError(f"{folder!r} has no {CARD}, so it is no trained {kind}; train one, or give its folder")
    data = files.read_json(path)
    if not isinstance(data, dict) or "weights_digest" not in data:
        raise ValueError(f"{path} is no model card; restore it or export the model again")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"{folder!r} has a card of schema version {data.get('schema_version')}, not {SCHEMA_VERSION}")
    card = ModelCard(**data)
    if card.kind != kind:
        raise ValueError(f"{folder!r} holds a {card.kind}, not a {kind}; give the other folder")
    if card.noise_version != NOISE_VERSION:
        raise ValueError(
            f"{folder!r} was made with noise version {card.noise_version}, not {NOISE_VERSION}; retrain it"
        )
    return card


def _load(folder: str, kind: str, model: nn.Module, card: ModelCard) -> None:
    path = files.join(folder, WEIGHTS)
    if not files.exists(path):
        raise ValueError(f"{folder!r} has lost its {WEIGHTS}; restore or export them again")
    data = files.read_bytes(path)
    if hashlib.sha256(data).hexdigest() != card.weights_digest:
        raise ValueError(f"the weights in {folder!r} are not those of its card; restore or export them again")
    model.load_state_dict(load_tensors(data))
    model.eval().requires_grad_(False)


def load_tokenizer(folder: str) -> tuple[Tokenizer, ModelCard]:
    """A tokenizer in eval mode, on the CPU, without gradients, and its card."""
    card = read_card(folder, "tokenizer")
    tokenizer = Tokenizer(from_dict(TokenizerConfig, card.config))
    _load(folder, "tokenizer", tokenizer, card)
    return tokenizer, card


def load_generator(folder: str) -> tuple[Generator, ModelCard]:
    """A generator with its averaged weights in eval mode, on the CPU, without gradients, and its card."""
    card = read_card(folder, "generator")
    generator = Generator(from_dict(GeneratorConfig, card.config))
    _load(folder, "generator", generator, card)
    return generator, card
