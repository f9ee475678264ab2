"""The settings of an evaluation, and its inputs: opened, and checked to belong together."""

import posixpath
from dataclasses import dataclass, field
from typing import Any

from rdpm.models.fields import EXECUTION
from rdpm.models.losses import SMALLEST_PERCEPTUAL
from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.evaluation.classifier import ClassifierConfig, quarter_turns
from rdpm.pipeline.evaluation.dinov2 import DinoExtractor
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
    ImageSet,
    PictureImages,
    StoreImages,
    open_reference_images,
    open_samples,
)
from rdpm.pipeline.evaluation.protocol import NEIGHBOURS
from rdpm.pipeline.evaluation.splits import check_classes, check_tokenizer, load_all
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.progress import say


@dataclass(frozen=True)
class EvaluateConfig:
    """What is compared with what. Give samples, a tokenizer or both; every other input is optional."""

    out: str = field(metadata=EXECUTION)
    """The metrics.json to write; the classifier and statistics are kept beside it."""
    samples: str = field(default="", metadata=EXECUTION)
    """A sample store, an .npz (arr_0) or a folder of pictures."""
    reference: str = field(default="", metadata=EXECUTION)
    """What samples are compared with: ADM's .npz, a folder of images or a sample store; empty for train_images."""
    images: str = field(default="", metadata=EXECUTION)
    """Held-out images, which the tokenizer reconstructs."""
    train_images: str = field(default="", metadata=EXECUTION)
    """Images that were trained on. Copies of them are looked for, and the classifier is trained on them in memory."""
    tokenizer: str = field(default="", metadata=EXECUTION)
    """Folder or URL of a tokenizer's export."""
    extractor: str = "classifier"
    """Feature space: classifier, inception, dinov2, or the path of a TorchScript or torch.export file; none to measure
    plain pixels only."""
    inception_weights: str = field(default="", metadata=EXECUTION)
    """Path of Inception's weights; empty for torch-fidelity's own download."""
    dinov2_weights: str = field(default="", metadata=EXECUTION)
    """Path of the weights of DINOv2's ViT-L/14; empty for their publisher's download."""
    perceptual: str = "none"
    """VGG16 for LPIPS: torchvision, the path of vgg16-397923af.pth, or none."""
    manifold_images: int = 10_000
    """How many images of the reference precision and recall use."""
    draws: int = 10
    """How many random draws of samples a matched metric is the mean over."""
    seed: int = 0
    """Seed of the draws, resamples and subsets, the classifier, and the noise of reconstructions."""
    batch: int = field(default=64, metadata=EXECUTION)
    """Images per call of a network."""
    threads: int = field(default=2, metadata=EXECUTION)
    """CPU threads."""
    timed: tuple[str, ...] = field(default=(), metadata=EXECUTION)
    """Outputs of other jobs; their seconds are copied from their records."""

    def __post_init__(self) -> None:
        for name, least in (
            ("draws", 0),
            ("seed", 0),
            ("batch", 1),
            ("threads", 1),
            ("manifold_images", NEIGHBOURS + 1),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; use {least} or more")
        if self.batch > CHUNK:
            raise ValueError(f"batch is {self.batch}; use {CHUNK} or less, because {CHUNK} images are read at once")
        if not self.samples and not self.tokenizer:
            raise ValueError("samples and tokenizer are both empty; give one of them to evaluate")
        if self.samples and not (self.reference or self.train_images):
            raise ValueError("samples need something to be compared with; give reference or train_images")
        if self.tokenizer and not self.images and not self.samples:
            raise ValueError("a tokenizer needs images to reconstruct; give images that it was not trained on")
        if self.extractor == "none" and self.tokenizer:
            raise ValueError("extractor none measures the pixels of samples; a tokenizer needs another extractor")
        if self.extractor == "classifier" and not self.train_images:
            raise ValueError("extractor classifier is trained on train_images; give them, or another extractor")


@dataclass(frozen=True)
class EvaluationInputs:
    """The opened inputs of an evaluation."""

    tokenizer: Tokenizer | None
    """None where none is given."""
    tokenizer_digest: str
    """Digest of the tokenizer's card; empty without a tokenizer."""
    samples: StoreImages | ArchiveImages | PictureImages | None
    """None where none are given."""
    held_out: FolderImages | None
    """Held-out images; None where none are given."""
    train: FolderImages | None
    """Training images; None where none are given."""
    reference: ImageSet | None
    """What samples are compared with; None without samples, or where only its statistics are given."""
    extractor: Extractor | None
    """The feature space; None to measure plain pixels only."""
    folder: str
    """Where the classifier and statistics are kept."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, from the first input that knows them; empty where none does."""
        known = (images.classes for images in (self.train, self.held_out, self.samples) if images)
        return next((classes for classes in known if classes), ())

    def facts(self) -> dict[str, Any]:
        """Names and digests, for the protocol."""
        name, digest = (self.extractor.name, self.extractor.digest) if self.extractor else ("none", "")
        facts: dict[str, Any] = {"extractor": {"name": name, "digest": digest}}
        for name, images in (("samples", self.samples), ("held_out", self.held_out), ("train", self.train)):
            if images:
                facts[name] = {"digest": images.digest, "listed": len(images)}
        if self.tokenizer:
            facts["tokenizer"] = {"digest": self.tokenizer_digest}
        if isinstance(self.samples, StoreImages):
            facts["generator"] = {"digest": self.samples.store.manifest.plan.samples.generator_digest}
        return facts


def open_inputs(config: EvaluateConfig) -> EvaluationInputs:
    """Open every input that is given. Raises ValueError when one is missing or they do not belong together.

    Real images get the size and channels of the tokenizer; without a tokenizer, the samples' size and three channels.
    """
    tokenizer, card = load_tokenizer(config.tokenizer) if config.tokenizer else (None, None)
    channels = tokenizer.config.autoencoder.in_channels if tokenizer else 3
    samples = open_samples(config.samples, channels, config.threads) if config.samples else None
    if isinstance(samples, StoreImages) and card:
        check_tokenizer(samples.store, card)
    sizes = {tokenizer.config.image_size} if tokenizer else set()
    sizes |= {samples.size} if samples else set()
    if len(sizes) > 1:
        raise ValueError(
            f"samples {config.samples!r} and the tokenizer's images have different sizes, {sorted(sizes)} pixels; give "
            "the tokenizer that the samples were drawn with"
        )
    if config.perceptual != "none" and max(sizes) < SMALLEST_PERCEPTUAL:
        raise ValueError(
            f"LPIPS needs images of {SMALLEST_PERCEPTUAL} pixels or more, not {max(sizes)}; use perceptual=none"
        )
    held_out, train = (
        FolderImages(url, max(sizes), channels, config.threads) if url else None
        for url in (config.images, config.train_images)
    )
    reference: ImageSet | None = train
    if samples and config.reference:
        reference = open_reference_images(config.reference, samples, config.threads)
    _check_sets(samples, held_out, train, reference)
    folder = posixpath.dirname(config.out) or "."
    extractor = None if config.extractor == "none" else make_extractor(config, train, folder)
    return EvaluationInputs(
        tokenizer, card.digest if card else "", samples, held_out, train, reference, extractor, folder
    )


def _check_sets(
    samples: ImageSet | None, held_out: FolderImages | None, train: FolderImages | None, reference: ImageSet | None
) -> None:
    """Raises ValueError unless the sets that are given have the same classes and are large and different enough."""
    sets: list[ImageSet] = [images for images in (train, held_out, samples, reference) if images]
    known = [images for images in sets if images.classes]
    for images in known[1:]:
        check_classes(f"{images.url!r}", images.classes, known[0].classes)
    if not samples:
        return
    for images in sets:
        if len(images) < 2:
            raise ValueError(f"{images.url!r} holds one image; give two or more, because metrics are of whole sets")
    for compared in (train, reference):
        if held_out and compared and compared.digest == held_out.digest:
            raise ValueError(
                f"images {held_out.url!r} and {compared.url!r} are the same; give held-out images that are neither "
                "train_images nor reference, or leave images out"
            )


def make_extractor(config: EvaluateConfig, train: FolderImages | None, folder: str) -> Extractor:
    """The extractor that the config names. The classifier is read from `folder`, or trained on the training images."""
    if config.extractor == "dinov2":
        return DinoExtractor(config.dinov2_weights, config.batch)
    if config.extractor != "classifier":
        return open_extractor(config.extractor, config.inception_weights, config.batch)
    assert train
    images = load_all(train)
    pixels, labels, classes = images.pixels, images.labels, len(images.classes)
    if classes == 1:
        say("evaluate: all images are of one class, so the classifier learns to tell their four quarter turns")
        (pixels, labels), classes = quarter_turns(pixels), 4
    classifier_config = ClassifierConfig(num_classes=classes, channels=pixels.shape[-1])
    classifier = load_or_train_classifier(folder, classifier_config, pixels, labels, config.seed)
    return ClassifierExtractor(classifier, config.batch)


def input_digests(config: EvaluateConfig) -> dict[str, str]:
    """Digests of the inputs that are given, for the job's record. Raises ValueError when one is missing."""
    digests = {}
    for name in ("train_images", "images", "reference"):
        if url := getattr(config, name):
            digests[f"{name}_digest"] = reference_digest(url)
    if config.tokenizer:
        digests["tokenizer_digest"] = read_card(config.tokenizer, "tokenizer").digest
    if config.extractor not in ("classifier", "inception", "dinov2", "none") and files.is_file(config.extractor):
        digests["extractor_digest"] = files.digest_file(config.extractor).sha256
    if config.samples:
        digests["samples_digest"] = open_samples(config.samples, 3).digest
    return digests
