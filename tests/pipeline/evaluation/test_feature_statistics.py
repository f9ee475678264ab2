"""Statistics of a set from one pass, their file, and the references that samples are compared with."""

import io
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from rdpm.pipeline.evaluation import feature_statistics, image_sets
from rdpm.pipeline.evaluation.classifier import Classifier, ClassifierConfig, initialize
from rdpm.pipeline.evaluation.distribution import RunningScore, frechet_distance
from rdpm.pipeline.evaluation.feature_statistics import (
    load_or_take_statistics,
    load_statistics,
    open_reference,
    take_statistics,
)
from rdpm.pipeline.evaluation.features import ClassifierExtractor, Extractor
from rdpm.pipeline.evaluation.image_sets import ArchiveImages, open_reference_images
from rdpm.pipeline.evaluation.manifold import precision_recall
from tests.pipeline.evaluation import adm_formulas as adm


def judge(batch: int = 16, seed: int = 0, channels: int = 3) -> ClassifierExtractor:
    """An untrained classifier of 64 features, 10 logits and maps."""
    classifier = Classifier(ClassifierConfig(num_classes=10, channels=channels))
    initialize(classifier, seed)
    return ClassifierExtractor(classifier.eval(), batch)


class FlatInception(Extractor):
    """Stands in for Inception where only names and shapes matter: 2,048 values of an image are its features."""

    name, digest = "inception", "f" * 64

    def outputs(self, images):
        return images.flatten(1)[:, :2048].float(), images.flatten(1)[:, :10].float(), None


@pytest.fixture
def archive(tmp_path, digits):
    """The first digits as an .npz: (path, pixels, labels)."""
    pixels = np.repeat(digits[0][:100, ..., None], 3, axis=-1)
    path = tmp_path / "digits.npz"
    np.savez(path, pixels, digits[1][:100])
    return str(path), pixels, digits[1][:100]


def _equal(a, b):
    arrays = [(s.features, s.pool.mean, s.pool.covariance, s.spatial.mean, s.spatial.covariance) for s in (a, b)]
    rest = [(s.count, s.score, s.num_logits, s.labels.tolist(), s.predicted.tolist()) for s in (a, b)]
    return all(np.array_equal(x, y) for x, y in zip(*arrays, strict=True)) and rest[0] == rest[1]


def test_one_pass_gives_the_same_as_all_features_together(archive):
    path, pixels, labels = archive
    extractor = judge()
    statistics = take_statistics(ArchiveImages(path, 3), extractor, 100, "digits")
    features = extractor.extract(pixels)
    for moments, values in ((statistics.pool, features.features), (statistics.spatial, features.spatial)):
        assert np.allclose(moments.mean, values.mean(axis=0, dtype=np.float64), rtol=1e-12)
        assert np.allclose(moments.covariance, np.cov(values.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12)
    assert np.array_equal(statistics.features, features.features)
    assert np.array_equal(statistics.labels, labels)
    assert np.array_equal(statistics.predicted, features.logits.argmax(axis=1))
    score = RunningScore(5000)
    score.add(features.logits)
    assert statistics.score == pytest.approx(score.score(), rel=1e-13)
    assert (statistics.count, statistics.num_logits) == (100, 10)


def test_the_batch_size_does_not_change_statistics(archive):
    images = ArchiveImages(archive[0], 3)
    in_one_batch = take_statistics(images, judge(100), 100, "digits")
    for batch in (1, 7):
        assert _equal(take_statistics(images, judge(batch), 100, "digits"), in_one_batch)


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [3, 250])
@pytest.mark.parametrize("keep", [1, 7, 99, 100, 1000])
def test_kept_features_are_spread_over_the_set(archive, keep, chunk, monkeypatch):
    monkeypatch.setattr(image_sets, "CHUNK", chunk)
    path, pixels, _ = archive
    extractor = judge()
    statistics = take_statistics(ArchiveImages(path, 3), extractor, keep, "digits")
    features = extractor.extract(pixels).features
    rows = [np.flatnonzero((features == row).all(axis=1))[0] for row in statistics.features]
    assert len(rows) == min(keep, 100)
    assert np.ptp(np.diff([-1, *rows])) <= 1 or keep == 1
    assert statistics.count == 100


def test_memory_does_not_grow_with_the_images(tmp_path):
    """Apart from what is kept of each image: its label and its predicted class."""
    peaks = []
    for count in (500, 4000):
        path = tmp_path / f"{count}.npz"
        np.savez(path, np.zeros((count, 16, 16, 3), np.uint8))
        images, extractor = ArchiveImages(str(path), 3), FlatInception(50)
        tracemalloc.start()
        take_statistics(images, extractor, 0, "zeros")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


def test_halves_of_the_training_digits_are_as_far_apart_as_scipy_says(tmp_path, digits):
    halves = []
    for start in (0, 1):
        path = tmp_path / f"{start}.npz"
        np.savez(path, np.repeat(digits[0][start:1500:2, ..., None], 3, axis=-1))
        halves.append(take_statistics(ArchiveImages(str(path), 3), judge(250), 750, "digits"))
    expected = adm.frechet(*(statistics.features.astype(np.float64) for statistics in halves))
    assert frechet_distance(halves[0].pool, halves[1].pool) == pytest.approx(expected, rel=1e-6)
    for name, dtype in (("float16", np.float16), ("float32", np.float32)):
        ours = precision_recall(halves[0].features, halves[1].features, 3, name)
        theirs = adm.precision_recall(halves[0].features, halves[1].features, dtype)
        assert (ours.precision, ours.recall) == pytest.approx(theirs, rel=1e-3)


