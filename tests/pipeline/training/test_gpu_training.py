"""On a GPU: micro-batches without a wait, every ZeRO stage, previews, and a training that continues to the bit."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rdpm.models.attention import check_backend
from rdpm.models.quantizer import Quantizer
from rdpm.pipeline.exports.weights import load_tokenizer
from rdpm.pipeline.stores.reader import open_store
from rdpm.pipeline.stream.token_stream import StreamConfig, TokenStream
from rdpm.pipeline.training.generator.draws import Draws, training_batch
from rdpm.pipeline.training.generator.step import GeneratorLoss
from rdpm.pipeline.training.meters import StepLossMeter
from tests.pipeline.training.trainings import config, log_lines, parts, train, worst

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
DEVICE = torch.device("cuda")


@pytest.fixture
def no_waits() -> Iterator[None]:
    """Make every wait for the device an error, until the test ends."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("noise", ["stored", "fresh"])
def test_a_micro_batch_never_waits_for_the_device(inputs, tmp_path, no_waits, noise) -> None:
    """From the stream to the gradient and the meter. The first micro-batch does not count: it makes tables."""
    settings = config("generator", inputs, tmp_path, "steps=1")
    stores = [open_store(f"{inputs}/store", "tokens")]
    cache = StreamConfig(cache=str(tmp_path / "cache"))
    stream = TokenStream(stores, seed=0, latents=noise == "fresh", config=cache)
    quantizer: Quantizer = load_tokenizer(f"{inputs}/tokenizer")[0].quantizer.to(DEVICE)
    loss, meter = GeneratorLoss(settings.model).to(DEVICE), StepLossMeter(3, DEVICE)
    draws = Draws(noise, 2, 0.1, settings.model.num_classes, 0)
    for number, batch in enumerate(stream.batches(0, 3, batch=8, micro_batch=8)):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        given = training_batch(quantizer, batch, draws, DEVICE)
        with torch.autocast("cuda", torch.bfloat16):
            losses = loss(*given.arguments)
        losses.mean().backward()
        meter.add(given.steps, losses)
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(losses).all()


@pytest.mark.parametrize("kind", ["generator", "tokenizer"])
def test_every_zero_stage_trains_saves_and_loads(inputs, tmp_path, kind) -> None:
    """Each continues from its own checkpoint of the third step; all losses and weights are those of stage 0."""
    pytest.importorskip("deepspeed")
    shown = {"generator": "loss", "tokenizer": "reconstruction"}[kind]
    logs, weights = [], []
    for stage in (0, 1, 2, 3):
        out, again = tmp_path / f"{stage}", tmp_path / f"{stage}-again"
        options = ["steps=6", "checkpoint_every=1", "keep_checkpoints=6", f"engine.zero_stage={stage}"]
        train(None, kind, inputs, out, *options)
        shutil.copytree(out / "checkpoints" / "step-00000003", again / "checkpoints" / "step-00000003")
        train(None, kind, inputs, again, *options)
        logs.append(log_lines(out))
        weights += [load_file(folder / "model.safetensors") for folder in (out, again)]
        assert worst(log_lines(again), log_lines(out)[3:], shown) < 1e-3, stage
    for lines in logs[1:]:
        assert worst(lines, logs[0], shown) < 1e-3
    for found in weights[1:]:
        for name, value in weights[0].items():
            assert torch.allclose(found[name], value, atol=1e-3), name


@pytest.mark.parametrize("attention", ["sdpa", "math", "flash_attn"])
def test_previews_are_drawn_with_every_kernel(inputs, tmp_path, attention) -> None:
    pytest.importorskip("deepspeed")
    try:
        check_backend(attention)
    except ValueError as error:
        pytest.skip(str(error))
    options = ["steps=2", "preview_every=2", "engine.precision=bf16", f"model.attention={attention}"]
    train(None, "generator", inputs, tmp_path / "out", *options)
    board = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    board.Reload()
    assert [picture.step for picture in board.Images("samples")] == [2]


@pytest.mark.parametrize("compiled", ["false", "true"])
@pytest.mark.parametrize("kind", ["generator", "tokenizer"])
def test_a_deterministic_training_continues_to_the_bit(inputs, tmp_path, repository, kind, compiled) -> None:
    """In processes of their own, because cuBLAS must not have been used before."""
    pytest.importorskip("deepspeed")
    if kind == "tokenizer" and compiled == "true":
        pytest.skip("only the generator's training is compiled here")
    options = ["steps=8", "checkpoint_every=1", "keep_checkpoints=8", "engine.precision=bf16", "deterministic=true"]
    options += ["compile=true"] if compiled == "true" else []

    def job(out: Path) -> None:
        code = (
            f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from pathlib import Path; "
            "from trainings import train; "
            f"train(None, {kind!r}, Path({str(inputs)!r}), Path({str(out)!r}), *{options})"
        )
        subprocess.run([sys.executable, "-c", code], cwd=repository, check=True, timeout=300)

    straight, again = tmp_path / "straight", tmp_path / "again"
    job(straight)
    shutil.copytree(straight / "checkpoints" / "step-00000003", again / "checkpoints" / "step-00000003")
    job(again)
    for step in range(4, 9):
        assert parts(again, step) == parts(straight, step), step
    assert (again / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
