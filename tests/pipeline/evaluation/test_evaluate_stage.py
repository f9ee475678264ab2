"""The stage and the page on a made run: untrained models, real digits, stores written by the project's writer."""

import dataclasses
import functools
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import jobs.evaluate
import jobs.report
from models.autoencoder import AutoencoderConfig
from models.codebook import QuantizerConfig
from models.generator import Generator, GeneratorConfig
from models.tokenizer import Tokenizer, TokenizerConfig
from pipeline import files, records
from pipeline.evaluation import evaluate as stage
from pipeline.evaluation.classifier import ClassifierConfig
from pipeline.evaluation.evaluate import EvaluateConfig, evaluate
from pipeline.evaluation.reconstruction import encode_images
from pipeline.evaluation.report import ReportConfig
from pipeline.exports import save_export
from pipeline.tokens.writer import publish, start_store, write_shard
from storage_schemas.manifest import Plan
from storage_schemas.samples import sample_arrays
from storage_schemas.tokens import token_arrays

CLASSES = ("0", "1", "<b>&2")
TRAIN, HELD_OUT, DRAWN = 20, 5, 10  # images a class


def _pixels(start, stop):
    """Digits start ... stop - 1 of every class, class by class: (n, 8, 8, 1) uint8 and labels."""
    found = load_digits()
    rows = np.concatenate([np.flatnonzero(found.target == y)[start:stop] for y in range(len(CLASSES))])
    return (found.images[rows] * (255 / 16)).round().astype(np.uint8)[..., None], found.target[rows]


def _folder(root, pixels, labels):
    for i, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        path = root / CLASSES[label] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)


def _write(url, plan, columns):
    start_store(url, plan)
    write_shard(url, plan, 0, columns, {"label": columns["label"]})
    return publish(url, plan).store_id


def _samples(run, name, pixels, labels, **identity):
    """A sample store of these images (n, 8, 8, 1)."""
    facts = {
        "tokenizer_digest": run.tokenizer_digest,
        "generator_digest": run.generator_digest,
        "classes": list(CLASSES),
    }
    rows = len(pixels)
    plan = Plan("samples", rows, rows, rows, sample_arrays(10, 4, 8), facts | identity)
    columns = {
        "images": np.repeat(pixels, 3, axis=-1),
        "label": labels.astype(np.int32),
        "seed": np.arange(rows, dtype=np.uint64),
        "codes": encode_images(run.model, pixels, 1, 0, 16).astype(np.uint16),
    }
    _write(f"{run.root}/{name}", plan, columns)
    return f"{run.root}/{name}"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Folders, exports and stores of one run, as the jobs would leave them."""
    root = tmp_path_factory.mktemp("run")
    started = [records.begin(f"train_{name}", f"{root}/{name}", {}) for name in ("tokenizer", "generator")]
    torch.manual_seed(0)
    shape = TokenizerConfig(8, AutoencoderConfig(1, 8, (1, 1), 1, (), 4), QuantizerConfig(16, 4))
    space = GeneratorConfig(depth=1, num_classes=3, codebook_size=16, code_dim=4, grid=4)
    model = Tokenizer(shape).eval()
    facts = {"classes": list(CLASSES)}
    card = save_export(f"{root}/tokenizer", "tokenizer", shape, model.state_dict(), facts, {}, 5)
    identity = {"tokenizer_digest": card.digest, "tokenizer_config": card.config, "classes": list(CLASSES)}
    plan = Plan("tokens", 2, 2, 2, token_arrays(10, (4, 4, 4), False, False), identity)
    columns = {"codes": np.ones((2, 10, 4, 4), np.uint16), "noise_seed": np.ones(2, np.uint64)}
    store_id = _write(f"{root}/store", plan, columns | {"label": np.ones(2, np.int32)})
    made_from = {"stores": [store_id], "tokenizer_digest": card.digest, **facts}
    generator = save_export(
        f"{root}/generator", "generator", space, Generator(space).state_dict(), made_from, {"note": "<i>"}, 9
    )
    lines = [{"step": s, "loss": 1 / s, "loss_by_step": [None, *[0.5] * 9], "gradient_norm": 1.0} for s in (1, 2, 3)]
    for name in ("tokenizer", "generator"):
        files.write_bytes(f"{root}/{name}/log.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in lines))
    for record in started:
        record.finish({})
    _folder(root / "train", *_pixels(0, TRAIN))
    _folder(root / "val", *_pixels(TRAIN, TRAIN + HELD_OUT))
    made = SimpleNamespace(root=root, model=model, tokenizer_digest=card.digest, generator_digest=generator.digest)
    _samples(made, "samples", *_pixels(50, 50 + DRAWN))
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A classifier of three steps, and the threads as they were."""
    monkeypatch.setattr(stage, "ClassifierConfig", functools.partial(ClassifierConfig, steps=3, batch=8))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _config(run, **changes):
    root = run.root
    given = {
        "train_images": f"{root}/train",
        "images": f"{root}/val",
        "tokenizer": f"{root}/tokenizer",
        "samples": f"{root}/samples",
        "out": f"{root}/metrics.json",
        "threads": 1,
    }
    return EvaluateConfig(**given | changes)


