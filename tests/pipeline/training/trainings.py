"""Small trainings of both kinds, for one rank in this process, for a rank of several, and for the command line."""

import json
import math
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch._dynamo.utils import counters

from rdpm.jobs.arguments import parse
from rdpm.models.discriminator import DiscriminatorPair
from rdpm.pipeline.foundation import files
from rdpm.pipeline.images.listing import list_images
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.inputs import open_stores, open_streams
from rdpm.pipeline.training.generator.stage import train_generator
from rdpm.pipeline.training.generator.step import GeneratorLoss
from rdpm.pipeline.training.process_group import joined_ranks
from rdpm.pipeline.training.ranks import Ranks, barrier
from rdpm.pipeline.training.run_config import RunConfig
from rdpm.pipeline.training.saved_state import SavedState
from rdpm.pipeline.training.tokenizer.config import TrainTokenizerConfig
from rdpm.pipeline.training.tokenizer.stage import train_tokenizer

TOKENIZER = [
    "model.image_size=8", "model.autoencoder.in_channels=1", "model.autoencoder.channels=8",
    "model.autoencoder.multipliers=[1,2]", "model.autoencoder.num_res_blocks=1",
    "model.autoencoder.attention_factors=[]", "model.autoencoder.groups=4", "model.quantizer.codebook_size=16",
    "model.quantizer.code_dim=4", "model.quantizer.update=ema", "model.schedule.num_steps=3",
    "discriminator.channels=8", "discriminator.num_layers=1", "loss.perceptual=none", "loss.adversarial=0.5",
    "loss.discriminator_start=3", "optimizer.lr=1e-3", "optimizer.warmup_steps=2", "workers=0",
]  # fmt: skip
GENERATOR = [
    "model.depth=1", "model.num_classes=2", "model.num_steps=3", "model.codebook_size=16", "model.code_dim=4",
    "model.grid=4", "optimizer.lr=1e-3", "optimizer.warmup_steps=2", "ema_decay=0.9",
]  # fmt: skip
COMMON = ["batch=8", "micro_batch=2", "log_every=1", "engine.precision=fp32"]
CLOCKS = ("images_per_second", "data_wait", "own_seconds", "own_seconds_max", "peak_memory_bytes")


def arguments(kind: str, folder: Path, out: Path, *options: str) -> list[str]:
    """The command line of a training on what FOLDER holds: images/, or tokenizer/ and store/."""
    if kind == "tokenizer":
        return [f"images={folder}/images", f"out={out}", *TOKENIZER, *COMMON, *options]
    paths = [f"stores=[{folder}/store]", f"tokenizer={folder}/tokenizer", f"stream.cache={folder}/cache"]
    return [*paths, f"out={out}", *GENERATOR, *COMMON, *options]


def config(kind: str, folder: Path, out: Path, *options: str) -> RunConfig:
    """The config that the command line gives."""
    owner = TrainTokenizerConfig if kind == "tokenizer" else TrainGeneratorConfig
    return parse(owner, f"train-{kind}", arguments(kind, folder, out, *options))


def train(ranks: Ranks | None, kind: str, folder: Path, out: Path, *options: str) -> None:
    """One training to its end, without a record; on one of `ranks`, or alone in this process where they are None."""
    settings = config(kind, folder, out, *options)
    with nullcontext(ranks) if ranks else joined_ranks(1, settings.deterministic) as ranks:
        if isinstance(settings, TrainTokenizerConfig):
            train_tokenizer(settings, list_images(settings.images), ranks, None)
        else:
            assert isinstance(settings, TrainGeneratorConfig)
            stores = open_stores(settings)
            train_generator(settings, stores, open_streams(settings, stores), ranks, None)


def refusal(ranks: Ranks | None, kind: str, folder: Path, out: Path, *options: str) -> str:
    """The sentence with which a training ends."""
    try:
        train(ranks, kind, folder, out, *options)
    except ValueError as error:
        return str(error)
    raise AssertionError("the training came to its end")


