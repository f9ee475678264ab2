"""The token store: what its rows depend on, its arrays, its index and its noise seeds."""

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from rdpm.storage_schemas.arrays import ArraySpec
from rdpm.storage_schemas.parsing import parse

KIND = "tokens"
OK, REJECTED = "ok", "rejected"
INDEX_COLUMNS = ("key", "label", "view", "shard", "row", "width", "height", "source_digest", "status", "reason")


@dataclass(frozen=True)
class TokenIdentity:
    """Everything that the rows of a token store depend on. Two stores with one identity hold the same rows."""

    tokenizer_digest: str
    """Digest of the tokenizer's card."""
    tokenizer_config: dict[str, Any]
    """The tokenizer's config, as its card has it."""
    noise_version: int
    """Version of the noise that was mixed in."""
    source_digest: str
    """Digest of the listing of the images: classes, keys, labels and sizes."""
    classes: tuple[str, ...]
    """Class names; a label is a position among them."""
    views: tuple[str, ...]
    """Views of every image, one row per view."""
    seed: int
    """Seed of the store. The noise seed of a row is a function of this seed, the key and the view."""
    encoder_batch: int
    """Images per call of the encoder."""
    precision: Literal["fp32", "bf16"]
    """Precision of the encoder: fp32 or bf16."""
    compile: bool
    """Whether the encoder was compiled."""
    device: str | None = None
    """Kind of device that encoded: cpu or cuda. None in a plan of version 1, which does not record it."""

    @property
    def codebook_size(self) -> int:
        """K."""
        return self.tokenizer_config["quantizer"]["codebook_size"]

    @property
    def code_dim(self) -> int:
        """d."""
        return self.tokenizer_config["quantizer"]["code_dim"]

    @classmethod
    def from_json(cls, data: Any) -> "TokenIdentity":
        """The identity in a plan of any version. Raises ValueError."""
        return parse(cls, data, "the plan: identity")


def token_arrays(
    num_steps: int, latent_shape: tuple[int, int, int], with_accumulated: bool, with_latents: bool
) -> tuple[ArraySpec, ...]:
    """codes (T, h, w) uint16, noise_seed uint64, label int32; on request z'_T and v, (d, h, w) float16 each."""
    d, h, w = latent_shape
    arrays = [
        ArraySpec("codes", "uint16", (num_steps, h, w), ("step", "height", "width")),
        ArraySpec("noise_seed", "uint64", (), ()),
        ArraySpec("label", "int32", (), ()),
    ]
    dims = ("channel", "height", "width")
    if with_accumulated:
        arrays.append(ArraySpec("accumulated", "float16", (d, h, w), dims))
    if with_latents:
        arrays.append(ArraySpec("latents", "float16", (d, h, w), dims))
    return tuple(arrays)


def noise_seed(store_seed: int, key: str, view: str) -> int:
    """The uint64 seed of a row: the first 8 bytes, little-endian, of blake2b-64("store_seed\\0key\\0view")."""
    text = f"{store_seed}\0{key}\0{view}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
