"""Feature extractors behind one interface: uint8 images in; features, class logits and spatial features out.

To add one, write a subclass of Extractor with `name`, `digest` and `outputs`, and return it from `open_extractor`, or
from `make_extractor` in inputs.py.
"""

import contextlib
import copy
import hashlib
import io
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from rdpm.models.precision import full_precision
from rdpm.models.tokenizer import from_pixels
from rdpm.pipeline.evaluation.classifier import CLASSIFIER_VERSION, Classifier, ClassifierConfig, train_classifier
from rdpm.pipeline.evaluation.weights_file import WeightsFile
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import to_dict
from rdpm.storage_schemas.canonical import digest_of

SPATIAL_CHANNELS = 7  # how many channels of the maps make the spatial features, as in ADM's evaluator

Outputs = tuple[Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Features:
    """What an extractor says of n images."""

    features: np.ndarray
    """(n, f) float32."""
    logits: np.ndarray | None
    """(n, c) float32; None where the extractor is no classifier."""
    spatial: np.ndarray | None = None
    """(n, h * w * 7) float32; None where the extractor has no maps."""


class Extractor(ABC):
    """A feature space. Metrics compare only where both `name` and `digest`, the digest of the weights, are equal.

    Every call of the network sees `batch` images; the last batch is padded. It runs on the GPU where there is one.
    """

    name: str
    digest: str

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    @abstractmethod
    def outputs(self, images: Tensor) -> Outputs:
        """Images (b, C, H, W) uint8 on the device to features (b, f), logits (b, c) and maps (b, c', h, w).

        Logits and maps are None where the extractor has none.
        """

    @torch.no_grad()
    def extract(self, pixels: np.ndarray) -> Features:
        """Features of images (n, H, W, C) uint8, where n >= 1 and C is 1 or 3."""
        parts = []
        with full_precision(), _deterministic():
            for part in torch.from_numpy(pixels).permute(0, 3, 1, 2).split(self.batch):
                padding = part[-1:].expand(self.batch - len(part), -1, -1, -1)
                outputs = self.outputs(torch.cat([part, padding]).to(self.device))
                parts.append([None if x is None else x[: len(part)].float().cpu() for x in _vectors(outputs)])
        features, *others = (_joined(column) for column in zip(*parts, strict=True))
        assert features is not None
        return Features(features, *others)


@contextlib.contextmanager
def _deterministic() -> Iterator[None]:
    """In this block cuDNN takes deterministic algorithms, and does not choose them by trying."""
    cudnn = torch.backends.cudnn
    former, cudnn.benchmark, cudnn.deterministic = (cudnn.benchmark, cudnn.deterministic), False, True
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = former


def _vectors(outputs: Outputs) -> Outputs:
    """Outputs with the maps as one vector per image, in the order of rows, columns and seven channels."""
    features, logits, maps = outputs
    spatial = None if maps is None else maps[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1)
    return features, logits, spatial


def _joined(parts: tuple[Tensor | None, ...]) -> np.ndarray | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there).numpy() if there else None


class ClassifierExtractor(Extractor):
    """The small classifier: its penultimate layer, its logits and the maps of its last convolution.

    It runs in float64, and its outputs are rounded to float32 at the end. So the batch size does not change the
    features. Images must have the channels that it was trained on.
    """

    name = "classifier"

    def __init__(self, classifier: Classifier, batch: int) -> None:
        super().__init__(batch)
        self.digest = hashlib.sha256(_weights(classifier)).hexdigest()
        self.network = copy.deepcopy(classifier).double().to(self.device)

    def outputs(self, images: Tensor) -> Outputs:
        """Features (b, 64), logits (b, classes), maps (b, 64, H / 4, W / 4)."""
        return self.network(from_pixels(images).double())


