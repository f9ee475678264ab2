"""The agreement with ADM's evaluator: the parts that need no TensorFlow."""

import numpy as np
import pytest

from benchmarks.adm.__main__ import MadeExtractor, ours, row
from rdpm.pipeline.evaluation.feature_statistics import take_statistics
from rdpm.pipeline.evaluation.image_sets import ArchiveImages


@pytest.fixture(scope="module")
def statistics(tmp_path_factory, digits):
    """Statistics of two halves of the digits in a made feature space of 21 values."""
    path, both = tmp_path_factory.mktemp("digits"), []
    for name, part in (("reference", slice(0, None, 2)), ("samples", slice(1, None, 2))):
        np.savez(path / f"{name}.npz", np.repeat(digits[0][part, ..., None], 3, axis=-1))
        images = ArchiveImages(f"{path}/{name}.npz", 3)
        both.append(take_statistics(images, MadeExtractor(21, 192), len(images), name))
    return both


def test_made_features_are_as_long_as_inceptions_and_do_not_depend_on_the_batch(digits):
    pixels = np.repeat(digits[0][:40, ..., None], 3, axis=-1)
    extractor = MadeExtractor(700, 192)
    features = extractor.extract(pixels)
    assert features.features.shape == features.spatial.shape == (40, 700)
    assert features.logits.shape == (40, 1008)
    assert 300 < (features.features**2).sum(axis=1).mean() < 1200
    extractor.batch = 7
    assert np.allclose(extractor.extract(pixels).features, features.features, rtol=1e-6)


def test_our_numbers_have_the_evaluators_names(statistics):
    numbers = ours(*statistics)
    shares = {f"{share}{kind}" for share in ("precision", "recall") for kind in ("", "_float32")}
    assert set(numbers) == {"frechet_distance", "spatial_frechet_distance", "inception_score"} | shares
    assert numbers["frechet_distance"] > 0
    assert numbers["precision"] > 0.5


def test_distances_are_compared_by_their_ratio_and_shares_by_their_difference():
    assert row("frechet_distance", 2.02, 2.0)["difference"] == pytest.approx(0.01)
    assert row("recall", 0.5, 0.48)["difference"] == pytest.approx(0.02)
