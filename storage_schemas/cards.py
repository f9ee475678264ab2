"""The card beside exported weights: what they are, what they were made from, and what they may be used with."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from rdpm.storage_schemas.canonical import digest_of

SCHEMA_VERSION = 2
WEIGHTS, CARD = "model.safetensors", "card.json"


@dataclass(frozen=True)
class TokenizerOrigin:
    """What a tokenizer was trained on."""

    source_digest: str
    """Digest of the images' listing."""
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


ORIGINS = {"tokenizer": TokenizerOrigin, "generator": GeneratorOrigin}


@dataclass(frozen=True)
class ModelCard:
    """What exported weights are."""

    kind: str
    """tokenizer or generator."""
    config: dict[str, Any]
    """The model's own config as it was written. Since version 2 without fields that only say how it runs."""
    noise_version: int
    """Version of the noise that it was trained with."""
    made_from: TokenizerOrigin | GeneratorOrigin
    """What it was trained on."""
    training: dict[str, Any]
    """Settings of its training, for people to read."""
    steps: int
    """Optimizer steps of its training."""
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
        """Class names of what it was trained on."""
        return self.made_from.classes

    def to_json(self) -> dict[str, Any]:
        """The card as it is written."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ModelCard":
        """Inverse of to_json, for every version up to this one.

        Raises ValueError for a version that is newer, and KeyError or TypeError for what is no card.
        """
        version = data["schema_version"]
        if not 1 <= version <= SCHEMA_VERSION:
            raise ValueError(f"card version {version} is newer than {SCHEMA_VERSION}; update rdpm")
        origin = {name: tuple(v) if isinstance(v, list) else v for name, v in data["made_from"].items()}
        return cls(**{**data, "made_from": ORIGINS[data["kind"]](**origin)})
