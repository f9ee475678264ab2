"""Feature extractors behind one interface: uint8 images in; features, class logits and spatial features out.

To add one: a subclass of Extractor with `name`, `digest` and `outputs`, and its place in `inputs.make_extractor`.
"""

import copy
import hashlib
import io
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from rdpm.models.tokenizer import from_pixels
from rdpm.pipeline.evaluation.classifier import CLASSIFIER_VERSION, Classifier, ClassifierConfig, train_classifier
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.config import to_dict
from rdpm.storage_schemas.canonical import digest_of

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256_PREFIX = "6726825d"
SPATIAL_CHANNELS = 7  # of the maps that make spatial features, as in ADM's evaluator

Outputs = tuple[Tensor, Tensor, Tensor | None]


@dataclass(frozen=True)
class Features:
    """features (n, f), logits (n, c) and, where there are maps, spatial features (n, h * w * 7), float32."""

    features: np.ndarray
    logits: np.ndarray
    spatial: np.ndarray | None = None


class Extractor:
    """A feature space. Numbers compare only where `name` and `digest`, of the weights, are equal.

    The network sees `batch` images at every call, the last of them padded, and runs on the GPU where there is one.
    """

    name: str
    digest: str

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def outputs(self, images: Tensor) -> Outputs:
        """Features (b, f), logits (b, c) and maps (b, c', h, w) or None, of (b, C, H, W) uint8 on the device."""
        raise NotImplementedError

    @torch.no_grad()
    def extract(self, pixels: np.ndarray) -> Features:
        """Features of (n, H, W, C) uint8 images, n of 1 or more, C 1 or 3."""
        parts = []
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with exact:
            for part in torch.from_numpy(pixels).permute(0, 3, 1, 2).split(self.batch):
                padding = part[-1:].expand(self.batch - len(part), -1, -1, -1)
                found = self.outputs(torch.cat([part, padding]).to(self.device))
                parts.append([x[: len(part)].float().cpu() for x in _vectors(found)])
        return Features(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))


def _vectors(outputs: Outputs) -> tuple[Tensor, ...]:
    """Maps become one vector an image: rows, columns, seven channels, the last run fastest."""
    features, logits, maps = outputs
    spatial = () if maps is None else (maps[:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1),)
    return (features, logits, *spatial)


class ClassifierExtractor(Extractor):
    """The small classifier: its penultimate layer, its logits and its last convolution's maps.

    It runs in float64 and is rounded to float32 at the end, so that no batch size shows in the features. Images have
    the channels that it was trained on.
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


def _weights(classifier: Classifier) -> bytes:
    return safetensors.torch.save(classifier.state_dict())


class InceptionExtractor(Extractor):
    """Inception-v3 of December 2015 as torch-fidelity ports it ("inception-v3-compat"), TensorFlow 1 resize included.

    features: pool_3, 2048. logits: 1008, without the bias, as the Inception score wants them. maps: the first branch of
    Mixed_6d after its ReLU, TensorFlow's `mixed_6/conv`. float32, TF32 off.
    weights: a local copy of the network's file; "" takes the one in torch's cache, downloaded by torch when there is
    none. Raises ValueError when it cannot be had or is another file.
    """

    name = "inception"

    def __init__(self, weights: str, batch: int) -> None:
        super().__init__(batch)
        data, self.digest = _read_inception(weights or _downloaded_inception())
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # The package unpickles without restriction; it is handed the very bytes whose digest was checked.
        self.network = FeatureExtractorInceptionV3(
            self.name, ["2048", "logits_unbiased"], feature_extractor_weights_path=io.BytesIO(data)
        ).to(self.device)
        self._maps: list[Tensor] = []
        self.network.Mixed_6d.branch1x1.register_forward_hook(lambda _, __, maps: self._maps.append(maps))

    def outputs(self, images: Tensor) -> Outputs:
        """Features (b, 2048), logits (b, 1008), maps (b, 192, 17, 17); a single channel is repeated to three."""
        features, logits = self.network(images.expand(-1, 3, -1, -1))
        return features, logits, self._maps.pop()


_INCEPTION_MEND = f"give the path of {INCEPTION_FILE} (of torch-fidelity's releases) as inception_weights"


def _downloaded_inception() -> str:
    """torch-fidelity's file in torch's own cache, downloaded by torch when it is not there. Raises ValueError."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), INCEPTION_SHA256_PREFIX, progress=False)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"Inception's weights could not be downloaded ({error}); {_INCEPTION_MEND}") from None
    return str(path)


def _read_inception(path: str) -> tuple[bytes, str]:
    """The weights' bytes and sha256."""
    if not Path(files.local_path(path)).is_file():
        raise ValueError(f"inception_weights {path!r} does not exist; {_INCEPTION_MEND}")
    data = files.read_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    if not digest.startswith(INCEPTION_SHA256_PREFIX):
        raise ValueError(
            f"inception_weights {path!r} has sha256 {digest[:8]}, not {INCEPTION_SHA256_PREFIX}; {_INCEPTION_MEND}"
        )
    return data, digest


class FileExtractor(Extractor):
    """Any classifier as a TorchScript or torch.export file.

    It takes (b, 3, H, W) float32 in [-1, 1], grey repeated to three, and returns (features (b, f), logits (b, c)), or
    logits alone, which are then the features too. An exported batch size that is fixed must be `batch`.
    Raises ValueError when the file is missing or no such program, or its answer has other shapes.
    """

    def __init__(self, path: str, batch: int) -> None:
        super().__init__(batch)
        if not files.is_file(path):
            raise ValueError(f"extractor {path!r} is neither classifier, inception nor a file; give the path of one")
        data = files.read_bytes(path)
        self.name, self.digest = path.rstrip("/").rsplit("/", 1)[-1], hashlib.sha256(data).hexdigest()
        self.network = _load_program(path, data, self.device)

    def outputs(self, images: Tensor) -> Outputs:
        """Features (b, f), logits (b, c), no maps."""
        try:
            found = self.network(from_pixels(images).expand(-1, 3, -1, -1))
        except (RuntimeError, AssertionError) as error:
            shape = (len(images), 3, *images.shape[2:])
            reason = " ".join(str(error).split())[-200:]
            raise ValueError(f"extractor {self.name!r} does not take images of shape {shape}: {reason}") from None
        pair = (found, found) if isinstance(found, Tensor) else tuple(found)
        if len(pair) != 2 or any(x.dim() != 2 or len(x) != len(images) for x in pair):
            shapes = [tuple(x.shape) for x in pair]
            raise ValueError(
                f"extractor {self.name!r} returns {shapes} for {len(images)} images; "
                "it must return (features (b, f), logits (b, c)), or logits alone"
            )
        return (*pair, None)


def _load_program(path: str, data: bytes, device: str) -> Callable[[Tensor], Any]:
    """The module of a TorchScript or torch.export archive; its layout tells which."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            scripted = any("/code/" in name for name in archive.namelist())
        if scripted:
            return torch.jit.load(io.BytesIO(data), map_location=device).eval()
        return torch.export.load(io.BytesIO(data)).module().to(device)
    except (zipfile.BadZipFile, RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"extractor {path!r} is no TorchScript or torch.export file ({reason}); save one with torch.jit.save "
            "or torch.export.save"
        ) from None


def open_extractor(name: str, inception_weights: str, batch: int) -> Extractor:
    """ "inception", with its weights' path or "" for their download, or the path of a program. Raises ValueError."""
    return InceptionExtractor(inception_weights, batch) if name == "inception" else FileExtractor(name, batch)
