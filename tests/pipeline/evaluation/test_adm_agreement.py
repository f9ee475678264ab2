"""Our streamed metrics agree with the evaluator's formulas, on real digits through Inception with made weights.

RDPM_AGREEMENT_IMAGES=1797 uses all digits, which takes some minutes.
"""

import contextlib
import os
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.distance import cdist

from rdpm.pipeline.evaluation.distribution import Moments, frechet_distance
from rdpm.pipeline.evaluation.feature_statistics import Statistics, take_statistics
from rdpm.pipeline.evaluation.features import InceptionExtractor
from rdpm.pipeline.evaluation.image_sets import ArchiveImages
from rdpm.pipeline.evaluation.manifold import precision_recall
from tests.pipeline.evaluation import adm_formulas as adm

IMAGES = int(os.environ.get("RDPM_AGREEMENT_IMAGES", "24"))


@pytest.fixture(scope="module")
def halves(tmp_path_factory, digits, made_inception) -> list[tuple[Statistics, dict[str, np.ndarray]]]:
    """Two sets of 32 x 32 digits, one of them noisy: our statistics, and the same features by hand."""
    rng = np.random.default_rng(0)
    pixels = np.stack([np.asarray(Image.fromarray(x).resize((32, 32))) for x in digits[0][:IMAGES]])
    pixels = np.repeat(pixels[..., None], 3, axis=-1)
    noisy = np.clip(pixels + rng.normal(0, 20, pixels.shape), 0, 255).astype(np.uint8)
    both = []
    for name, images in (("even", pixels[0::2]), ("odd", noisy[1::2])):
        path = tmp_path_factory.mktemp("halves") / f"{name}.npz"
        np.savez(path, images)
        with _by_hand(made_inception, len(images)) as features:
            statistics = take_statistics(ArchiveImages(str(path), 3), made_inception, len(images), name)
        both.append((statistics, features))
    return both


@contextlib.contextmanager
def _by_hand(extractor: InceptionExtractor, count: int) -> Iterator[dict[str, np.ndarray]]:
    """Features as the evaluator computes them, from what passes through the network.

    They are pool_3; its product with the last layer's weights; and mixed_6/conv, from its inputs and weights.
    """
    network, pools, mixed = extractor.network, [], []
    branch = network.Mixed_6d.branch1x1
    hooks = [
        network.AvgPool.register_forward_hook(lambda _, __, out: pools.append(out.flatten(1).numpy())),
        branch.register_forward_pre_hook(lambda _, inputs: mixed.append(inputs[0].numpy())),
    ]
    features: dict[str, np.ndarray] = {}
    yield features
    for hook in hooks:
        hook.remove()
    norm, inputs = branch.bn, np.concatenate(mixed)[:count].transpose(0, 2, 3, 1)  # NHWC, as in TensorFlow
    scale = norm.weight.numpy() / np.sqrt(norm.running_var.numpy() + 1e-3)
    conv = inputs @ branch.conv.weight.numpy()[:, :, 0, 0].T
    conv = np.maximum((conv - norm.running_mean.numpy()) * scale + norm.bias.numpy(), 0)
    features["pool"] = np.concatenate(pools)[:count]
    features["logits"] = features["pool"] @ network.fc.weight.numpy().T
    features["spatial"] = conv[..., :7].reshape(count, -1)


@pytest.mark.slow
def test_frechet_distances_of_pooled_and_spatial_features(halves):
    """Streamed moments are those of the features; distances are the evaluator's, on few enough features for it."""
    for name in ("pool", "spatial"):
        _assert_agreement(halves, name)


def _assert_agreement(halves, name: str) -> None:
    ours = [getattr(statistics, name) for statistics, _ in halves]
    theirs = [features[name] for _, features in halves]
    for moments, features in zip(ours, theirs, strict=True):
        spread = features.std(axis=0).max()
        assert spread > 0.05
        assert np.allclose(moments.mean, features.mean(axis=0), rtol=1e-4, atol=1e-5 * spread)
        assert np.allclose(moments.covariance, np.cov(features, rowvar=False), rtol=1e-3, atol=1e-5 * spread**2)
    alive = np.flatnonzero(np.min([features.std(axis=0) for features in theirs], axis=0) > 0.01)
    some = alive[:: -(-len(alive) // (IMAGES // 4))]
    parts = [Moments(m.mean[some], m.covariance[np.ix_(some, some)]) for m in ours]
    distance, expected = frechet_distance(*parts), adm.frechet(*(features[:, some] for features in theirs))
    print(f"{name}: {len(some)} features, ours {distance:.9g}, ADM's formula {expected:.9g}")
    assert distance == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_inception_scores(halves):
    for statistics, features in halves:
        expected = adm.inception_score(features["logits"], 5000)
        print(f"inception score: ours {statistics.score:.9g}, ADM's formula {expected:.9g}")
        assert statistics.score == pytest.approx(expected, rel=1e-3)
        assert statistics.score > 1.001


def _scaled(halves) -> tuple[np.ndarray, np.ndarray]:
    """Features scaled to Inception's usual length, |x|^2 near 600, where float16 makes a difference."""
    (a, _), (b, _) = halves
    scale = np.float32(np.sqrt(600 / (a.features.astype(np.float64) ** 2).sum(axis=1).mean()))
    return scale * a.features, scale * b.features


@pytest.mark.slow
def test_precision_and_recall_in_float16(halves):
    real, fake = _scaled(halves)
    ours, expected = precision_recall(real, fake, 3, "float16"), adm.precision_recall(real, fake, np.float16)
    print(f"ours {ours.precision:.9g} {ours.recall:.9g}, ADM's {expected[0]:.9g} {expected[1]:.9g}")
    assert ours.precision == pytest.approx(expected[0], rel=1e-3)
    assert ours.recall == pytest.approx(expected[1], rel=1e-3)
    assert ours.precision > 0


@pytest.mark.slow
def test_precision_and_recall_in_float32_are_those_of_exact_distances(halves):
    """The evaluator's formula cancels in float32. Of 899 images, it puts one on the wrong side of a sphere."""
    real, fake = _scaled(halves)
    ours, k = precision_recall(real, fake, 3, "float32"), 3
    within = [cdist(x.astype(np.float64), x.astype(np.float64), "sqeuclidean") for x in (real, fake)]
    radii = [np.sort(distances, axis=1)[:, k] for distances in within]
    across = cdist(fake.astype(np.float64), real.astype(np.float64), "sqeuclidean")
    assert ours.precision == pytest.approx((across <= radii[0]).any(axis=1).mean(), rel=1e-9)
    assert ours.recall == pytest.approx((across <= radii[1][:, None]).any(axis=0).mean(), rel=1e-9)
    expected = adm.precision_recall(real, fake, np.float32)
    assert ours.precision == pytest.approx(expected[0], abs=1.5 / len(fake))
    assert ours.recall == pytest.approx(expected[1], abs=1.5 / len(real))
