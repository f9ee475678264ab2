"""Feature extractors behind one interface: uint8 images in, features and class logits out.

To add one: a class with `name`, `digest` and `extract`, and its name in `EvaluateConfig.extractor`.
"""

import copy
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import safetensors.torch
import torch

from models.tokenizer import from_pixels
from pipeline import files
from pipeline.config import to_dict
from pipeline.evaluation.classifier import CLASSIFIER_VERSION, Classifier, ClassifierConfig, train_classifier
from storage_schemas.manifest import digest_of

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256_PREFIX = "6726825d"


@dataclass(frozen=True)
class Features:
    """features (n, f) and logits (n, c), float32."""

    features: np.ndarray
    logits: np.ndarray


class Extractor(Protocol):
    """What the metrics need of a feature extractor. Numbers compare only where `digest`, of the weights, is equal."""

    name: str
    digest: str

    def extract(self, pixels: np.ndarray) -> Features:
        """Features of (n, H, W, C) uint8 images, C 1 or 3."""
        ...


class ClassifierExtractor:
    """The small classifier: its penultimate layer and its logits.

    It runs in float64 and is rounded to float32 at the end, so that no batch size shows in the features.
    """

    name = "classifier"

    def __init__(self, classifier: Classifier, batch: int) -> None:
        self.digest = hashlib.sha256(_weights(classifier)).hexdigest()
        self.network, self.batch = copy.deepcopy(classifier).double(), batch

    @torch.no_grad()
    def extract(self, pixels: np.ndarray) -> Features:
        """Features (n, 64) and logits (n, classes) of images with the channels the classifier was trained on."""
        parts = [self.network(from_pixels(part).double()) for part in _batches(pixels, self.batch)]
        return _features(parts)


def load_or_train_classifier(
    folder: str, config: ClassifierConfig, pixels: np.ndarray, labels: np.ndarray, seed: int
) -> Classifier:
    """The classifier of these images (n, H, W, C) uint8 and labels, from `folder` when one was kept there.

    The file's name carries the digest of all that it was made from, so one made from anything else is not found.
    """
    made_from = {
        "version": CLASSIFIER_VERSION,
        "config": to_dict(config),
        "seed": seed,
        "shape": pixels.shape,
        "pixels": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "labels": labels.tolist(),
    }
    path = files.join(folder, f"classifier-{digest_of(made_from)[:16]}.safetensors")
    if not files.exists(path):
        classifier = train_classifier(config, pixels, labels, seed)
        files.write_bytes(path, _weights(classifier))
        return classifier
    classifier = Classifier(config)
    classifier.load_state_dict(safetensors.torch.load(files.read_bytes(path)))
    return classifier.eval()


class InceptionExtractor:
    """Inception-v3 of December 2015 as torch-fidelity ports it ("inception-v3-compat"), TensorFlow 1 resize included.

    features: pool_3, 2048. logits: 1008, without the bias, as the Inception score wants them.
    Raises ValueError when `weights` is not the file that the network is known by.
    """

    name = "inception"

    def __init__(self, weights: str, batch: int) -> None:
        data, self.digest = _read_inception(weights)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # The package unpickles without restriction; it is handed the very bytes whose digest was checked.
        self.network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=io.BytesIO(data)
        )
        self.batch = batch

    @torch.no_grad()
    def extract(self, pixels: np.ndarray) -> Features:
        """Features (n, 2048) and logits (n, 1008); a single channel is repeated to three."""
        parts = [self.network(part.expand(-1, 3, -1, -1)) for part in _batches(pixels, self.batch)]
        return _features(parts)


def _read_inception(path: str) -> tuple[bytes, str]:
    """The weights' bytes and sha256."""
    mend = f"give the path of {INCEPTION_FILE} from torch-fidelity's releases"
    if not Path(files.local_path(path)).is_file():
        raise ValueError(f"inception_weights {path!r} does not exist; {mend}")
    data = files.read_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(INCEPTION_SHA256_PREFIX):
        raise ValueError(f"inception_weights {path!r} has sha256 {digest[:8]}, not {INCEPTION_SHA256_PREFIX}; {mend}")
    return data, digest


def _weights(classifier: Classifier) -> bytes:
    return safetensors.torch.save(classifier.state_dict())


def _features(parts: list[tuple[torch.Tensor, torch.Tensor]]) -> Features:
    features, logits = (torch.cat(column).float().numpy() for column in zip(*parts, strict=True))
    return Features(features, logits)


def _batches(pixels: np.ndarray, batch: int) -> tuple[torch.Tensor, ...]:
    """uint8 NHWC to parts of at most `batch`, uint8 NCHW."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).split(batch)
