"""The stage and the page on a made run: untrained models, real digits, stores written by the project's writer."""

import dataclasses
import functools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from rdpm.models.autoencoder import AutoencoderConfig
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.generator import Generator, GeneratorConfig
from rdpm.models.tokenizer import Tokenizer, TokenizerConfig
from rdpm.pipeline.evaluation import inputs as stage
from rdpm.pipeline.evaluation.classifier import ClassifierConfig
from rdpm.pipeline.evaluation.distribution import Moments
from rdpm.pipeline.evaluation.evaluate import evaluate, warnings_of
from rdpm.pipeline.evaluation.feature_statistics import Statistics
from rdpm.pipeline.evaluation.fidelity import encode_images
from rdpm.pipeline.evaluation.inputs import EvaluateConfig
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.exports.weights import save_export
from rdpm.pipeline.foundation import files, records
from rdpm.pipeline.reporting.report import ReportConfig
from rdpm.pipeline.stores.writer import publish, start_store, write_shard
from rdpm.storage_schemas.manifest import Plan
from rdpm.storage_schemas.samples import sample_arrays
from rdpm.storage_schemas.tokens import token_arrays

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


def test_every_metric_is_there_and_finite_and_carries_its_protocol(run):
    metrics = evaluate(_config(run, timed=(f"{run.root}/tokenizer", f"{run.root}/generator")))
    assert set(metrics["tokenizer"]) == {
        *(
            "psnr",
            "psnr_pooled",
            "psnr_uint8_wrap",
            "ssim",
            "ssim_range2",
        ),  # 8 x 8 and grey: no 11 x 11 window, no luma
        *("rfid", "codebook_usage", "perplexity_by_step"),
    }
    assert set(metrics["generator"]) == {
        *("frechet_distance", "spatial_frechet_distance", "inception_score", "precision", "recall"),
        *("frechet_distance_real", "spatial_frechet_distance_real", "inception_score_real"),
        *("precision_real", "recall_real", "precision_float32", "recall_float32"),
        *("frechet_distance_matched", "frechet_distance_deviation", "frechet_ratio"),
        *("precision_matched", "recall_matched", "class_accuracy", "classifier_accuracy_on_real"),
        *("nearest_train_distance", "nearest_train_distance_p01"),
        *("nearest_train_distance_real", "nearest_train_distance_real_p01", "copies"),
    }
    assert np.isfinite([*metrics["generator"].values(), *metrics["tokenizer"]["perplexity_by_step"]]).all()
    assert set(metrics["seconds"]) == {"train_tokenizer", "train_generator", "evaluate"}
    json.dumps(metrics, allow_nan=False)

    protocol = metrics["protocol"]
    numbers = {f"{part}.{name}" for part in ("tokenizer", "generator") for name in metrics[part]}
    assert set(protocol["metrics"]) == numbers
    for said in protocol["metrics"].values():
        assert said["convention"]
        assert all(len(protocol[name]["digest"]) == 64 for name in said["of"])
    counts = {name: protocol[name]["images"] for name in ("reference", "held_out", "samples")}
    assert counts == {"reference": 3 * TRAIN, "held_out": 3 * HELD_OUT, "samples": 3 * DRAWN}
    assert protocol["extractor"]["name"] == "classifier"
    assert "not of full rank" in protocol["settings"]["warnings"][0]  # 15 held-out images, 64 features


def test_the_batch_size_does_not_show(run, tmp_path):
    found = [evaluate(_config(run, batch=batch, out=f"{tmp_path}/{batch}/metrics.json")) for batch in (4, 100)]
    small, large = ({name: tree for name, tree in metrics.items() if name != "seconds"} for metrics in found)
    assert small["generator"] == large["generator"]
    assert small["protocol"] == large["protocol"]
    for name, value in small["tokenizer"].items():
        assert value == pytest.approx(large["tokenizer"][name], rel=1e-3)


@pytest.mark.parametrize("form", ["npz", "pictures"])
def test_samples_are_the_same_in_every_form(run, tmp_path, form):
    """An .npz with labels gets all that a store gets; pictures lack what asks for labels."""
    whole = evaluate(_config(run))["generator"]
    pixels, labels = _pixels(50, 50 + DRAWN)
    pixels = np.repeat(pixels, 3, axis=-1)
    if form == "npz":
        samples = f"{tmp_path}/samples.npz"
        np.savez(samples, pixels, labels)
    else:
        samples = str(tmp_path)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / f"{i:06d}.png")
    found = evaluate(_config(run, samples=samples))["generator"]
    lacking = {name for name in whole if name.endswith("matched")} | {"frechet_distance_deviation", "frechet_ratio"}
    lacking |= {"class_accuracy"}
    assert found.items() <= whole.items()
    assert whole.keys() - found.keys() == (set() if form == "npz" else lacking)