def test_every_metric_is_there_and_finite(run):
    metrics = evaluate(_config(run, timed=(f"{run.root}/tokenizer", f"{run.root}/generator")))
    assert set(metrics["tokenizer"]) == {"psnr", "rfid", "ssim", "codebook_usage", "perplexity_by_step"}
    assert {
        *("class_accuracy", "classifier_accuracy_on_real", "inception_score", "copies"),
        *("frechet_distance", "frechet_distance_real", "frechet_ratio", "frechet_distance_all"),
        *("precision", "recall", "precision_real", "recall_real"),
        *("nearest_train_distance", "nearest_train_distance_p01"),
        *("nearest_train_distance_real", "nearest_train_distance_real_p01"),
    } <= set(metrics["generator"])
    numbers = [
        *metrics["generator"].values(),
        *metrics["tokenizer"]["perplexity_by_step"],
        metrics["tokenizer"]["psnr"],
    ]
    assert np.isfinite(numbers).all()
    assert set(metrics["seconds"]) == {"train_tokenizer", "train_generator", "evaluate"}
    assert metrics["protocol"]["count"] == len(CLASSES) * HELD_OUT
    assert metrics["protocol"]["extractor"]["name"] == "classifier"
    json.dumps(metrics, allow_nan=False)


def test_the_batch_size_does_not_show(run):
    small, large = evaluate(_config(run, batch=4)), evaluate(_config(run, batch=100))
    assert small["generator"] == large["generator"]
    assert small["protocol"] == large["protocol"]
    for name, value in small["tokenizer"].items():
        assert value == pytest.approx(large["tokenizer"][name], rel=1e-3)


def test_held_out_images_taken_for_samples_get_their_own_numbers(run):
    """What a perfect generator gets: the columns `_real`."""
    store = _samples(run, "perfect", *_pixels(TRAIN, TRAIN + HELD_OUT))
    found = evaluate(_config(run, samples=store))["generator"]
    assert found["frechet_ratio"] == pytest.approx(1, rel=1e-9)
    assert found["frechet_distance_deviation"] == pytest.approx(0, abs=1e-9)
    for name in ("precision", "recall", "nearest_train_distance", "nearest_train_distance_p01", "inception_score"):
        real = "nearest_train_distance_real_p01" if name.endswith("p01") else f"{name}_real"
        assert found[name] == pytest.approx(found[real], rel=1e-9)
    assert found["class_accuracy"] == found["classifier_accuracy_on_real"]


def test_copied_training_images_are_found_out(run):
    store = _samples(run, "copied", *_pixels(0, HELD_OUT))
    found = evaluate(_config(run, samples=store))["generator"]
    assert found["copies"] == 1
    assert found["nearest_train_distance"] == 0
    assert found["precision"] == 1


def test_inputs_that_do_not_belong_together_are_named(run):
    pixels, labels = _pixels(50, 50 + DRAWN)
    foreign = _samples(run, "foreign", pixels, labels, tokenizer_digest="f" * 64)
    with pytest.raises(ValueError, match="were decoded by tokenizer ffffffffffff, not"):
        evaluate(_config(run, samples=foreign))
    renamed = _samples(run, "renamed", pixels, labels, classes=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"classes \['a', 'b', 'c'\]"):
        evaluate(_config(run, samples=renamed))
    few = _samples(run, "few", *_pixels(50, 54))
    with pytest.raises(ValueError, match="has 4 images, fewer than the 5 of a draw"):
        evaluate(_config(run, samples=few))
    with pytest.raises(ValueError, match="has no finished record"):
        evaluate(_config(run, timed=(f"{run.root}/nowhere",)))
    with pytest.raises(ValueError, match="inception_weights '' does not exist"):
        evaluate(_config(run, extractor="inception"))
    with pytest.raises(ValueError, match="draws is 0"):
        _config(run, draws=0)


def test_jobs_write_metrics_and_one_self_contained_page(run, tmp_path, capsys):
    root = run.root
    config = _config(run, out=f"{tmp_path}/metrics.json")
    jobs.evaluate.run(config)
    assert "generator.frechet_distance" in capsys.readouterr().out
    jobs.evaluate.run(config)
    assert "already there" in capsys.readouterr().out
    with pytest.raises(ValueError, match="draws 10 -> 3"):
        jobs.evaluate.run(dataclasses.replace(config, draws=3))

    inputs = {name: f"{root}/{name}" for name in ("tokenizer", "generator", "store", "samples")}
    folders = {"images": f"{root}/val", "train_images": f"{root}/train"}
    report = ReportConfig(
        metrics=config.out, out=f"{tmp_path}/report.html", also_png=f"{tmp_path}/sheet.png", **inputs, **folders
    )
    jobs.report.run(report)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "<b>" not in page
    assert "<i>" not in page
    assert "&lt;b&gt;&amp;2" in page
    for part in ("Fréchet distance", "Step by step", "Reconstructions", "Loss by step t", run.tokenizer_digest):
        assert part in page
    assert Image.open(tmp_path / "sheet.png").size == (10 * 52 + 4, 3 * 52 + 4)

    other = _samples(run, "other", *_pixels(60, 60 + DRAWN))
    with pytest.raises(ValueError, match="give the files of one run"):
        jobs.report.run(dataclasses.replace(report, samples=other, out=f"{tmp_path}/other.html"))
