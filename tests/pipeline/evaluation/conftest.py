"""Inception with made weights, because tests do not have the real ones."""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rdpm.pipeline.evaluation import features, inputs
from rdpm.pipeline.evaluation.classifier import ClassifierConfig
from rdpm.pipeline.evaluation.features import InceptionExtractor
from tests.pipeline.evaluation.made_run import make_run


@pytest.fixture(scope="session")
def made_weights(tmp_path_factory) -> Iterator[Path]:
    """A file with Inception's names and shapes and made values. With the default ones, all features are near zero."""
    from torch_fidelity import feature_extractor_inceptionv3 as inception

    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng():
        torch.manual_seed(0)
        patch.setattr(inception, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(inception.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        network = inception.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], verbose=False)
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        torch.nn.init.normal_(network.fc.weight, std=0.2)
    path = tmp_path_factory.mktemp("inception") / "made.pth"
    torch.save(network.state_dict(), path)
    with pytest.MonkeyPatch.context() as patch:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        patch.setattr(features, "INCEPTION", dataclasses.replace(features.INCEPTION, sha256_prefix=digest[:8]))
        yield path


@pytest.fixture(scope="session")
def made_inception(made_weights) -> InceptionExtractor:
    """The extractor with made weights. Its batches fill a chunk, so only the last one is padded."""
    return InceptionExtractor(str(made_weights), 25)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One made run for all tests of a file."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def quick(monkeypatch):
    """A classifier of three steps; the number of threads is restored."""
    monkeypatch.setattr(inputs, "ClassifierConfig", functools.partial(ClassifierConfig, steps=3, batch=8))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
