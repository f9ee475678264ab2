"""What training shows of held-out images is what the tokenizer does to them."""

import numpy as np
import pytest
import torch
from rdpm.pipeline.evaluation.validation import Validator

from rdpm.pipeline.evaluation.classifier import Classifier, ClassifierConfig
from rdpm.pipeline.evaluation.distribution import frechet_of
from rdpm.pipeline.evaluation.features import ClassifierExtractor
from rdpm.pipeline.evaluation.fidelity import decode_codes, encode_images, psnr, ssim
from rdpm.pipeline.evaluation.splits import load_split
from rdpm.pipeline.exports.weights import load_tokenizer


def test_figures_and_picture_are_those_of_the_weights(tmp_path, exports, digit_folder) -> None:
    exports.tokenizer(str(tmp_path))
    tokenizer = load_tokenizer(str(tmp_path))[0]
    validator = Validator(digit_folder, tokenizer.config, 10, "none")
    figures, picture = validator(dict(tokenizer.state_dict()))
    assert validator(dict(tokenizer.state_dict()))[0] == figures
    pixels = load_split(digit_folder, tokenizer.config, 10).pixels
    assert len(pixels) == 10
    back = picture[8:].reshape(8, 8, 8).swapaxes(0, 1)[..., None]
    assert np.array_equal(picture[:8].reshape(8, 8, 8).swapaxes(0, 1)[..., None], pixels[:8])
    assert set(figures) == {"validation_psnr", "validation_ssim"}
    few = Validator(digit_folder, tokenizer.config, 8, "none")
    few.pixels = pixels[:8]
    assert few(dict(tokenizer.state_dict()))[0] == {
        "validation_psnr": psnr(pixels[:8], back),
        "validation_ssim": ssim(pixels[:8], back),
    }


def test_other_weights_give_other_figures(tmp_path, exports, digit_folder) -> None:
    exports.tokenizer(str(tmp_path))
    tokenizer = load_tokenizer(str(tmp_path))[0]
    validator = Validator(digit_folder, tokenizer.config, 10, "none")
    first, _ = validator(dict(tokenizer.state_dict()))
    with torch.no_grad():
        tokenizer.decoder.last.bias.fill_(0.5)
    assert validator(dict(tokenizer.state_dict()))[0] != first


def test_a_limit_takes_images_of_every_class(digit_folder, exports) -> None:
    assert set(load_split(digit_folder, exports.tokenizer_config, 12).labels.tolist()) == set(range(10))


def test_rfid_is_the_frechet_distance_to_the_validation_images(tmp_path, exports, digit_folder) -> None:
    exports.tokenizer(str(tmp_path))
    tokenizer = load_tokenizer(str(tmp_path))[0]
    extractor = ClassifierExtractor(Classifier(ClassifierConfig(num_classes=10, channels=1)), 16)
    validator = Validator(digit_folder, tokenizer.config, 24, "none", extractor)
    figures, _ = validator(dict(tokenizer.state_dict()))
    pixels = load_split(digit_folder, tokenizer.config, 24).pixels
    codes = encode_images(tokenizer, pixels, 0, 0, 16)
    back = decode_codes(tokenizer, codes, codes.shape[1], 16)
    expected = frechet_of(extractor.extract(pixels).features, extractor.extract(back).features)
    assert figures["validation_rfid"] == pytest.approx(expected, rel=1e-3)
    assert expected > 0
