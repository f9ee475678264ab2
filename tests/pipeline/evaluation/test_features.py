import hashlib

import numpy as np
import pytest
import torch

from pipeline.evaluation import features
from pipeline.evaluation.features import InceptionExtractor


@pytest.mark.parametrize("path", ["", "missing.pth"])
def test_missing_inception_weights_are_named_with_the_mend(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"inception_weights '.*' does not exist; give the path of weights-inception"):
        InceptionExtractor(path, 4)


def test_another_file_is_refused_before_it_is_unpickled(tmp_path, monkeypatch):
    wrong = tmp_path / "weights.pth"
    wrong.write_bytes(b"not the weights")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    digest = hashlib.sha256(b"not the weights").hexdigest()[:8]
    with pytest.raises(ValueError, match=f"has sha256 {digest}, not 6726825d"):
        InceptionExtractor(str(wrong), 4)


@pytest.fixture
def made_weights(tmp_path, monkeypatch):
    """A file of Inception's names and shapes with made values (the default ones collapse to nothing)."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], verbose=False)
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    path = tmp_path / "made.pth"
    torch.save(network.state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(features, "INCEPTION_SHA256_PREFIX", digest[:8])
    return str(path), digest


@pytest.mark.slow
def test_inception_gives_features_that_no_batch_shows_in(made_weights):
    path, digest = made_weights
    pixels = np.random.default_rng(0).integers(0, 256, size=(3, 16, 16, 1)).astype(np.uint8)
    extractor = InceptionExtractor(path, 2)
    found = extractor.extract(pixels)
    assert extractor.digest == digest
    assert found.features.shape == (3, 2048)
    assert found.logits.shape == (3, 1008)
    assert found.features.dtype == found.logits.dtype == np.float32
    assert found.features.std(axis=0).max() > 1e-4
    weight = extractor.network.fc.weight.numpy()
    assert np.allclose(found.logits, found.features @ weight.T, atol=1e-5)  # the bias left out
    extractor.batch = 3
    again = extractor.extract(np.repeat(pixels, 3, axis=-1))  # grey is three equal channels
    assert np.allclose(again.features, found.features, rtol=1e-5, atol=1e-6)
