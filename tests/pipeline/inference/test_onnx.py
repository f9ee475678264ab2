"""Exported graphs and the sampler in numpy draw what RDPM draws in fp32."""

import re
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rdpm.jobs.cli import main
from rdpm.models import noise
from rdpm.models.codebook import QuantizerConfig
from rdpm.models.generator import Generator
from rdpm.models.matching import Matching
from rdpm.models.tokenizer import Tokenizer
from rdpm.pipeline.exports.weights import save_export
from rdpm.pipeline.inference import onnx_export, onnx_sample
from rdpm.pipeline.inference.onnx_export import ExportConfig, run
from rdpm.pipeline.inference.per_image import configs_of, seeds_of
from rdpm.pipeline.inference.rdpm import RDPM
from rdpm.storage_schemas.cards import GeneratorOrigin, TokenizerOrigin

SEEDS = (0, 7, -3, 2**63 - 1)


@pytest.mark.parametrize("seed", SEEDS)
def test_numpy_makes_the_same_noise(seed):
    seeds = onnx_sample.child_seeds(seed, 20)
    same = noise.child_seeds(seed, torch.arange(20))
    assert np.array_equal(seeds.view(np.int64), same.numpy())
    for step in (1, 10):
        normal = noise.normal(same, step, (5, 3, 3), noise.Stream.SAMPLER).numpy()
        assert np.array_equal(onnx_sample.normal(seeds, step, (5, 3, 3)), normal)
        gumbel = noise.gumbel(same, step, (4, 4, 33), noise.Stream.GUMBEL).numpy()
        assert np.abs(onnx_sample.gumbel(seeds, step, (4, 4, 33)) - gumbel).max() < 2e-6  # the logarithms differ


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "RUN FOLDER"),
        (["run"], "RUN FOLDER"),
        (["run", "folder", "more"], "RUN FOLDER"),
        (["run", "folder", "tokeniser=x"], "did you mean tokenizer"),
        (["nowhere", "folder"], "nowhere/generator"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, named, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments]) == 2
    refusal = capsys.readouterr().err
    assert refusal.startswith("rdpm export: ")
    assert named in refusal
    assert len(refusal.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def save(folder: Path, exports, preconditioned: bool, bias: bool) -> str:
    """A run of made weights, all of them far from 0. The preconditioned one has matched latents."""
    quantizer = QuantizerConfig(codebook_size=16, code_dim=4, bias=bias)
    config = replace(exports.tokenizer_config, quantizer=quantizer)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        tokenizer = Tokenizer(config)
        generator = Generator(replace(exports.generator_config, preconditioned=preconditioned))
        generator.start_from(tokenizer.quantizer)
        for weights in (*generator.parameters(), *tokenizer.decoder.parameters()):
            weights.add_(0.1 * torch.randn_like(weights))
        if preconditioned:
            generator.matching = Matching(torch.eye(16) + 0.1 * torch.randn(2, 16, 16), torch.randn(2, 16))
    origin = TokenizerOrigin("s0", ("zero", "one"))
    card = save_export(str(folder / "tokenizer"), "tokenizer", config, tokenizer.state_dict(), origin, {}, 1)
    made_from = GeneratorOrigin(card.digest, (), ("zero", "one"))
    save_export(
        str(folder / "generator"), "generator", generator.config, generator.state_dict(), made_from, {}, 1
    )  # fmt: skip
    return str(folder)


@pytest.fixture(scope="module", params=["paper, no bias", "preconditioned, matched"])
def exported(request, tmp_path_factory, exports, python, repository) -> tuple[str, str]:
    """The folder of a run, and that of its graphs."""
    plus = request.param.startswith("preconditioned")
    models = save(tmp_path_factory.mktemp("run"), exports, preconditioned=plus, bias=plus)
    graphs = str(tmp_path_factory.mktemp("graphs") / "onnx")
    command = [*python, "-m", "rdpm", "export", models, graphs]  # apart: torch cannot trace code that checks its types
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "of 192 codes it drew 19" in done.stdout + done.stderr
    return models, graphs


@pytest.mark.long
@pytest.mark.parametrize("settings", [{}, {"guidance": 2.0, "temperature": 0.5}, {"temperature": 0.0}])
def test_the_codes_are_those_of_rdpm(exported, settings):
    model, sampler = RDPM.from_pretrained(exported[0], device="cpu"), onnx_sample.Sampler(exported[1])
    for seed in SEEDS:
        labels = np.arange(50) % 2
        drawn = model.draw(labels, seeds_of(seed, 50), configs_of(settings, 50))
        images, codes = sampler.draw(labels.tolist(), seed, **settings)
        same = (codes == drawn.codes).all((1, 2, 3))
        assert same.sum() >= 48  # where two logits differ by their rounding, the other code may win
        assert np.abs(images.astype(int) - drawn.images[..., :1])[same].max() <= 1
        assert len({code.tobytes() for code in codes}) > 45


@pytest.mark.long
def test_a_batch_may_have_any_size(exported):
    sampler = onnx_sample.Sampler(exported[1])
    codes = sampler.draw([0, 1] * 16, 5)[1]
    assert np.array_equal(sampler.draw([0], 5)[1], codes[:1])
    assert np.array_equal(sampler.draw([0, 1], 5)[1], codes[:2])


def test_the_scripts_arguments_are_labels_and_settings():
    parsed = onnx_sample.parse(["0", "seed=7", "9", "guidance=0.5", "temperature=0"], 10)
    assert parsed == ([0, 9], 7, {"guidance": 0.5, "temperature": 0.0})


@pytest.mark.parametrize(
    "word",
    ["10", "-1", "a", "1.5", "--help", "seed=x", "seed=-1", "sed=3", "temperature=-1", "guidance=nan", ""],
)  # fmt: skip
def test_the_script_refuses_other_arguments_by_name(word):
    with pytest.raises(ValueError, match=re.escape(f"{word!r} is not LABEL (0 to 9), seed=N")):
        onnx_sample.parse(["0", word], 10)


def test_the_script_refuses_to_draw_nothing():
    with pytest.raises(ValueError, match="nothing to draw; give labels from 0 to 9"):
        onnx_sample.parse(["seed=1"], 10)


@pytest.mark.long
def test_the_script_runs_without_rdpm_and_torch(exported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "rdpm", None)
    monkeypatch.setattr(sys, "argv", ["sample.py", "0", "1", "1", "seed=7", "guidance=0.5"])
    runpy.run_path(f"{exported[1]}/sample.py", run_name="__main__")
    assert Image.open("samples.png").size == (24, 8)


@pytest.mark.long
def test_a_finished_export_is_left_alone_and_another_model_is_refused(exported, tmp_path, tree, exports):
    before = tree(exported[1])
    run(ExportConfig(*exported))
    assert tree(exported[1]) == before
    other = tmp_path / "other"
    exports.generator(f"{other}/generator", exports.tokenizer(f"{other}/tokenizer"))
    with pytest.raises(ValueError, match="was made with other settings"):
        run(ExportConfig(str(other), exported[1]))
    assert tree(exported[1]) == before


@pytest.mark.long
def test_graphs_that_draw_other_codes_are_not_published(exported, tmp_path, exports, monkeypatch):
    other = tmp_path / "other"
    exports.generator(f"{other}/generator", exports.tokenizer(f"{other}/tokenizer"))

    def wrong(_, folder: str) -> list[str]:
        """Graphs of another model, in place of those that a faulty torch would write."""
        for path in Path(exported[1]).glob("*.onnx"):
            shutil.copy(path, folder)
        return [path.stem for path in Path(exported[1]).glob("*.onnx")]

    monkeypatch.setattr(onnx_export, "write_graphs", wrong)
    with pytest.raises(ValueError, match="codes as RDPM does"):
        run(ExportConfig(str(other), str(tmp_path / "onnx")))
    assert not (tmp_path / "onnx").exists()