def test_parts_that_are_not_asked_for_are_not_there(run, tmp_path):
    only = {"samples": "", "reference": "", "train_images": "", "images": "", "tokenizer": ""}
    judge = tmp_path / "judge.pt2"
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)).eval()
    exported = torch.export.export(network, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=({0: torch.export.Dim("b")},))
    torch.export.save(exported, judge)
    given = {name: getattr(_config(run), name) for name in only} | {"extractor": str(judge)}
    coding = evaluate(_config(run, **only | {name: given[name] for name in ("images", "tokenizer", "extractor")}))
    assert "generator" not in coding
    assert coding["tokenizer"]["rfid"] > 0
    reference = given["train_images"]
    drawing = evaluate(
        _config(run, **only | {"samples": given["samples"], "reference": reference, "extractor": str(judge)})
    )
    assert "tokenizer" not in drawing
    assert set(drawing["generator"]) == {
        *("frechet_distance", "inception_score", "precision", "recall", "precision_float32", "recall_float32")
    }
    assert drawing["protocol"]["extractor"]["name"] == "judge.pt2"


def test_samples_in_the_order_of_their_classes_are_warned_of():
    """Only where the inception score has more than one split."""
    moments, labels = Moments(np.zeros(2), np.eye(2)), np.repeat([0, 1], 2501)
    sorted_ = Statistics(5002, moments, None, np.zeros((0, 2)), labels, labels, 2, 1.0)
    assert "they come class by class" in warnings_of({"samples": sorted_})[0]
    shuffled = dataclasses.replace(sorted_, labels=np.roll(labels, 7))
    unknown = dataclasses.replace(sorted_, labels=np.full(5002, -1))
    few = dataclasses.replace(sorted_, labels=labels[::2])
    for statistics in (shuffled, unknown, few):
        assert warnings_of({"samples": statistics}) == []


def test_held_out_images_taken_for_samples_get_their_own_numbers(run):
    """What a perfect generator gets: the columns `_real`."""
    store = _samples(run, "perfect", *_pixels(TRAIN, TRAIN + HELD_OUT))
    found = evaluate(_config(run, samples=store))["generator"]
    assert found["frechet_ratio"] == pytest.approx(1, rel=1e-9)
    assert found["frechet_distance_deviation"] == pytest.approx(0, abs=1e-9)
    same = {name: f"{name}_real" for name in ("precision", "recall", "nearest_train_distance", "inception_score")}
    same |= {name: f"{name}_real" for name in ("frechet_distance", "spatial_frechet_distance")}
    same |= {"precision_matched": "precision_real", "nearest_train_distance_p01": "nearest_train_distance_real_p01"}
    for name, real in same.items():
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
    with pytest.raises(ValueError, match="inception_weights 'nowhere' does not exist"):
        evaluate(_config(run, extractor="inception", inception_weights="nowhere"))
    with pytest.raises(ValueError, match="LPIPS needs 16 pixels a side, not 8"):
        evaluate(_config(run, perceptual="torchvision"))
    large = np.zeros((30, 16, 16, 3), np.uint8)
    np.savez(f"{run.root}/large.npz", large)
    with pytest.raises(ValueError, match=r"have \[8, 16\] pixels a side"):
        evaluate(_config(run, samples=f"{run.root}/large.npz"))


def test_settings_that_make_no_sense_are_named(run):
    for changes, said in (
        ({"draws": -1}, "draws is -1; use 0 or more"),
        ({"batch": 251}, "batch is 251; use 250 or less"),
        ({"manifold_images": 3}, "manifold_images is 3; use 4 or more"),
        ({"samples": "", "tokenizer": ""}, "neither samples nor tokenizer is given"),
        ({"train_images": ""}, "samples have no reference"),
        ({"train_images": "", "reference": "x"}, "extractor classifier learns from train_images"),
        ({"samples": "", "images": ""}, "a tokenizer alone needs images"),
    ):
        with pytest.raises(ValueError, match=said):
            _config(run, **changes)


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
    for part in (
        "Fréchet distance (classifier)",
        "Equal counts",
        "Step by step",
        "Reconstructions",
        "Loss by step t",
        "Nothing compares across them",
        "RDPM (depth=20)",
        run.tokenizer_digest,
    ):
        assert part in page
    assert Image.open(tmp_path / "sheet.png").size == (10 * 52 + 4, 3 * 52 + 4)

    with pytest.raises(ValueError, match="has no sweep"):
        jobs.report.run(dataclasses.replace(report, sweep=f"{tmp_path}/sweep", out=f"{tmp_path}/swept.html"))
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "sweep.json").write_text(json.dumps([{"name": "Raw", "measures": {"frechet_distance": 1.25}}]))
    (sweep / "pareto.png").write_bytes((tmp_path / "sheet.png").read_bytes())
    for digest, said in (("0" * 64, "is not of generator"), (read_card(f"{root}/generator", "generator").digest, "")):
        (tmp_path / "sweep.record.json").write_text(json.dumps({"settings": {"digests": [[digest, "t"]]}}))
        swept = dataclasses.replace(report, sweep=str(sweep), out=f"{tmp_path}/swept-{digest[:4]}.html")
        if said:
            with pytest.raises(ValueError, match=said):
                jobs.report.run(swept)
        else:
            jobs.report.run(swept)
            shown = Path(swept.out).read_text()
            assert "Sampler settings" in shown
            assert "1.25" in shown

    other = _samples(run, "other", *_pixels(60, 60 + DRAWN))
    with pytest.raises(ValueError, match="give the files of one run"):
        jobs.report.run(dataclasses.replace(report, samples=other, out=f"{tmp_path}/other.html"))
