"""Labelled sets of pixels, whole in memory, for the report and for held-out images while training."""

from dataclasses import dataclass

import numpy as np

from rdpm.models.tokenizer import TokenizerConfig
from rdpm.pipeline.evaluation.image_sets import FolderImages
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.storage_schemas.cards import ModelCard
from rdpm.storage_schemas.samples import KIND


@dataclass(frozen=True)
class Split:
    """Real images: pixels (n, H, W, C) uint8 and labels (n,) int64 in the order of their keys."""

    source_digest: str
    classes: tuple[str, ...]
    pixels: np.ndarray
    labels: np.ndarray


def load_split(root: str, config: TokenizerConfig, limit: int | None = None) -> Split:
    """The center views of a folder's images at the tokenizer's size and channels; of `limit` spread evenly, if given.

    Raises ValueError when the folder holds no image that can be used.
    """
    return hold(FolderImages(root, config.image_size, config.autoencoder.in_channels, limit=limit))


def hold(images: FolderImages) -> Split:
    """All of a folder's images. Raises ValueError when none can be used."""
    chunks = list(images.chunks())
    if not chunks:
        raise ValueError(f"image folder {images.url!r} holds no image that can be decoded; give another folder")
    pixels, labels = (np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("pixels", "labels"))
    assert images.classes
    return Split(images.digest, images.classes, pixels, labels)


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
    check_tokenizer(store, tokenizer)
    pixels = np.ascontiguousarray(store.read_all("images")[..., :channels])
    labels = store.read_all("label").astype(np.int64)
    return SampleSet(store, store.manifest.plan.samples.classes, pixels, labels, store.read_all("codes"))


def check_tokenizer(samples: Store, tokenizer: ModelCard) -> None:
    """Raises ValueError unless this tokenizer decoded the samples."""
    made_by = samples.manifest.plan.samples.tokenizer_digest
    if made_by != tokenizer.digest:
        raise ValueError(
            f"samples {samples.url!r} were decoded by tokenizer {made_by[:12]}, not {tokenizer.digest[:12]}; "
            "give the tokenizer they were drawn with"
        )


def check_classes(name: str, found: tuple[str, ...] | None, expected: tuple[str, ...] | None) -> None:
    """Raises ValueError unless labels mean the same classes, where both are known."""
    if found and expected and found != expected:
        raise ValueError(
            f"{name} has classes {list(found)[:10]}, the real images {list(expected)[:10]}; labels would not match"
        )
