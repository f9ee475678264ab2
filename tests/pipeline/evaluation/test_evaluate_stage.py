"""The stage on a made run: every metric, its protocol, and inputs that do not belong together."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from rdpm.pipeline.evaluation import image_sets
from rdpm.pipeline.evaluation.distribution import Moments
from rdpm.pipeline.evaluation.evaluate import evaluate, warnings_of
from rdpm.pipeline.evaluation.feature_statistics import Statistics
from rdpm.pipeline.evaluation.stage import run as run_stage
from tests.pipeline.evaluation.made_run import DRAWN, HELD_OUT, TRAIN, class_pixels

pytestmark = pytest.mark.usefixtures("quick")


def test_every_metric_is_there_and_finite_and_has_its_protocol(run):
    metrics = evaluate(run.config(timed=(f"{run.root}/tokenizer", f"{run.root}/generator")))
    assert set(metrics["tokenizer"]) == {
        # Images are 8 x 8 and grey, so there is no 11 x 11 window and no luma.
        *("psnr", "psnr_pooled", "psnr_uint8_wrap", "ssim", "ssim_range2"),
        *("rfid", "codebook_usage", "perplexity_by_step"),
    }
    assert set(metrics["generator"]) == {
        *("frechet_distance", "spatial_frechet_distance", "inception_score", "precision", "recall"),
        *("frechet_distance_real", "spatial_frechet_distance_real", "inception_score_real"),
        *("precision_real", "recall_real", "precision_float32", "recall_float32"),
        *("frechet_distance_matched", "frechet_distance_deviation", "frechet_ratio"),
        *("precision_matched", "recall_matched", "class_accuracy", "classifier_accuracy_on_real"),
        "class_accuracy_by_class",
        *("kid", "kid_deviation", "kid_real", "kid_deviation_real"),
        *(f"{name}{kind}" for name in ("spread", "spread_8", "spread_32") for kind in ("", "_interval", "_real")),
        *("pixel_frechet_distance", "pixel_frechet_distance_interval", "pixel_frechet_distance_real"),
        *("pixel_frechet_distance_matched", "pixel_frechet_distance_deviation"),
        *("pixel_frechet_ratio", "pixel_frechet_ratio_interval"),
        *("nearest_train_distance", "nearest_train_distance_p01"),
        *("nearest_train_distance_real", "nearest_train_distance_real_p01", "copies"),
    }
    by_class = metrics["generator"]["class_accuracy_by_class"]
    assert tuple(by_class) == ("0", "1", "<b>&2")
    numbers = [
        value for part in ("generator", "tokenizer") for value in metrics[part].values() if value is not by_class
    ]
    assert np.isfinite(np.concatenate([*map(np.ravel, numbers), [*by_class.values()]])).all()
    assert np.mean([*by_class.values()]) == pytest.approx(metrics["generator"]["class_accuracy"])  # classes are equal
    assert set(metrics["seconds"]) == {"train-tokenizer", "train-generator", "evaluate"}
    json.dumps(metrics, allow_nan=False)

    protocol = metrics["protocol"]
    numbers = {f"{part}.{name}" for part in ("tokenizer", "generator") for name in metrics[part]}
    assert set(protocol["metrics"]) == numbers
    for entry in protocol["metrics"].values():
        assert entry["convention"]
        assert all(len(protocol[name]["digest"]) == 64 for name in entry["of"])
    counts = {name: protocol[name]["images"] for name in ("reference", "held_out", "samples")}
    assert counts == {"reference": 3 * TRAIN, "held_out": 3 * HELD_OUT, "samples": 3 * DRAWN}
    assert protocol["extractor"]["name"] == "classifier"
    expected = "held_out: 15 images for 64 features do not give a covariance of full rank"
    assert protocol["settings"]["warnings"][0].startswith(expected)


def test_the_batch_size_does_not_change_the_metrics(run, tmp_path):
    """Metrics of samples are equal. Reconstructions round differently, because a batch decides how products round."""
    results = [evaluate(run.config(batch=batch, out=f"{tmp_path}/{batch}/metrics.json")) for batch in (4, 100)]
    small, large = ({name: tree for name, tree in metrics.items() if name != "seconds"} for metrics in results)
    assert small["generator"] == large["generator"]
    assert small["protocol"] == large["protocol"]
    for name, value in small["tokenizer"].items():
        assert value == pytest.approx(large["tokenizer"][name], rel=1e-3)


def test_at_one_batch_size_the_chunks_do_not_change_reconstructions(run, tmp_path, monkeypatch):
    """With padded batches, a code depends neither on the other images of a chunk nor on their number."""
    config = run.config(samples="", batch=4, out=f"{tmp_path}/metrics.json")
    results = []
    for chunk in (3, 7, 250):
        monkeypatch.setattr(image_sets, "CHUNK", chunk)
        results.append(evaluate(config)["tokenizer"])
    distances = [metrics.pop("rfid") for metrics in results]  # sums over chunks round, and the covariance is singular
    assert results[0] == results[1] == results[2]
    assert distances == pytest.approx([distances[2]] * 3, rel=1e-7)


@pytest.mark.parametrize("form", ["npz", "pictures"])
def test_samples_are_the_same_in_every_form(run, tmp_path, form):
    """An .npz with labels gets every metric that a store gets. For pictures, which have none, draws are not
    class-balanced, and the spread is over the whole set.
    """
    of_store = evaluate(run.config())["generator"]
    pixels, labels = class_pixels(50, 50 + DRAWN)
    pixels = np.repeat(pixels, 3, axis=-1)
    if form == "npz":
        samples = f"{tmp_path}/samples.npz"
        np.savez(samples, pixels, labels)
    else:
        samples = str(tmp_path)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / f"{i:06d}.png")
    metrics = evaluate(run.config(samples=samples))
    assert metrics["protocol"]["settings"]["spread"] == ("within classes" if form == "npz" else "over the whole set")
    metrics = metrics["generator"]
    if form == "npz":
        assert metrics == of_store
        return
    assert of_store.keys() - metrics.keys() == {"class_accuracy", "class_accuracy_by_class"}
    words = ("matched", "deviation", "ratio", "interval", "spread")
    without_labels = {name for name in metrics if not any(word in name for word in words)}
    assert all(metrics[name] == of_store[name] for name in without_labels)
    assert metrics["frechet_ratio"] == pytest.approx(of_store["frechet_ratio"], rel=0.5)


def test_parts_without_inputs_are_left_out(run, tmp_path):
    only = {"samples": "", "reference": "", "train_images": "", "images": "", "tokenizer": ""}
    judge = tmp_path / "judge.pt2"
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)).eval()
    exported = torch.export.export(network, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("b")},))
    torch.export.save(exported, judge)
    given = {name: getattr(run.config(), name) for name in only} | {"extractor": str(judge)}
    of_tokenizer = evaluate(run.config(**only | {name: given[name] for name in ("images", "tokenizer", "extractor")}))
    assert "generator" not in of_tokenizer
    assert of_tokenizer["tokenizer"]["rfid"] > 0
    reference = given["train_images"]
    of_samples = evaluate(
        run.config(**only | {"samples": given["samples"], "reference": reference, "extractor": str(judge)})
    )
    assert "tokenizer" not in of_samples
    assert set(of_samples["generator"]) == {
        *("frechet_distance", "inception_score", "precision", "recall", "precision_float32", "recall_float32"),
        *("kid", "kid_deviation", "pixel_frechet_distance", "pixel_frechet_distance_interval"),
        *(f"{name}{kind}" for name in ("spread", "spread_8", "spread_32") for kind in ("", "_interval")),
    }
    assert of_samples["protocol"]["extractor"]["name"] == "judge.pt2"


def test_samples_sorted_by_class_get_a_warning():
    """But only where the inception score has more than one split."""
    moments, labels = Moments(np.zeros(2), np.eye(2)), np.repeat([0, 1], 2501)
    sorted_ = Statistics(5002, moments, None, np.zeros((0, 2)), labels, labels, 2, 1.0)
    assert "they are sorted by class" in warnings_of({"samples": sorted_})[0]
    shuffled = dataclasses.replace(sorted_, labels=np.roll(labels, 7))
    unknown = dataclasses.replace(sorted_, labels=np.full(5002, -1))
    few = dataclasses.replace(sorted_, labels=labels[::2])
    for statistics in (shuffled, unknown, few):
        assert warnings_of({"samples": statistics}) == []


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_reference_without_images_of_that_size_leaves_pixels_out(run, tmp_path):
    """With a sentence that says why."""
    judge, large = tmp_path / "judge.pt", tmp_path / "large.npz"
    torch.manual_seed(0)
    layers = torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 5)
    torch.jit.script(torch.nn.Sequential(*layers).eval()).save(str(judge))
    np.savez(large, np.kron(class_pixels(0, 9)[0], np.ones((1, 2, 2, 3), np.uint8)))
    changes = {"extractor": str(judge), "images": "", "train_images": "", "out": f"{tmp_path}/metrics.json"}
    metrics = evaluate(run.config(reference=str(large), **changes))
    statistics = next((tmp_path / "statistics").glob("statistics-*.npz"))
    of_statistics = evaluate(run.config(reference=str(statistics), **changes))
    for each, holds in ((metrics, "images of 16 pixels"), (of_statistics, "no images")):
        assert "frechet_distance" in each["generator"]
        assert "spread" not in each["generator"]
        warning = f"reference: it holds {holds}, so spread and pixel distance are left out"
        assert any(warning in sentence for sentence in each["protocol"]["settings"]["warnings"])


def test_samples_equal_to_the_held_out_images_get_the_same_metrics(run):
    """A perfect generator gets the metrics with `_real`."""
    store = run.samples("perfect", *class_pixels(TRAIN, TRAIN + HELD_OUT))
    metrics = evaluate(run.config(samples=store))["generator"]
    assert metrics["frechet_ratio"] == pytest.approx(1, rel=1e-9)
    assert metrics["frechet_distance_deviation"] == pytest.approx(0, abs=1e-9)
    same = {name: f"{name}_real" for name in ("precision", "recall", "nearest_train_distance", "inception_score")}
    same |= {name: f"{name}_real" for name in ("frechet_distance", "spatial_frechet_distance")}
    same |= {"precision_matched": "precision_real", "nearest_train_distance_p01": "nearest_train_distance_real_p01"}
    same |= {name: f"{name}_real" for name in ("spread", "spread_8", "spread_32", "kid", "pixel_frechet_distance")}
    for name, real in same.items():
        assert metrics[name] == pytest.approx(metrics[real], rel=1e-9)
    assert metrics["pixel_frechet_ratio"] == pytest.approx(1, rel=1e-9)
    assert metrics["class_accuracy"] == metrics["classifier_accuracy_on_real"]


def test_copied_training_images_are_detected(run):
    store = run.samples("copied", *class_pixels(0, HELD_OUT))
    metrics = evaluate(run.config(samples=store))["generator"]
    assert metrics["copies"] == 1
    assert metrics["nearest_train_distance"] == 0
    assert metrics["precision"] == 1


def test_a_folder_is_no_place_for_metrics(run, tmp_path):
    with pytest.raises(ValueError, match="is a folder; give the path of the file to write"):
        run_stage(run.config(out=str(tmp_path)))
    assert not (tmp_path.parent / f"{tmp_path.name}.record.json").exists()


def test_the_stage_writes_metrics_once_and_refuses_other_settings(run, tmp_path, capsys):
    config = run.config(out=f"{tmp_path}/metrics.json")
    run_stage(config)
    printed = capsys.readouterr().out
    assert "generator.frechet_distance" in printed
    assert "generator.frechet_distance_real" not in printed  # it has a column of its own
    metrics = (tmp_path / "metrics.json").read_bytes()
    run_stage(dataclasses.replace(config, batch=32))
    assert "already there" in capsys.readouterr().out
    assert (tmp_path / "metrics.json").read_bytes() == metrics
    with pytest.raises(ValueError, match="draws 10 -> 3"):
        run_stage(dataclasses.replace(config, draws=3))
