"""The card beside exported weights: what they are, what they were made from, and what they may be used with."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from rdpm.storage_schemas.canonical import digest_of
from rdpm.storage_schemas.parsing import check_version, parse

SCHEMA_VERSION = 2
WEIGHTS, CARD = "model.safetensors", "card.json"


@dataclass(frozen=True)
class TokenizerOrigin:
    """What a tokenizer was trained on."""

    source_digest: str
    """Digest of the listing of the images."""
    classes: tuple[str, ...]
    """Class names of the images."""


@dataclass(frozen=True)
class GeneratorOrigin:
    """What a generator was trained on."""

    tokenizer_digest: str
    """Digest of the tokenizer whose codes it predicts."""
    stores: tuple[str, ...]
    """Identities of the token stores."""
    classes: tuple[str, ...]
    """Class names; a label is a position among them."""


ORIGINS: dict[str, type[TokenizerOrigin] | type[GeneratorOrigin]] = {
    "tokenizer": TokenizerOrigin,
    "generator": GeneratorOrigin,
}


@dataclass(frozen=True)
class ModelCard:
    """What exported weights are."""

    kind: str
    """tokenizer or generator."""
    config: dict[str, Any]
    """The model's config as it was written. Since version 2 it leaves out fields that only say how the model runs."""
    noise_version: int
    """Version of the noise that the model was trained with."""
    made_from: TokenizerOrigin | GeneratorOrigin
    """What the model was trained on."""
    training: dict[str, Any]
    """Settings of the training, for people to read."""
    steps: int
    """Optimizer steps of the training."""
    weights_digest: str
    """sha256 of model.safetensors."""
    schema_version: int = SCHEMA_VERSION
    """Version of the card."""

    @property
    def digest(self) -> str:
        """The model's identity: its weights, config and noise."""
        parts = {"config": self.config, "noise_version": self.noise_version, "weights": self.weights_digest}
        return digest_of({"kind": self.kind, **parts})

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names of what the model was trained on."""
        return self.made_from.classes

    def to_json(self) -> dict[str, Any]:
        """The card as it is written."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ModelCard":
        """Inverse of to_json, for every version up to this one. Raises ValueError for what is no such card."""
        check_version(data, SCHEMA_VERSION, "the card")
        origin = ORIGINS.get(str(data.get("kind")))
        if origin is None:
            raise ValueError(f"the card: kind is {data.get('kind')!r}, not one of {', '.join(ORIGINS)}; restore it")
        made_from = parse(origin, data.get("made_from"), "the card: made_from")
        return parse(cls, data, "the card", made_from=made_from)
