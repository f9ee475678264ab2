"""What a tokenizer's training says and logs: its images, its losses, and the metrics of held-out images."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rdpm.pipeline.exports.card import read_card
from rdpm.pipeline.foundation.records import read_record
from rdpm.pipeline.training.log import read_log
from rdpm.pipeline.training.tokenizer.stage import run
from tests.pipeline.training.trainings import arguments, checkpoint_steps, config, log_lines, train, train_traced, worst


@pytest.fixture(scope="module")
def images(tmp_path_factory, digit_folder) -> Path:
    """A folder with images/: real digits, one that is cut in half, and one that is smaller than the crop."""
    folder = tmp_path_factory.mktemp("images")
    shutil.copytree(digit_folder, folder / "images")
    broken = next((folder / "images" / "0").iterdir())
    broken.write_bytes(broken.read_bytes()[:40])
    Image.new("L", (4, 5), 128).save(folder / "images" / "1" / "small.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, images, digit_folder) -> tuple[Path, str]:
    """(out, what was printed) of eight steps, in which every image comes at least once."""
    out = tmp_path_factory.mktemp("tokenizer") / "out"
    options = [
        f"validation={digit_folder}", "validation_images=10", "validate_every=2", "steps=8", "checkpoint_every=2",
    ]  # fmt: skip
    said = []
    with pytest.MonkeyPatch.context() as patch:
        for module in ("tokenizer.stage", "tokenizer.notes", "loop"):
            patch.setattr(f"rdpm.pipeline.training.{module}.say", said.append)
        run(config("tokenizer", images, out, *options))
    return out, "\n".join(said)


@pytest.mark.slow
def test_images_that_need_attention_are_named_once(trained) -> None:
    _, said = trained
    assert said.count("image 0/") == said.count("cannot be used") == 1
    assert said.count("image 1/small.png (4 x 5) is smaller than model.image_size") == 1


@pytest.mark.slow
def test_every_line_has_the_losses_and_the_use_of_codes(trained) -> None:
    lines = read_log(str(trained[0] / "log.jsonl"))
    assert [line["step"] for line in lines] == list(range(1, 9))
    always = {"reconstruction", "loss", "codebook", "commitment", "lr", "images_per_second", "data_wait"}
    adversarial = {"adversarial", "adaptive_weight", "discriminator"}
    for line in lines:
        assert always <= line.keys()
        assert (adversarial <= line.keys()) == (line["step"] > 3)
        assert len(line["usage_by_step"]) == len(line["perplexity_by_step"]) == 3


@pytest.mark.slow
def test_held_out_metrics_are_logged_and_the_best_checkpoint_kept(trained) -> None:
    out, _ = trained
    psnr = {line["step"]: line["validation_psnr"] for line in read_log(str(out / "log.jsonl")) if line["step"] % 2 == 0}
    assert checkpoint_steps(out) == sorted({max(psnr, key=lambda step: psnr[step]), 6, 8})
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [picture.step for picture in board.Images("validation")] == [2, 4, 6, 8]


@pytest.mark.slow
def test_the_export_is_recorded_and_not_made_again(trained, images, capsys) -> None:
    out, said = trained
    card, record = read_card(str(out), "tokenizer"), read_record(str(out))
    assert record.finished
    assert record.result == {"digest": card.digest, "steps": 8, "bit_exact_resume": True}
    assert f"is tokenizer {card.digest[:12]}" in said
    options = ["steps=8", "checkpoint_every=4"]
    run(config("tokenizer", images, out, *options))
    assert "is already trained" in capsys.readouterr().out


def test_images_of_a_single_class_are_pointed_out(images, tmp_path, monkeypatch) -> None:
    said = []
    stage = "rdpm.pipeline.training.tokenizer.stage"
    monkeypatch.setattr(f"{stage}.say", said.append)
    monkeypatch.setattr(f"{stage}.train_tokenizer", lambda *_: None)
    shutil.copytree(images / "images" / "1", tmp_path / "images" / "7")
    run(config("tokenizer", tmp_path, tmp_path / "out", "steps=1"))
    assert len(said) == 1
    assert "all images are of one class, '7'" in said[0]


def test_compiling_is_refused_where_the_hooks_of_zero_3_break_the_graphs(inputs, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"compile is true at engine.zero_stage 3.*compile=false"):
        config("tokenizer", inputs, tmp_path, "steps=1", "compile=true", "engine.zero_stage=3")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ["discriminator.num_layers=2"],
            "image_size is 8, and the discriminator needs 12 or more; use loss.adversarial=0",
        ),
        (["loss.perceptual=torchvision"], "image_size is 8, and LPIPS needs 16 or more; use loss.perceptual=none"),
    ],
)
def test_images_that_are_too_small_for_a_loss_are_refused(inputs, tmp_path, options, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        config("tokenizer", inputs, tmp_path, "steps=1", *options)


@pytest.mark.long
def test_a_traced_training_is_like_the_plain_one(two_ranks, inputs, tmp_path) -> None:
    """With the discriminator on, whose weights are frozen in one of its two calls per micro-batch."""
    options = ["steps=5", "checkpoint_every=5", "engine.zero_stage=2"]
    two_ranks.run(train_traced, "tokenizer", inputs, tmp_path / "traced", *options)
    two_ranks.run(train, "tokenizer", inputs, tmp_path / "plain", *options)
    traced, plain = log_lines(tmp_path / "traced"), log_lines(tmp_path / "plain")
    for name in ("reconstruction", "loss", "codebook", "commitment"):
        assert worst(traced, plain, name) < 1e-3


@pytest.mark.long
def test_only_the_first_rank_lists_the_images(inputs, tmp_path, repository) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    jobs = []
    for rank in (1, 0):  # a source that cannot be listed, on the second rank
        folder = inputs if rank == 0 else tmp_path / "nothing"
        options = ["steps=1", "checkpoint_every=1", "ranks=2", "micro_batch=4"]
        command = [sys.executable, "-m", "rdpm", "train-tokenizer"]
        command += arguments("tokenizer", folder, tmp_path / "out", *options)
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        variables |= {"MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": ""}
        environment = os.environ | {name: str(value) for name, value in variables.items()}
        jobs.append(
            subprocess.Popen(
                command, cwd=repository, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    try:
        printed = [job.communicate(timeout=200)[0] for job in jobs]
        assert [job.returncode for job in jobs] == [0, 0], printed
        assert checkpoint_steps(tmp_path / "out") == [1]
    finally:
        for job in jobs:
            job.kill()