def load_or_train_classifier(
    folder: str, config: ClassifierConfig, pixels: np.ndarray, labels: np.ndarray, seed: int
) -> Classifier:
    """The classifier of these images (n, H, W, C) uint8 and labels: from its file in `folder`, or trained and written.

    The file's name holds a digest of everything that the weights depend on.
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


def _weights(classifier: Classifier) -> bytes:
    return safetensors.torch.save(classifier.state_dict())


INCEPTION = WeightsFile(
    "inception_weights",
    "Inception's weights",
    "weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "torch-fidelity's releases",
)


class InceptionExtractor(Extractor):
    """Inception-v3 of December 2015 as torch-fidelity ports it ("inception-v3-compat"), with TensorFlow 1's resize.

    Features are the 2048 values of pool_3. Logits are 1008, without the bias, as the Inception score needs them. Maps
    are the first branch of Mixed_6d after its ReLU, which is TensorFlow's `mixed_6/conv`. It runs in float32 without
    TF32.
    """

    name = "inception"

    def __init__(self, weights: str, batch: int) -> None:
        """weights: path of the network's file. Empty means the file in torch's cache, which torch downloads if needed.

        Raises ValueError when the file is missing, cannot be downloaded, or has another digest.
        """
        super().__init__(batch)
        data, self.digest = INCEPTION.read(weights)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # The package unpickles without restriction, so it gets exactly the bytes whose digest was checked.
        self.network = FeatureExtractorInceptionV3(
            self.name, ["2048", "logits_unbiased"], feature_extractor_weights_path=io.BytesIO(data)
        ).to(self.device)
        self._maps: list[Tensor] = []
        self.network.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, maps: self._maps.append(maps))

    def outputs(self, images: Tensor) -> Outputs:
        """Features (b, 2048), logits (b, 1008) and maps (b, 192, 17, 17); grey is repeated to three channels."""
        features, logits = self.network(images.expand(-1, 3, -1, -1))
        return features, logits, self._maps.pop()


class FileExtractor(Extractor):
    """Any classifier as a TorchScript or torch.export file.

    The program takes (b, 3, H, W) float32 in [-1, 1], with grey repeated to three channels. It returns (features
    (b, f), logits (b, c)), or only logits, which then serve as features too. A program that was exported with a fixed
    batch size needs that size as `batch`.
    """

    def __init__(self, path: str, batch: int) -> None:
        """Raises ValueError when there is no file, or it holds no such program."""
        super().__init__(batch)
        if not files.is_file(path):
            raise ValueError(
                f"extractor {path!r} is neither a known name nor a file; give inception or another name that "
                "docs/evaluation.md lists, or the path of a file"
            )
        data = files.read_bytes(path)
        self.name, self.digest = path.rstrip("/").rsplit("/", 1)[-1], hashlib.sha256(data).hexdigest()
        self.network = _load_program(path, data, self.device)

    def outputs(self, images: Tensor) -> Outputs:
        """Features (b, f), logits (b, c) and no maps. Raises ValueError when the program fails or answers wrongly."""
        try:
            answer = self.network(from_pixels(images).expand(-1, 3, -1, -1))
        except (RuntimeError, AssertionError) as error:
            shape = (len(images), 3, *images.shape[2:])
            reason = " ".join(str(error).split())[-200:]
            raise ValueError(
                f"extractor {self.name!r} does not take images of shape {shape} ({reason}); export it for this shape"
            ) from None
        pair = (answer, answer) if isinstance(answer, Tensor) else tuple(answer)
        if len(pair) != 2 or any(x.dim() != 2 or len(x) != len(images) for x in pair):
            shapes = [tuple(x.shape) for x in pair]
            raise ValueError(
                f"extractor {self.name!r} returns {shapes} for {len(images)} images; "
                "it must return (features (b, f), logits (b, c)), or only logits"
            )
        return (*pair, None)


def _load_program(path: str, data: bytes, device: str) -> Callable[[Tensor], Any]:
    """The program of a TorchScript or torch.export archive; the layout of the archive tells which it is."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            scripted = any("/code/" in name for name in archive.namelist())
        if scripted:
            return torch.jit.load(io.BytesIO(data), map_location=device).eval()
        return torch.export.load(io.BytesIO(data)).module().to(device)
    except (zipfile.BadZipFile, RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"extractor {path!r} is not a TorchScript or torch.export file ({reason}); save one with torch.jit.save "
            "or torch.export.save"
        ) from None


def open_extractor(name: str, inception_weights: str, batch: int) -> Extractor:
    """The extractor of a name: inception, or the path of a program. Raises ValueError; see the two classes.

    inception_weights: path of Inception's weights; empty to download them.
    """
    return InceptionExtractor(inception_weights, batch) if name == "inception" else FileExtractor(name, batch)
