"""A comparison gives every method the same, reports what was measured, and continues where it was stopped."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from rdpm.models.flops import generator_parameters
from rdpm.models.sampler import SamplerConfig
from rdpm.pipeline.foundation.config import load_config
from rdpm.pipeline.studies import compare as compare_module
from rdpm.pipeline.studies.compare import run
from rdpm.pipeline.studies.compare_plan import (
    CompareConfig,
    MethodConfig,
    calibration,
    choice_set,
    flops_per_step,
    plan,
    reported_set,
)
from rdpm.pipeline.studies.compare_table import CompareRow, plot, table

DIGITS, PHOTOS = "configs/digits/compare.yaml", "configs/photos/compare.yaml"


@pytest.fixture
def digits_plan(monkeypatch, repository):
    """The entries of the comparison on the digits."""
    monkeypatch.chdir(repository)
    return plan(load_config(CompareConfig, "compare", DIGITS, []))


@pytest.mark.parametrize(("path", "settings"), [(DIGITS, 4), (PHOTOS, 2)])
def test_all_methods_cost_the_same(monkeypatch, repository, path, settings):
    monkeypatch.chdir(repository)
    entries = plan(load_config(CompareConfig, "compare", path, []))
    sizes = [generator_parameters(entry.generators[0].model) for entry in entries]
    assert sizes == pytest.approx([sizes[0]] * len(sizes), rel=0.02)
    flops = [entry.training_flops for entry in entries]
    assert flops == pytest.approx([flops[0]] * len(flops), rel=1e-3)
    assert {len(entry.method.samplers) for entry in entries} == {settings}
    assert {entry.tokenizer.steps for entry in entries} == {1000}
    assert len({entry.tokenizer.encoder for entry in entries}) == 1
    for entry in entries:
        assert list(entry.generators) == [0, 1, 2]
        assert {training.optimizer for training in entry.generators.values()} == {entries[0].generators[0].optimizer}
        assert flops_per_step(entry.generators[0]) * entry.generators[0].steps == entry.training_flops


def test_token_spaces_of_generators_are_those_of_their_tokenizers(digits_plan):
    for entry in digits_plan:
        space, tokenizer = entry.generators[0].model, entry.tokenizer.model
        assert space.num_steps == tokenizer.schedule.num_steps
        assert space.codebook_size == tokenizer.quantizer.codebook_size
        assert (space.method == "scales") == tokenizer.quantizer.growing
        assert (space.method == "flow") == tokenizer.continuous


def test_methods_with_the_same_trainings_share_them(digits_plan):
    by_name = {entry.name: entry for entry in digits_plan}
    ten, fifty = by_name["flow matching, 10 evaluations"], by_name["flow matching, 50 evaluations"]
    assert ten.generators == fifty.generators
    assert (ten.evaluations, fifty.evaluations) == (10, 50)
    masked, raster = by_name["MaskGIT, 10 rounds"], by_name["raster transformer"]
    assert masked.store == raster.store
    assert masked.generators[0].out != raster.generators[0].out


def test_a_method_may_have_a_config_of_its_own_and_be_calibrated_for_each_sampler_setting(monkeypatch, repository):
    monkeypatch.chdir(repository)
    config = load_config(CompareConfig, "compare", DIGITS, [])
    (name, paper), *_ = config.methods.items()
    own = replace(
        paper, generator_config="configs/digits/generator.yaml", calibration="configs/digits/calibration.yaml"
    )
    first, second = plan(replace(config, methods={name: paper, "ours": own}))
    assert (first.tokenizer, first.store) == (second.tokenizer, second.store)
    assert first.generators[0].out != second.generators[0].out
    assert calibration(config, first, 0, "unguided") is None
    drawn = {}
    for sampler, settings in own.samplers.items():
        given = calibration(config, second, 1, sampler)
        assert (given.generator, given.store) == (second.generators[1].out, second.store.out)
        assert given.sampler == settings
        drawn[sampler] = reported_set(config, second, 1, sampler).generator
        assert drawn[sampler] == given.out
    assert len(set(drawn.values())) == len(own.samplers)
    assert reported_set(config, first, 1, "unguided").generator == first.generators[1].out


def test_reported_samples_have_noise_that_chose_and_matched_nothing(monkeypatch, repository):
    monkeypatch.chdir(repository)
    config = load_config(CompareConfig, "compare", DIGITS, [])
    used, reported = set(), set()
    for entry in plan(config):
        for seed in config.seeds:
            reported.add(reported_set(config, entry, seed, "unguided").seed)
            used.add(choice_set(config, entry, seed, "unguided").seed)
            if given := calibration(config, entry, seed, "unguided"):
                used.add(given.seed)
    assert len(reported) == len(config.seeds)
    assert not reported & used


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": ()}, "give one or more of both"),
        ({"methods": {}}, "give one or more of both"),
        ({"per_class": 0}, "per_class is 0; use 1 or more"),
        ({"slice_images": 1}, "slice_images is 1; use 2 or more"),
        ({"seeds": (0, 1, 0)}, r"seeds is \[0, 1, 0\]; give each value once"),
        ({"methods": {"a": MethodConfig(samplers={})}}, "samplers differ in number"),
        ({"methods": {"A!": MethodConfig(), "a": MethodConfig()}}, "share a folder"),
    ],
)
def test_impossible_settings_are_refused(change, named):
    names = ("images", "validation", "out", "tokenizer", "store", "generator", "samples", "evaluation")
    fields = dict.fromkeys(names, "x")
    with pytest.raises(ValueError, match=named):
        CompareConfig(**fields, **{"methods": {"a": MethodConfig()}} | change)


def test_a_generator_of_another_size_is_refused(monkeypatch, repository):
    monkeypatch.chdir(repository)
    config = load_config(CompareConfig, "compare", DIGITS, [])
    samplers = config.methods["raster transformer"].samplers
    wide = MethodConfig(("model.continuous=true",), ("model.method=flow", "model.hidden=640"), samplers=samplers)
    with pytest.raises(ValueError, match=r"parameters and .* more than 2% apart; set model.hidden"):
        plan(replace(config, methods={**config.methods, "wide": wide}))


@pytest.mark.parametrize(
    ("study", "method", "named"),
    [
        ({"samples": "nowhere.yaml"}, {}, "nowhere.yaml"),
        ({"evaluation": "nowhere.yaml"}, {}, "nowhere.yaml"),
        ({}, {"calibration": "nowhere.yaml"}, "nowhere.yaml"),
        ({}, {"samplers": {"cold": SamplerConfig(temperature=0.5)}}, "setting 'cold' of method 'flow.*': method flow"),
    ],
)
def test_what_later_stages_would_refuse_is_refused_before_any_training(monkeypatch, repository, study, method, named):
    monkeypatch.chdir(repository)
    config = load_config(CompareConfig, "compare", DIGITS, [])
    name = "flow matching, 10 evaluations"
    with pytest.raises(ValueError, match=named):
        plan(replace(config, methods={name: replace(config.methods[name], **method)}, **study))


def test_an_evaluation_without_draws_is_refused_before_any_training(monkeypatch, repository, tmp_path):
    monkeypatch.chdir(repository)
    config = load_config(CompareConfig, "compare", DIGITS, [])
    without = tmp_path / "without.yaml"
    without.write_text(yaml.safe_dump({**yaml.safe_load(Path(config.evaluation).read_text()), "draws": 0}))
    with pytest.raises(ValueError, match=r"draws of .*without.yaml is 0, and the table holds means over draws; use 1"):
        plan(replace(config, evaluation=str(without)))


def test_fewer_samples_than_held_out_images_are_refused_before_any_training(monkeypatch, repository, tmp_path):
    monkeypatch.chdir(repository)
    for number in range(5):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(path)
    config = load_config(CompareConfig, "compare", DIGITS, [f"validation={tmp_path}", "per_class=2"])
    with pytest.raises(ValueError, match=r"per_class is 2, .* fewer samples than .* has images, 5; use 3 or more"):
        compare_module.compare(config, [])


def made_row(name: str, seeds: int, rng: np.random.Generator) -> CompareRow:
    names = ("pixel_frechet_ratio", "spread", "spread_8", "frechet_ratio", "precision_matched", "recall_matched")
    metrics = []
    for _ in range(seeds):
        values = {metric: float(rng.random()) for metric in (*names, "class_accuracy", "copies", "spread_real")}
        ends = {f"{metric}_interval": [values[metric] - 0.1, values[metric] + 0.2] for metric in names}
        metrics.append(values | ends)
    return CompareRow(name, 10, 20, 3 * 10**12, 5, {"psnr": 20.0, "rfid": 0.5}, "plain", 10, 0.01, metrics)


def test_the_table_holds_means_half_ranges_and_intervals():
    rows = [made_row(name, 3, np.random.default_rng(number)) for number, name in enumerate(("first", "second"))]
    text = table(rows)
    cells = [cell.strip() for cell in text.splitlines()[3].split("|")]
    values = rows[1].values("pixel_frechet_ratio")
    mean, half = np.mean(values), (max(values) - min(values)) / 2
    assert cells[1:3] == ["second", f"{mean:.3f} ± {half:.3f} [{mean - 0.1:.2f}, {mean + 0.2:.2f}]"]
    assert "| 20.00 dB, 0.5 | 10 | 10 | plain | 10 | 20 | 3.0 |" in text.splitlines()[2]
    assert f"Held-out images: spread {rows[0].seeds[0]['spread_real']:.3f}." in text
    assert plot(rows).startswith(b"\x89PNG")


@pytest.fixture
def small(tmp_path, digits, repository) -> str:
    """The config of two methods, RDPM and MaskGIT, with one seed, on few digits of two classes."""
    for number, (pixels, label) in enumerate(zip(digits[0][:90], digits[1][:90], strict=True)):
        path = tmp_path / ("train", "val")[number % 3 == 0] / ("even", "odd")[label % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    autoencoder = {"in_channels": 1, "channels": 4, "multipliers": [1, 2], "num_res_blocks": 1}
    autoencoder |= {"attention_factors": [], "groups": 4}
    common = {
        "batch": 8,
        "micro_batch": 8,
        "steps": 2,
        "log_every": 1,
        "checkpoint_every": 1,
        "engine": {"precision": "fp32"},
    }
    model = {"image_size": 8, "autoencoder": autoencoder, "quantizer": {"codebook_size": 16, "code_dim": 4}}
    model["schedule"] = {"num_steps": 2}
    space = {"depth": 1, "num_classes": 2, "num_steps": 2, "codebook_size": 16, "code_dim": 4, "grid": 4}
    parts = {
        "tokenizer": common | {"job": "train-tokenizer", "images": "x", "out": "x", "workers": 0, "model": model,
                               "loss": {"perceptual": "none", "adversarial": 0.0}},
        "store": {"job": "tokenize", "images": "x", "tokenizer": "x", "out": "x", "shard_rows": 32, "chunk_rows": 32},
        "generator": common | {"job": "train-generator", "stores": ["x"], "tokenizer": "x", "out": "x", "model": space,
                               "stream": {"cache": str(tmp_path / "cache")}},
        "samples": {"job": "sample", "generator": "x", "tokenizer": "x", "out": "x", "batch": 8, "shard_rows": 16,
                    "resources": {"actors": 1, "object_store_mb": 128}},
        "evaluation": {"job": "evaluate", "samples": "x", "train_images": "x", "out": "x", "draws": 2,
                       "manifold_images": 20},
    }  # fmt: skip
    for name, tree in parts.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(tree))
    methods = {
        "RDPM": {"samplers": {"plain": {}, "guided": {"guidance": 1.0}}},
        "MaskGIT": {
            "tokenizer": ["model.schedule.num_steps=1"],
            "generator": ["model.method=maskgit", "model.num_steps=1", "model.hidden=288"],
            "evaluations": 4,
            "samplers": {"plain": {}, "guided": {"guidance": 1.0}},
        },
    }
    tree = {name: f"{tmp_path}/{name}.yaml" for name in parts} | {
        "job": "compare", "images": f"{tmp_path}/train", "validation": f"{tmp_path}/val", "out": f"{tmp_path}/out",
        "methods": methods, "seeds": [3], "tokenizer_steps": 2, "slice_images": 20, "choose_per_class": 8,
        "per_class": 16, "parallel": 2,
    }  # fmt: skip
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))  # the first method sets the cost
    return f"{tmp_path}/compare.yaml"


def written(out: Path) -> dict[str, int]:
    """When every result of a stage was written."""
    kinds = ("*/model.safetensors", "*/manifest.json", "*.metrics.json")
    return {str(path.relative_to(out)): path.stat().st_mtime_ns for kind in kinds for path in out.glob(kind)}


@pytest.mark.long
def test_a_comparison_that_is_killed_continues_and_does_nothing_twice(small, python, repository, monkeypatch, capsys):
    out = Path(small).parent / "out"
    process = subprocess.Popen([*python, "-m", "rdpm", "compare", small], cwd=repository, start_new_session=True)
    began = time.monotonic()
    while not (out / "rdpm.generator-3" / "card.json").exists() and time.monotonic() - began < 600:
        assert process.poll() is None, "the comparison has ended"
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = written(out)
    assert {"encoder/model.safetensors", "rdpm.generator-3/model.safetensors", "rdpm.store/manifest.json"} <= set(
        before
    )
    assert not (out / compare_module.TABLE).exists()

    config = load_config(CompareConfig, "compare", small, [])
    run(config)
    after = written(out)
    assert {name: after[name] for name in before} == before
    rows = json.loads((out / compare_module.ROWS).read_text())
    assert [row["name"] for row in rows] == ["RDPM", "MaskGIT"]
    for row in rows:
        assert row["sampler"] in ("plain", "guided")
        plain, guided = {"RDPM": (2, 3), "MaskGIT": (4, 7)}[row["name"]]  # the ramp has no guidance in the first step
        assert row["forwards"] == (guided if row["sampler"] == "guided" else plain)
        assert np.isfinite([row["seeds"][0][name] for name in ("pixel_frechet_ratio", "spread", "frechet_ratio")]).all()
        assert row["reconstruction"]["psnr"] > 0
    assert (out / compare_module.PLOT).read_bytes().startswith(b"\x89PNG")
    assert "| MaskGIT |" in capsys.readouterr().out

    less = replace(config, methods=dict(list(config.methods.items())[:1]))
    run(less)
    assert [row["name"] for row in json.loads((out / compare_module.ROWS).read_text())] == ["RDPM"]
    assert written(out) == after

    for stage in ("train_apart", "tokenize", "run_sets", "evaluate"):
        monkeypatch.setattr(compare_module, stage, lambda *_: pytest.fail("done again"))
    run(less)
    assert written(out) == after
