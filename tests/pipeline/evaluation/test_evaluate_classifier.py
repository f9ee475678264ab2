"""The classifier recognizes held-out digits, and depends on its seed and images only."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from rdpm.pipeline.evaluation.classifier import ClassifierConfig, quarter_turns, shifted, train_classifier
from rdpm.pipeline.evaluation.features import ClassifierExtractor, load_or_train_classifier
from rdpm.pipeline.foundation.permutation import permute


@pytest.fixture(scope="module")
def digits():
    """Training and held-out pixels (n, 16, 16, 1) uint8 and labels: 1,500 and 297 digits, resized bicubically."""
    data = load_digits()
    small = (data.images * (255 / 16)).round().astype(np.uint8)
    pixels = np.stack([np.asarray(Image.fromarray(x).resize((16, 16), Image.Resampling.BICUBIC)) for x in small])
    order = permute(np.arange(1797), 1797, 0, np.zeros(1797, np.int64))
    pixels, labels = pixels[order, ..., None], data.target[order]
    return (pixels[:1500], labels[:1500]), (pixels[1500:], labels[1500:])


@pytest.mark.long
def test_held_out_digits_are_recognized(digits):
    (pixels, labels), (unseen, truth) = digits
    classifier = train_classifier(ClassifierConfig(num_classes=10), pixels, labels, seed=0)
    outputs = ClassifierExtractor(classifier, 64).extract(unseen)
    assert outputs.features.shape == (297, 64)
    assert (outputs.logits.argmax(1) == truth).mean() >= 0.98


def test_training_is_a_function_of_the_seed(digits):
    """Neither torch's own generator nor the number of threads changes the weights."""
    (pixels, labels), _ = digits
    config = ClassifierConfig(num_classes=10, steps=4, batch=8)
    digests = []
    for seed, global_seed, threads in ((0, 1, 1), (0, 2, 2), (1, 1, 1)):
        torch.manual_seed(global_seed)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        classifier = train_classifier(config, pixels[:50], labels[:50], seed)
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
        digests.append(ClassifierExtractor(classifier, 4).digest)
    assert digests[0] == digests[1] != digests[2]


def test_the_batch_size_does_not_change_features(digits):
    (pixels, labels), (unseen, _) = digits
    classifier = train_classifier(ClassifierConfig(num_classes=10, steps=5), pixels, labels, seed=0)
    unseen = unseen[:100]
    in_one_batch = ClassifierExtractor(classifier, 100).extract(unseen)
    for batch in (1, 7, 64):
        outputs = ClassifierExtractor(classifier, batch).extract(unseen)
        assert np.array_equal(outputs.features, in_one_batch.features)
        assert np.array_equal(outputs.logits, in_one_batch.logits)


def test_a_kept_classifier_is_used_again_only_for_its_images(digits, tmp_path, monkeypatch):
    (pixels, labels), _ = digits
    config = ClassifierConfig(num_classes=10, steps=2, batch=8)
    first = load_or_train_classifier(str(tmp_path), config, pixels[:20], labels[:20], 0)
    load_or_train_classifier(str(tmp_path), config, pixels[1:21], labels[1:21], 0)
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr("rdpm.pipeline.evaluation.features.train_classifier", lambda *_: pytest.fail("trained again"))
    second = load_or_train_classifier(str(tmp_path), config, pixels[:20], labels[:20], 0)
    assert ClassifierExtractor(first, 4).digest == ClassifierExtractor(second, 4).digest


def test_shifts_move_whole_pixels_both_ways():
    images = torch.arange(25.0).view(1, 1, 5, 5).repeat(400, 1, 1, 1)
    moved = shifted(images, torch.arange(400), 1)
    padded = torch.nn.functional.pad(images[:1], (1, 1, 1, 1), mode="replicate")
    windows = {padded[..., y : y + 5, x : x + 5].numpy().tobytes() for y in range(3) for x in range(3)}
    assert {image[None].contiguous().numpy().tobytes() for image in moved} == windows
    assert torch.equal(shifted(images, torch.arange(400), 0), images)


def test_colour_images_train_too():
    pixels = np.random.default_rng(0).integers(0, 256, size=(6, 12, 12, 3)).astype(np.uint8)
    labels = np.array([0, 1, 0, 1, 0, 1])
    classifier = train_classifier(ClassifierConfig(num_classes=2, channels=3, steps=2, batch=4), pixels, labels, 0)
    assert ClassifierExtractor(classifier, 4).extract(pixels).logits.shape == (6, 2)


def test_wrong_channels_are_refused():
    with pytest.raises(ValueError, match="channels is 4"):
        ClassifierConfig(num_classes=10, channels=4)
    with pytest.raises(ValueError, match="images have 3 channels"):
        train_classifier(ClassifierConfig(num_classes=2), np.zeros((2, 8, 8, 3), np.uint8), np.array([0, 1]), 0)


@pytest.mark.slow
def test_images_of_one_class_are_told_by_their_quarter_turns(digits):
    (images, _), (unseen, _) = digits
    pixels, labels = quarter_turns(images[:300])
    assert (pixels[:300] == images[:300]).all()
    assert (np.rot90(pixels[:300], 3, axes=(1, 2)) == pixels[900:]).all()
    assert np.bincount(labels).tolist() == [300] * 4
    turned, truth = quarter_turns(unseen[:50])
    classifier = train_classifier(ClassifierConfig(num_classes=4, steps=100), pixels, labels, seed=0)
    assert (ClassifierExtractor(classifier, 50).extract(turned).logits.argmax(1) == truth).mean() > 0.4
