"""The card beside exported weights: what they are, what they were made from, and what they may be used with."""

from dataclasses import dataclass
from typing import Any

from rdpm.storage_schemas.manifest import digest_of

SCHEMA_VERSION = 1
WEIGHTS, CARD = "model.safetensors", "card.json"


@dataclass(frozen=True)
class ModelCard:
    """kind: "tokenizer" or "generator". config: the model's own config, the schedule included for a tokenizer.

    made_from: digests of what it was trained on; a generator names its tokenizer and its stores.
    weights_digest: sha256 of model.safetensors.
    """

    kind: str
    config: dict[str, Any]
    noise_version: int
    made_from: dict[str, Any]
    training: dict[str, Any]
    steps: int
    weights_digest: str
    schema_version: int = SCHEMA_VERSION

    @property
    def digest(self) -> str:
        """The model's identity: its weights, config and noise."""
        parts = {"config": self.config, "noise_version": self.noise_version, "weights": self.weights_digest}
        return digest_of({"kind": self.kind, **parts})