def test_kept_statistics_are_used_only_for_what_they_were_taken_from(archive, tmp_path, monkeypatch):
    path, pixels, _ = archive
    folder = str(tmp_path / "kept")
    first = load_or_take_statistics(ArchiveImages(path, 3), judge(), 50, "digits", folder)
    monkeypatch.setattr(feature_statistics, "take_statistics", lambda *_: pytest.fail("taken again"))
    assert _equal(load_or_take_statistics(ArchiveImages(path, 3), judge(batch=3), 50, "digits", folder), first)
    monkeypatch.undo()
    load_or_take_statistics(ArchiveImages(path, 3), judge(seed=1), 50, "digits", folder)
    load_or_take_statistics(ArchiveImages(path, 3), judge(), 51, "digits", folder)
    np.savez(path, pixels[::-1])
    load_or_take_statistics(ArchiveImages(path, 3), judge(), 50, "digits", folder)
    monkeypatch.setattr(feature_statistics, "PROTOCOL_VERSION", 0)
    load_or_take_statistics(ArchiveImages(path, 3), judge(), 50, "digits", folder)
    assert len(list((tmp_path / "kept").iterdir())) == 5


def test_a_folder_an_archive_and_our_own_file_are_the_same_reference(archive, tmp_path):
    path, pixels, labels = archive
    for i in np.argsort(labels, kind="stable"):
        picture = tmp_path / "folder" / str(labels[i]) / f"{i:03d}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(pixels[i]).save(buffer, "PNG")
        picture.write_bytes(buffer.getvalue())
    like, folder = ArchiveImages(path, 3), str(tmp_path / "kept")
    of_archive, of_folder = (
        open_reference(url, open_reference_images(url, like), judge(), 100, folder)
        for url in (path, str(tmp_path / "folder"))
    )
    assert frechet_distance(of_archive.pool, of_folder.pool) == pytest.approx(0, abs=1e-9)
    kept = next(
        str(file) for file in (tmp_path / "kept").iterdir() if _equal(load_statistics(str(file), judge()), of_archive)
    )
    assert _equal(open_reference(kept, None, judge(), 100, folder), of_archive)


@pytest.mark.slow
def test_adms_file_gives_the_moments_and_its_images_give_the_manifold(archive, tmp_path):
    _, pixels, _ = archive
    pixels = np.repeat(np.repeat(pixels, 4, axis=1), 4, axis=2)  # 32 x 32 x 3 is more than 2,048 values
    path = str(tmp_path / "adm.npz")
    rng = np.random.default_rng(0)
    mean, root = rng.normal(size=2048), rng.normal(size=(2048, 8))
    np.savez(path, arr_0=pixels, mu=mean, sigma=root @ root.T, mu_s=mean[:7], sigma_s=np.eye(7))
    extractor = FlatInception(16)
    like = ArchiveImages(path, 3)
    full = open_reference(path, like, extractor, 100, str(tmp_path / "kept"))
    assert np.array_equal(full.pool.mean, mean)
    assert np.array_equal(full.spatial.covariance, np.eye(7))
    assert np.array_equal(full.features, extractor.extract(pixels).features)
    np.savez(path, mu=mean, sigma=root @ root.T)
    moments_only = open_reference(path, None, extractor, 100, str(tmp_path / "kept"))
    assert (len(moments_only.features), moments_only.spatial) == (0, None)


def test_references_of_other_extractors_and_damaged_ones_are_refused(archive, tmp_path):
    path = archive[0]
    like, kept = ArchiveImages(path, 3), tmp_path / "kept"

    def reference(url, extractor):
        return open_reference(str(url), open_reference_images(str(url), like), extractor, 100, str(kept))

    reference(path, judge())
    ours = next(kept.iterdir())
    with pytest.raises(ValueError, match=f"holds statistics of extractor {judge().digest[:12]}, not of classifier"):
        reference(ours, judge(seed=1))
    adms = tmp_path / "adm.npz"
    np.savez(adms, mu=np.zeros(64), sigma=np.eye(64))
    with pytest.raises(ValueError, match="holds statistics of ADM's Inception, not of classifier"):
        reference(adms, judge())
    with pytest.raises(ValueError, match="holds statistics of 64 features, but Inception has 2048"):
        reference(adms, FlatInception(4))
    np.savez(adms, mu=np.zeros(2048), sigma=np.eye(64))
    with pytest.raises(ValueError, match=r"have shapes \(2048,\) and \(64, 64\)"):
        reference(adms, FlatInception(4))
    np.savez(adms, mu=np.zeros(2048))
    with pytest.raises(ValueError, match="has neither mu and sigma nor arr_0"):
        reference(adms, FlatInception(4))
    with pytest.raises(ValueError, match="does not exist"):
        reference(tmp_path / "nowhere.npz", judge())
    with pytest.raises(ValueError, match="nowhere' do not exist"):
        reference(tmp_path / "nowhere", judge())


def test_one_image_is_too_few(tmp_path):
    np.savez(tmp_path / "one.npz", np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="a covariance needs two images or more, not 1"):
        take_statistics(ArchiveImages(str(tmp_path / "one.npz"), 3), judge(), 1, "one")


@pytest.fixture(autouse=True)
def threads():
    torch.set_num_threads(1)