class _NaNBackward(torch.autograd.Function):
    """The same values, whose gradient is NaN."""

    @staticmethod
    def forward(ctx, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * math.nan


def poisoned_refusal(
    ranks: Ranks, part: str, call: int, loss: float, kind: str, folder: Path, out: Path, *options: str
) -> str:
    """The same for a training in which the last rank gets a NaN gradient, or a loss that is not finite.

    part: the module at whose `call`-th forward pass this happens. loss: added to the loss; with 0, the gradient is NaN.
    """
    owner: Any = {"generator": GeneratorLoss, "discriminator": DiscriminatorPair}[part]
    forward, calls = owner.forward, 0

    def poisoned(module: nn.Module, *inputs: Tensor) -> Any:
        nonlocal calls
        output = forward(module, *inputs)
        calls += torch.is_grad_enabled()
        if calls != call or ranks.rank != ranks.count - 1:
            return output
        if loss:
            return output + loss
        return (_NaNBackward.apply(output[0]), output[1]) if isinstance(output, tuple) else _NaNBackward.apply(output)

    with patch.object(owner, "forward", poisoned):
        return refusal(ranks, kind, folder, out, *options)


class _Counted:
    """A file of tensors, or one tensor of it, that counts the elements that are read."""

    def __init__(self, source: Any, read: list[int]) -> None:
        self._source, self._read = source, read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def get_slice(self, name: str) -> "_Counted":
        return _Counted(self._source.get_slice(name), self._read)

    def get_tensor(self, name: str) -> Tensor:
        return self._counted(self._source.get_tensor(name))

    def __getitem__(self, rows: slice) -> Tensor:
        return self._counted(self._source[rows])

    def _counted(self, tensor: Tensor) -> Tensor:
        self._read.append(tensor.numel())
        return tensor


def looked_up(ranks: Ranks, folder: Path, out: Path, stage: int) -> tuple[int, list[str], float]:
    """What a rank reads of a checkpoint of the generator when it continues.

    Returns how many tensors there are, which of them it reads whole, and the share of all elements that it reads.
    """
    options = ["checkpoint_every=1", f"engine.zero_stage={stage}"]
    train(ranks, "generator", folder, out, "steps=1", *options)
    names = []

    def look_up(saved: SavedState, name: str) -> Tensor:
        names.append(name)
        return read(saved, name)

    read, elements = SavedState.__getitem__, list[int]()

    def opened(path: str, framework: str) -> _Counted:
        return _Counted(safe_open(path, framework=framework), elements)

    module = "rdpm.pipeline.training.saved_state"
    with patch.object(SavedState, "__getitem__", look_up), patch(f"{module}.safe_open", opened):
        train(ranks, "generator", folder, out, "steps=2", *options)
    parts = sorted((out / "checkpoints" / "step-00000001").glob("*.safetensors"))
    saved = SavedState([str(path) for path in parts], "generator")
    return len(saved), names, sum(elements) / sum(value.numel() for value in saved.values())


def train_traced(ranks: Ranks, kind: str, folder: Path, out: Path, *options: str) -> None:
    """The same with compile=true, up to the generated kernels, which take a minute to build."""
    torch._dynamo.reset()  # or graphs of an earlier training of this process would do
    counters.clear()
    with patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")):
        train(ranks, kind, folder, out, "compile=true", *options)
    assert counters["stats"]["unique_graphs"]
    assert not counters["graph_break"]


def resume_everywhere(ranks: Ranks, kind: str, folder: Path, out: Path, steps: int, *options: str) -> list[int]:
    """Train, and continue from each checkpoint for one step; the steps whose next checkpoint differs in any byte."""
    options = *options, "checkpoint_every=1", f"keep_checkpoints={steps}"
    train(ranks, kind, folder, out, f"steps={steps}", *options)
    wrong = []
    for step in range(1, steps):
        again = out.with_name(f"{out.name}-from-{step}")
        if ranks.first:
            shutil.copytree(out / "checkpoints" / f"step-{step:08d}", again / "checkpoints" / f"step-{step:08d}")
        barrier()
        train(ranks, kind, folder, again, f"steps={step + 1}", *options)
        barrier()
        if parts(again, step + 1) != parts(out, step + 1):
            wrong.append(step)
    return wrong


def parts(out: Path, step: int) -> dict[str, Any]:
    """Digests of every file of a checkpoint."""
    return files.read_json(f"{out}/checkpoints/step-{step:08d}/checkpoint.json")["parts"]


def checkpoint_steps(out: Path) -> list[int]:
    """The steps of which there are checkpoints."""
    return sorted(int(path.name.removeprefix("step-")) for path in (out / "checkpoints").iterdir())


def log_lines(out: Path) -> list[dict[str, Any]]:
    """The log without what clocks say."""
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in CLOCKS} for line in lines]


def worst(first: list[dict[str, Any]], second: list[dict[str, Any]], name: str) -> float:
    """Largest relative difference of a metric over two logs of the same steps."""
    assert [line["step"] for line in first] == [line["step"] for line in second]
    return max(abs(a[name] - b[name]) / abs(b[name]) for a, b in zip(first, second, strict=True))
