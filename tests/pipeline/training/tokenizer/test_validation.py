"""The metrics of held-out images while a tokenizer trains: those of what the tokenizer does to them."""

import numpy as np
import pytest
import torch

from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.evaluation.classifier import Classifier, ClassifierConfig
from rdpm.pipeline.evaluation.distribution import frechet_of
from rdpm.pipeline.evaluation.features import ClassifierExtractor
from rdpm.pipeline.evaluation.fidelity import psnr, reconstruct, ssim
from rdpm.pipeline.evaluation.splits import load_split
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.inference.codec import Codec
from rdpm.pipeline.training.tokenizer import validation
from rdpm.pipeline.training.tokenizer.config import LossConfig, TrainTokenizerConfig
from rdpm.pipeline.training.tokenizer.validation import Validator


@pytest.fixture
def tokenizer(tmp_path, exports) -> Tokenizer:
    """An untrained tokenizer."""
    exports.tokenizer(str(tmp_path))
    return load_tokenizer(str(tmp_path))[0]


@pytest.fixture
def config(tokenizer, digit_folder):
    """A config that validates on so many digits."""

    def config(images: int, **settings) -> TrainTokenizerConfig:
        paths = {"images": digit_folder, "out": "o", "validation": digit_folder}
        return TrainTokenizerConfig(
            **paths,
            model=tokenizer.config,
            loss=LossConfig(perceptual="none", adversarial=0.0),
            validation_images=images,
            **settings,
        )

    return config


def test_metrics_and_picture_are_those_of_the_weights(tokenizer, config, digit_folder) -> None:
    validator = Validator(config(10))
    metrics, picture = validator(dict(tokenizer.state_dict()))
    assert validator(dict(tokenizer.state_dict()))[0] == metrics
    pixels = load_split(digit_folder, tokenizer.config, 10).pixels
    assert len(pixels) == 10
    back = picture[8:].reshape(8, 8, 8).swapaxes(0, 1)[..., None]
    assert np.array_equal(picture[:8].reshape(8, 8, 8).swapaxes(0, 1)[..., None], pixels[:8])
    assert set(metrics) == {"validation_psnr", "validation_ssim"}
    few = Validator(config(8))
    few.pixels = pixels[:8]
    assert few(dict(tokenizer.state_dict()))[0] == {
        "validation_psnr": psnr(pixels[:8], back),
        "validation_ssim": ssim(pixels[:8], back),
    }


def test_other_weights_give_other_metrics(tokenizer, config) -> None:
    validator = Validator(config(10))
    first, _ = validator(dict(tokenizer.state_dict()))
    with torch.no_grad():
        tokenizer.decoder.last.bias.fill_(0.5)
    assert validator(dict(tokenizer.state_dict()))[0] != first


def test_a_limit_takes_images_of_every_class(digit_folder, exports) -> None:
    assert set(load_split(digit_folder, exports.tokenizer_config, 12).labels.tolist()) == set(range(10))


def test_rfid_is_the_frechet_distance_to_the_validation_images(tokenizer, config, digit_folder, monkeypatch) -> None:
    extractor = ClassifierExtractor(Classifier(ClassifierConfig(num_classes=10, channels=1)), 16)
    opened = []
    monkeypatch.setattr(validation, "open_extractor", lambda *arguments: opened.append(arguments) or extractor)
    validator = Validator(config(24, validation_extractor="some.pt", inception_weights="some.pth"))
    assert opened == [("some.pt", "some.pth", 16)]
    metrics, _ = validator(dict(tokenizer.state_dict()))
    pixels = load_split(digit_folder, tokenizer.config, 24).pixels
    back = reconstruct(Codec(tokenizer, 16, torch.device("cpu")), pixels, seed=0).pixels
    expected = frechet_of(extractor.extract(pixels).features, extractor.extract(back).features)
    assert metrics["validation_rfid"] == pytest.approx(expected, rel=1e-3)
    assert expected > 0
