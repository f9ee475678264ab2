"""The diagnosis: closed forms of its measures, and properties of a whole one on a made run."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rdpm.models.generator import Generator
from rdpm.models.matching import Matching
from rdpm.models.noise import Stream, child_seeds, normal
from rdpm.pipeline.evaluation.diagnose import DiagnoseConfig, diagnose, run
from rdpm.pipeline.evaluation.diagnosis import (
    calibration_error,
    correlation,
    groups_of,
    predict,
    prediction_rows,
    spread_row,
)
from rdpm.pipeline.evaluation.pixels import pixel_rows
from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.exports.weights import load_model, save_export
from rdpm.pipeline.inference.rdpm import RDPM
from rdpm.storage_schemas.cards import GeneratorOrigin
from tests.pipeline.evaluation.made_run import CLASSES, GENERATOR, HELD_OUT, TRAIN, class_pixels, make_run

T = 10


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """One made run for all tests of this file, with a second generator, in `random`, whose logits are not all zero."""
    run = make_run(tmp_path_factory.mktemp("run"))
    torch.manual_seed(1)
    generator = Generator(GENERATOR)
    torch.nn.init.normal_(generator.head.weight, std=0.1)
    torch.nn.init.normal_(generator.transformer.adaln.bias)  # else the head would see zeros
    origin = GeneratorOrigin(run.tokenizer_digest, (), CLASSES)
    save_export(f"{run.root}/random", "generator", GENERATOR, generator.state_dict(), origin, {}, 0)
    return run


def _model(made, batch: int) -> RDPM:
    return RDPM.from_pretrained(f"{made.root}/random", f"{made.root}/tokenizer", batch=batch)


@pytest.fixture(autouse=True)
def threads():
    """The number of threads is restored."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _config(made, **changes) -> DiagnoseConfig:
    root = made.root
    given = {"generator": f"{root}/random", "tokenizer": f"{root}/tokenizer", "images": f"{root}/train"}
    return DiagnoseConfig(**given | {"out": f"{root}/diagnosis.json", "batch": 30, "threads": 1} | changes)


def test_the_calibration_error_is_the_gap_of_each_bin():
    rng = np.random.default_rng(0)
    confidence = np.repeat([0.3, 0.7, 1.0], [1000, 2000, 1000])
    right = rng.random(4000) < confidence
    assert calibration_error(confidence, right) < 0.02
    over = np.repeat([0.5, 0.9, 1.0], [1000, 2000, 1000])
    expected = sum(
        weight * abs(each - right[over == each].mean()) for each, weight in ((0.5, 0.25), (0.9, 0.5), (1.0, 0.25))
    )
    assert calibration_error(over, right) == pytest.approx(expected, abs=1e-6)
    assert calibration_error(confidence.reshape(40, 100), right.reshape(40, 100)) < 0.02


def test_the_correlation_is_within_groups():
    rng = np.random.default_rng(0)
    groups = np.arange(3000) % 3
    a = rng.normal(size=(3000, 4)) + 10 * groups[:, None]
    noise = rng.normal(size=(3000, 4))
    assert correlation(a, 5 * a - 7, groups) == pytest.approx(1)
    assert correlation(a, noise + 10 * groups[:, None], groups) == pytest.approx(0, abs=0.05)
    within = a - 10 * groups[:, None]
    assert correlation(a, within + noise, groups) == pytest.approx(0.5**0.5, abs=0.03)


def test_classes_of_one_image_are_one_group():
    rows = np.random.default_rng(0).normal(size=(12, 3))
    assert np.array_equal(groups_of(rows, np.arange(12)), np.zeros(12))
    classes = np.arange(12) % 2
    assert groups_of(rows, classes) is classes
    assert set(spread_row(rows, rows, classes)) == {"spread", "spread_8", "spread_32"}  # nothing is left over


def test_predictions_are_those_of_the_generator_step_by_step(made):
    """Beside its plain call, with the noise and the real codes written out."""
    model = _model(made, 4)
    pixels, labels = class_pixels(0, 3)
    codes = model.encode(pixels, 5)
    seeds = child_seeds(5, torch.arange(9)).numpy()
    predictions = predict(model, codes, labels, seeds)
    assert predictions.right.shape == codes.shape
    codebook = model.tokenizer.quantizer.codebook
    for t in (1, 4, T):
        forced = torch.from_numpy(codes.astype(np.int64))
        noise = normal(torch.from_numpy(seeds), t, (4, 4, 4), Stream.SAMPLER)
        with torch.no_grad():
            logits = model.generator(
                noise, torch.from_numpy(labels), torch.full((9,), t), codebook.accumulated(forced, t - 1)
            )
        probabilities = logits.softmax(-1)
        expected = {
            "cross_entropy": F.cross_entropy(logits.flatten(0, 2), forced[:, t - 1].flatten()),
            "entropy": -(probabilities * probabilities.log()).sum(-1).mean(),
            "accuracy": (logits.argmax(-1) == forced[:, t - 1]).float().mean(),
            "confidence": probabilities.max(-1).values.mean(),
        }
        row = prediction_rows(predictions)[t - 1]
        for name, value in expected.items():
            assert row[name] == pytest.approx(float(value), abs=1e-5)


