"""Extractors give features that no batch changes, and refuse files that are not theirs."""

import hashlib
import urllib.error
import warnings

import numpy as np
import pytest
import torch

from rdpm.pipeline.evaluation.classifier import Classifier, ClassifierConfig
from rdpm.pipeline.evaluation.features import INCEPTION, ClassifierExtractor, FileExtractor, InceptionExtractor


def _images(n, size=8, channels=1):
    return np.random.default_rng(0).integers(0, 256, size=(n, size, size, channels)).astype(np.uint8)


def test_missing_inception_weights_are_named_with_the_fix(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"'missing.pth' does not exist; give the path of weights-inc"):
        InceptionExtractor("missing.pth", 4)

    def offline(url, *_, **__):
        assert url.endswith(INCEPTION.file)
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError, match=f"could not be downloaded .*no network.*; give the path of {INCEPTION.file}"):
        InceptionExtractor("", 4)


def test_another_file_is_refused_before_it_is_unpickled(tmp_path, monkeypatch):
    wrong = tmp_path / "weights.pth"
    wrong.write_bytes(b"not the weights")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    digest = hashlib.sha256(b"not the weights").hexdigest()[:8]
    with pytest.raises(ValueError, match=f"has sha256 {digest}, not "):
        InceptionExtractor(str(wrong), 4)


@pytest.mark.long
def test_inceptions_features_do_not_depend_on_the_batch(made_weights, made_inception):
    pixels = _images(3, 16)
    outputs = made_inception.extract(pixels)
    assert made_inception.digest == hashlib.sha256(made_weights.read_bytes()).hexdigest()
    assert outputs.features.shape == (3, 2048)
    assert outputs.logits.shape == (3, 1008)
    assert outputs.spatial.shape == (3, 17 * 17 * 7)
    assert outputs.features.dtype == outputs.logits.dtype == outputs.spatial.dtype == np.float32
    assert outputs.features.std(axis=0).max() > 1e-4
    weight = made_inception.network.fc.weight.numpy()
    assert np.allclose(outputs.logits, outputs.features @ weight.T, atol=1e-4)  # without the bias
    other = InceptionExtractor(str(made_weights), 2)
    again = other.extract(np.repeat(pixels, 3, axis=-1))  # grey is three equal channels
    for name in ("features", "logits", "spatial"):
        assert np.allclose(getattr(again, name), getattr(outputs, name), rtol=1e-4, atol=1e-5)


def test_spatial_features_are_in_the_order_of_rows_columns_and_channels():
    torch.manual_seed(0)
    classifier = Classifier(ClassifierConfig(num_classes=3)).eval()
    images = _images(4)
    spatial = ClassifierExtractor(classifier, 3).extract(images).spatial
    with torch.no_grad():
        maps = classifier.double()(torch.from_numpy(images).permute(0, 3, 1, 2).double() / 127.5 - 1)[2].numpy()
    height, width = maps.shape[2:]
    for y, x, channel in ((0, 0, 0), (1, 0, 6), (1, 1, 3)):
        assert np.allclose(spatial[:, (y * width + x) * 7 + channel], maps[:, channel, y, x], atol=1e-6)
    assert spatial.shape == (4, height * width * 7)


class _Judge(torch.nn.Module):
    """Features and logits of images in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.head = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 5)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.convolution(images).mean((2, 3))
        return features, self.head(features)


class _Logits(_Judge):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.convolution(images).mean((2, 3)))


def _save(path, module, how):
    """Save a module as TorchScript, or exported for any batch or only for batches of four."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        if how == "script":
            torch.jit.script(module).save(str(path))
            return
    dynamic = ({0: torch.export.Dim("batch")},) if how == "export" else None
    torch.export.save(torch.export.export(module, (torch.zeros(4, 3, 8, 8),), dynamic_shapes=dynamic), path)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("how", ["script", "export", "export of four"])
def test_any_program_is_an_extractor(tmp_path, how):
    """It gets grey images as three channels in [-1, 1], in full batches."""
    path, images = tmp_path / "judge.pt2", _images(6)
    _save(path, _Judge().eval(), how)
    extractor = FileExtractor(str(path), 4)
    outputs = extractor.extract(images)
    with torch.no_grad():
        expected = _Judge().eval()(torch.from_numpy(images).permute(0, 3, 1, 2).expand(-1, 3, -1, -1) / 127.5 - 1)
    for name, values in zip(("features", "logits"), expected, strict=True):
        assert np.allclose(getattr(outputs, name), values.numpy(), atol=1e-6)
    assert outputs.spatial is None
    assert extractor.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_program_with_only_logits_uses_them_as_features(tmp_path):
    _save(tmp_path / "logits.pt2", _Logits().eval(), "export")
    outputs = FileExtractor(str(tmp_path / "logits.pt2"), 4).extract(_images(3))
    assert np.array_equal(outputs.features, outputs.logits)
    assert outputs.logits.shape == (3, 5)


class _Maps(_Judge):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.convolution(images)


def test_files_that_are_not_an_extractor_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'nowhere' is neither a known name nor a file"):
        FileExtractor("nowhere", 4)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match=r"is not a TorchScript or torch.export file"):
        FileExtractor(str(tmp_path / "text"), 4)
    _save(tmp_path / "maps.pt2", _Maps().eval(), "export")
    with pytest.raises(ValueError, match=r"returns \[\(4, 4, 6, 6\), .* it must return \(features"):
        FileExtractor(str(tmp_path / "maps.pt2"), 4).extract(_images(3))
    _save(tmp_path / "four.pt2", _Judge().eval(), "export of four")
    with pytest.raises(ValueError, match=r"does not take images of shape \(3, 3, 8, 8\)"):
        FileExtractor(str(tmp_path / "four.pt2"), 3).extract(_images(3))
