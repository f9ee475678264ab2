"""Labelled images that are completely in memory: for reports, for the classifier, and for validation in training."""

from dataclasses import dataclass

import numpy as np

from rdpm.models.tokenizer import TokenizerConfig
from rdpm.pipeline.evaluation.image_sets import FolderImages
from rdpm.pipeline.stores.reader import Store, open_store
from rdpm.storage_schemas.cards import ModelCard
from rdpm.storage_schemas.samples import KIND


@dataclass(frozen=True)
class Split:
    """Real images, in the order of their keys."""

    source_digest: str
    """Digest of the images' listing."""
    classes: tuple[str, ...]
    """Class names; a label is a position among them."""
    pixels: np.ndarray
    """(n, H, W, C) uint8."""
    labels: np.ndarray
    """(n,) int64."""


def load_split(root: str, config: TokenizerConfig, limit: int | None = None) -> Split:
    """The center views of a folder's images, at the tokenizer's size and channels.

    limit: how many images to load, spread evenly over the folder; None for all. Raises ValueError when the folder
    holds no image that can be decoded.
    """
    return load_all(FolderImages(root, config.image_size, config.autoencoder.in_channels, limit=limit))


def load_all(images: FolderImages) -> Split:
    """All images of a set in memory. Raises ValueError when none can be decoded."""
    chunks = list(images.chunks())
    pixels, labels = (np.concatenate([getattr(chunk, name) for chunk in chunks]) for name in ("pixels", "labels"))
    assert images.classes
    return Split(images.digest, images.classes, pixels, labels)


@dataclass(frozen=True)
class SampleSet:
    """Generated images, in the order of their store."""

    store: Store
    """The sample store."""
    classes: tuple[str, ...]
    """Class names; a label is a position among them."""
    pixels: np.ndarray
    """(n, H, W, C) uint8."""
    labels: np.ndarray
    """(n,) int64."""
    codes: np.ndarray
    """(n, T, h, w) uint16."""


def load_samples(url: str, tokenizer: ModelCard, channels: int) -> SampleSet:
    """The images of a sample store. Raises ValueError when there is none, another tokenizer decoded it, or it has no
    codes, as those of a rival that draws latents.

    channels: 1 for grey, of which a store holds three equal channels, or 3.
    """
    store = open_store(url, KIND)
    check_tokenizer(store, tokenizer)
    if "codes" not in store.specs:
        raise ValueError(f"samples {url!r} hold no codes, because latents were drawn; give samples of RDPM")
    pixels = np.ascontiguousarray(store.read_all("images")[..., :channels])
    labels = store.read_all("label").astype(np.int64)
    return SampleSet(store, store.manifest.plan.samples.classes, pixels, labels, store.read_all("codes"))


def check_tokenizer(samples: Store, tokenizer: ModelCard) -> None:
    """Raises ValueError unless this tokenizer decoded the samples."""
    made_by = samples.manifest.plan.samples.tokenizer_digest
    if made_by != tokenizer.digest:
        raise ValueError(
            f"samples {samples.url!r} were decoded by tokenizer {made_by[:12]}, not {tokenizer.digest[:12]}; "
            "give the tokenizer that they were drawn with"
        )


def check_classes(name: str, classes: tuple[str, ...] | None, expected: tuple[str, ...] | None) -> None:
    """Raises ValueError when both class lists are known and differ."""
    if classes and expected and classes != expected:
        raise ValueError(
            f"{name} has classes {list(classes)[:10]}, but the real images have {list(expected)[:10]}; give images of "
            "the same classes"
        )