@pytest.mark.slow
def test_a_diagnosis_begins_with_samples_and_ends_with_reconstructions(made):
    result = diagnose(_config(made, images=f"{made.root}/val", batch=15))
    kept, steps = result["kept"], result["steps"]
    assert [row["step"] for row in kept] == list(range(T + 1))
    assert [row["step"] for row in steps] == list(range(1, T + 1))
    pixels, labels = class_pixels(TRAIN, TRAIN + HELD_OUT)
    model = _model(made, 15)
    codes, flat = model.encode(pixels, 0), pixels.reshape(len(pixels), -1)
    decoded = model.decode(codes)[..., 0].reshape(len(pixels), -1)
    assert kept[-1]["correlation"] == pytest.approx(correlation(flat, decoded, labels), abs=1e-4)
    samples = model.sample(labels.tolist(), 0)[..., 0].reshape(len(pixels), -1)
    assert kept[0]["correlation"] == pytest.approx(correlation(flat, samples, labels), abs=1e-4)
    little = [pixel_rows(each.reshape(-1, 8, 8, 1)) for each in (flat, samples, decoded)]
    for row, drawn in ((kept[0], little[1]), (kept[-1], little[2])):
        assert row["spread"] == pytest.approx(spread_row(little[0], drawn, labels)["spread"], rel=1e-4)
    entries = result["protocol"]["metrics"]
    assert {name for row in (*kept, *steps) for name in row} - {"step"} <= set(entries)
    assert result["protocol"]["settings"]["spread"] == "within classes"
    assert result["protocol"]["images"]["images"] == 3 * HELD_OUT
    assert result["protocol"]["generator"]["digest"] == read_card(f"{made.root}/random", "generator").digest


@pytest.mark.slow
def test_a_matching_is_left_out_and_said_to_be(made):
    card, values = read_card(f"{made.root}/random", "generator"), GENERATOR.code_dim
    generator = load_model(f"{made.root}/random")[0]
    generator.matching = Matching(2 * torch.eye(values), torch.ones(GENERATOR.num_classes, values))
    save_export(f"{made.root}/matched", "generator", GENERATOR, generator.state_dict(), card.made_from, {}, 0)
    plain, matched = (
        diagnose(_config(made, generator=f"{made.root}/{name}", count=12)) for name in ("random", "matched")
    )
    assert (plain["kept"], plain["steps"]) == (matched["kept"], matched["steps"])
    settings = [result["protocol"]["settings"]["matching"] for result in (plain, matched)]
    assert settings == ["none", "left out"]


@pytest.mark.long
def test_images_do_not_depend_on_each_other_or_on_the_batch(made):
    """At another batch products round otherwise, and a code may differ now and then."""
    model = _model(made, 7)
    pixels, labels = class_pixels(0, TRAIN)
    seeds = child_seeds(0, torch.arange(len(pixels))).numpy()
    codes = model.encode(pixels, 0)
    alone = predict(model, codes[:5], labels[:5], seeds[:5])
    together = predict(model, codes, labels, seeds)
    assert np.array_equal(alone.cross_entropy, together.cross_entropy[:5])
    assert diagnose(_config(made)) == diagnose(_config(made))
    small, large = (diagnose(_config(made, batch=batch, count=24)) for batch in (7, 24))
    for part in ("kept", "steps"):
        for row, other in zip(small[part], large[part], strict=True):
            assert row == {name: pytest.approx(value, abs=0.05) for name, value in other.items()}


@pytest.mark.slow
def test_the_stage_writes_once_and_refuses_what_does_not_belong_together(made, tmp_path, capsys):
    config = _config(made, out=f"{tmp_path}/diagnosis.json", count=12)
    run(config)
    tables = capsys.readouterr().out
    assert "correlation" in tables
    assert "…" not in tables
    written = (tmp_path / "diagnosis.json").read_bytes()
    run(dataclasses.replace(config, threads=2))
    first, _, again = capsys.readouterr().out.partition("\n")
    assert "already there" in first
    assert again == tables[tables.index(again[:20]) :]
    assert (tmp_path / "diagnosis.json").read_bytes() == written
    with pytest.raises(ValueError, match="seed 0 -> 3"):
        run(dataclasses.replace(config, seed=3))
    with pytest.raises(ValueError, match="count is 3; use 4 or more"):
        _config(made, count=3)
    (made.root / "other" / "a").mkdir(parents=True)
    picture = next((made.root / "train" / "0").glob("*.png")).read_bytes()
    (made.root / "other" / "a" / "x.png").write_bytes(picture)
    with pytest.raises(ValueError, match=r"have classes \['a'\], but the generator draws \['0', '1', '<b>&2'\]"):
        diagnose(_config(made, images=f"{made.root}/other"))
