"""What the evaluation stage is given: its settings, and the inputs opened and found to belong together."""

import posixpath
from dataclasses import dataclass, field
from typing import Any

from rdpm.models.fields import EXECUTION
from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.evaluation.classifier import ClassifierConfig
from rdpm.pipeline.evaluation.feature_statistics import reference_digest
from rdpm.pipeline.evaluation.features import (
    ClassifierExtractor,
    Extractor,
    load_or_train_classifier,
    open_extractor,
)
from rdpm.pipeline.evaluation.image_sets import (
    CHUNK,
    ArchiveImages,
    FolderImages,
    PictureImages,
    StoreImages,
    open_samples,
)
from rdpm.pipeline.evaluation.protocol import NEIGHBOURS
from rdpm.pipeline.evaluation.splits import check_classes, check_tokenizer, hold
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.exports.weights import load_tokenizer

SMALLEST_PERCEPTUAL = 16  # VGG16 halves an image four times


@dataclass(frozen=True)
class EvaluateConfig:
    """What is compared with what. One of samples and tokenizer is needed; every other input may be left out."""

    out: str = field(metadata=EXECUTION)
    """The metrics.json to write; classifier and statistics are kept beside it."""
    samples: str = ""
    """A sample store, an .npz (arr_0) or a folder of pictures."""
    reference: str = ""
    """What samples are measured against: ADM's .npz or a folder of images; empty for train_images."""
    images: str = ""
    """Held-out images, which the tokenizer has to reconstruct."""
    train_images: str = ""
    """Images that were trained on, to find copies of; the classifier learns from them, in memory."""
    tokenizer: str = ""
    """Folder or URL of a tokenizer's export."""
    extractor: str = "classifier"
    """Feature space: classifier, inception, or the path of a TorchScript or torch.export file."""
    inception_weights: str = field(default="", metadata=EXECUTION)
    """Path of Inception's weights; empty for torch-fidelity's own download."""
    perceptual: str = "none"
    """VGG16 for LPIPS: torchvision, the path of vgg16-397923af.pth, or none."""
    manifold_images: int = 10_000
    """Images of the reference that precision and recall are taken against."""
    draws: int = 10
    """Random draws of samples that a matched metric is the mean over."""
    seed: int = 0
    """Seed of the draws, of the classifier and of the reconstructions' noise."""
    batch: int = field(default=64, metadata=EXECUTION)
    """Images per call of a network."""
    threads: int = field(default=2, metadata=EXECUTION)
    """CPU threads."""
    timed: tuple[str, ...] = field(default=(), metadata=EXECUTION)
    """Outputs of other jobs, whose seconds are copied from their records."""

    def __post_init__(self) -> None:
        for name, least in (("draws", 0), ("batch", 1), ("threads", 1), ("manifold_images", NEIGHBOURS + 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; use {least} or more")
        if self.batch > CHUNK:
            raise ValueError(f"batch is {self.batch}; use {CHUNK} or less, the images that are read at once")
        if not self.samples and not self.tokenizer:
            raise ValueError("neither samples nor tokenizer is given; give what to evaluate")
        if self.samples and not (self.reference or self.train_images):
            raise ValueError("samples have no reference; give reference or train_images")
        if self.tokenizer and not self.images and not self.samples:
            raise ValueError("a tokenizer alone needs images to give back; give images, held out from its training")
        if self.extractor == "classifier" and not self.train_images:
            raise ValueError("extractor classifier learns from train_images; give them, or another extractor")


@dataclass(frozen=True)
class Inputs:
    """What was given, opened. folder: where classifier and statistics are kept."""

    tokenizer: Tokenizer | None
    tokenizer_digest: str
    samples: StoreImages | ArchiveImages | PictureImages | None
    held_out: FolderImages | None
    train: FolderImages | None
    extractor: Extractor
    folder: str

    @property
    def classes(self) -> tuple[str, ...]:
        """What labels mean, as far as any input knows."""
        named = (images.classes for images in (self.train, self.held_out, self.samples) if images)
        return next((classes for classes in named if classes), ())

    def facts(self) -> dict[str, Any]:
        """Names and digests, for the protocol."""
        facts: dict[str, Any] = {"extractor": {"name": self.extractor.name, "digest": self.extractor.digest}}
        for name, images in (("samples", self.samples), ("held_out", self.held_out), ("train", self.train)):
            if images:
                facts[name] = {"digest": images.digest, "listed": len(images)}
        if self.tokenizer:
            facts["tokenizer"] = {"digest": self.tokenizer_digest}
        if isinstance(self.samples, StoreImages):
            facts["generator"] = {"digest": self.samples.store.manifest.plan.samples.generator_digest}
        return facts


def open_inputs(config: EvaluateConfig) -> Inputs:
    """Real images are cropped to the tokenizer's size and channels, or to those of the samples without one.

    Raises ValueError when an input is missing or inputs do not belong together.
    """
    tokenizer, card = load_tokenizer(config.tokenizer) if config.tokenizer else (None, None)
    channels = tokenizer.config.autoencoder.in_channels if tokenizer else 3
    samples = open_samples(config.samples, channels, config.threads) if config.samples else None
    if isinstance(samples, StoreImages) and card:
        check_tokenizer(samples.store, card)
    sizes = {tokenizer.config.image_size} if tokenizer else set()
    sizes |= {samples.size} if samples else set()
    if len(sizes) > 1:
        raise ValueError(f"samples {config.samples!r} and the tokenizer's images have {sorted(sizes)} pixels a side")
    if config.perceptual != "none" and max(sizes) < SMALLEST_PERCEPTUAL:
        raise ValueError(f"LPIPS needs {SMALLEST_PERCEPTUAL} pixels a side, not {max(sizes)}; say perceptual=none")
    held_out, train = (
        FolderImages(url, max(sizes), channels, config.threads) if url else None
        for url in (config.images, config.train_images)
    )
    known = [images for images in (train, held_out, samples) if images and images.classes]
    for images in known[1:]:
        check_classes(f"{images.url!r}", images.classes, known[0].classes)
    folder = posixpath.dirname(config.out) or "."
    extractor = make_extractor(config, train, folder)
    return Inputs(tokenizer, card.digest if card else "", samples, held_out, train, extractor, folder)


def make_extractor(config: EvaluateConfig, train: FolderImages | None, folder: str) -> Extractor:
    """The extractor of the config. The classifier is trained on the training images, or found in `folder`."""
    if config.extractor != "classifier":
        return open_extractor(config.extractor, config.inception_weights, config.batch)
    assert train
    images = hold(train)
    shape = ClassifierConfig(num_classes=len(images.classes), channels=images.pixels.shape[-1])
    classifier = load_or_train_classifier(folder, shape, images.pixels, images.labels, config.seed)
    return ClassifierExtractor(classifier, config.batch)


def input_digests(config: EvaluateConfig) -> dict[str, str]:
    """Digests of the inputs that are given, for the job's record. Raises ValueError when one is missing."""
    found = {}
    for name in ("train_images", "images", "reference"):
        if url := getattr(config, name):
            found[f"{name}_digest"] = reference_digest(url)
    if config.tokenizer:
        found["tokenizer_digest"] = read_card(config.tokenizer, "tokenizer").digest
    if config.extractor not in ("classifier", "inception") and files.is_file(config.extractor):
        found["extractor_digest"] = files.digest_file(config.extractor).sha256
    if config.samples:
        found["samples_digest"] = open_samples(config.samples, 3).digest
    return found
