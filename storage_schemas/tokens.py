"""The token store: its arrays, its index and its noise seeds."""

import hashlib

from rdpm.storage_schemas.manifest import ArraySpec

KIND = "tokens"
OK, REJECTED = "ok", "rejected"
INDEX_COLUMNS = ("key", "label", "view", "shard", "row", "width", "height", "source_digest", "status", "reason")


def token_arrays(
    num_steps: int, latent_shape: tuple[int, int, int], with_accumulated: bool, with_latents: bool
) -> tuple[ArraySpec, ...]:
    """codes (T, h, w) uint16, noise_seed uint64, label int32; z'_T and v as (d, h, w) float16 where asked for."""
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
