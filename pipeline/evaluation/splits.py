"""Labelled sets of pixels, whole in memory: the real images of a folder, and the images of a sample store."""

from dataclasses import dataclass

import numpy as np

from models.tokenizer import TokenizerConfig
from pipeline.images.decode import Reject, center_view
from pipeline.images.listing import list_images
from pipeline.tokens.reader import Store, open_store
from storage_schemas.cards import ModelCard
from storage_schemas.samples import KIND


@dataclass(frozen=True)
class Split:
    """Real images: pixels (n, H, W, C) uint8 and labels (n,) int64 in the order of their keys.

    rejected: how many of the folder's images could not be used and are left out.
    """

    source_digest: str
    classes: tuple[str, ...]
    pixels: np.ndarray
    labels: np.ndarray
    rejected: int


def load_split(root: str, config: TokenizerConfig, limit: int | None = None) -> Split:
    """The center views of a folder's images at the tokenizer's size and channels; of `limit` spread evenly, if given.

    Raises ValueError when the folder holds no image that can be used.
    """
    source = list_images(root)
    size, channels = config.image_size, config.autoencoder.in_channels
    pixels, labels = [], []
    count = len(source) if limit is None else min(limit, len(source))
    for index in (turn * len(source) // count for turn in range(count)):
        try:
            pixels.append(center_view(source.read(index), size, channels))
        except Reject:
            continue
        labels.append(source.label(index))
    if not pixels:
        raise ValueError(f"image folder {root!r} holds no image that can be decoded; give another folder")
    return Split(source.digest, source.classes, np.stack(pixels), np.array(labels), count - len(pixels))


@dataclass(frozen=True)
class SampleSet:
    """Generated images: pixels (n, H, W, C) uint8, labels (n,) int64 and codes (n, T, h, w) uint16 in store order."""

    store: Store
    classes: tuple[str, ...]
    pixels: np.ndarray
    labels: np.ndarray
    codes: np.ndarray


def load_samples(url: str, tokenizer: ModelCard, channels: int) -> SampleSet:
    """A sample store's images with the tokenizer's channels; a store keeps grey three times.

    Raises ValueError when there is no such store, or it was decoded by another tokenizer.
    """
    store = open_store(url, KIND)
    identity = store.manifest.plan.identity
    made_by = identity["tokenizer_digest"]
    if made_by != tokenizer.digest:
        raise ValueError(
            f"samples {url!r} were decoded by tokenizer {made_by[:12]}, not {tokenizer.digest[:12]}; "
            "give the tokenizer they were drawn with"
        )
    pixels = np.ascontiguousarray(store.read_all("images")[..., :channels])
    labels = store.read_all("label").astype(np.int64)
    return SampleSet(store, tuple(identity["classes"]), pixels, labels, store.read_all("codes"))


def check_classes(name: str, found: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """Raises ValueError unless labels mean the same classes as in the training images."""
    if found != expected:
        raise ValueError(
            f"{name} has classes {list(found)[:10]}, the training images {list(expected)[:10]}; labels would not match"
        )
