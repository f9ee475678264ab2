"""The deterministic mode: it is on in every rank while it trains, and on a CPU it changes no bit."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rdpm.pipeline.foundation.records import read_record
from rdpm.pipeline.training.determinism import deterministic_operations, resumes_to_the_bit
from rdpm.pipeline.training.process_group import joined_ranks
from tests.pipeline.training.trainings import arguments, parts, train

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def mode() -> tuple[bool, bool, str | None]:
    """What the mode sets in this process."""
    return torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark, os.environ.get(WORKSPACE)


@pytest.mark.parametrize("given", [None, ":16:8"])
def test_the_mode_ends_with_its_block_also_after_an_error(monkeypatch, given) -> None:
    if given:
        monkeypatch.setenv(WORKSPACE, given)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = mode()
    with contextlib.suppress(KeyError), deterministic_operations(True):
        assert mode() == (True, False, ":4096:8")
        raise KeyError
    assert mode() == before == (False, True, given)
    with deterministic_operations(False):
        assert mode() == before


def test_an_operation_without_a_deterministic_form_is_refused_while_ranks_are_joined() -> None:
    """An example on a CPU: put_ with repeated indices."""
    values, at = torch.zeros(3), torch.tensor([0, 0])
    with joined_ranks(1, deterministic=True), pytest.raises(RuntimeError, match="deterministic"):
        values.put_(at, torch.ones(2), accumulate=False)
    with joined_ranks(1):
        values.put_(at, torch.ones(2), accumulate=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generator", "tokenizer"])
def test_on_a_cpu_the_mode_changes_no_bit(inputs, tmp_path, kind) -> None:
    for mode in ("true", "false"):
        train(None, kind, inputs, tmp_path / mode, "steps=4", "checkpoint_every=4", f"deterministic={mode}")
    assert parts(tmp_path / "true", 4) == parts(tmp_path / "false", 4)


def test_on_a_gpu_only_the_mode_on_one_rank_promises_the_same_bits_after_a_stop() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    promised = {
        (device.type, ranks, mode): resumes_to_the_bit(device, ranks, mode)
        for device in (cpu, gpu)
        for ranks in (1, 2)
        for mode in (False, True)
    }
    assert {case for case, same in promised.items() if not same} == {
        ("cuda", 1, False),
        ("cuda", 2, False),
        ("cuda", 2, True),
    }


WATCHED = """
import os, sys, torch
from rdpm.jobs.cli import main
from rdpm.pipeline.training.generator.step import GeneratorStep

train = GeneratorStep.train

def watched(step, batch, number):
    mode = torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    open(f"{sys.argv[1]}/rank-{step.ranks.rank}", "w").write(repr(mode))
    train(step, batch, number)

GeneratorStep.train = watched
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.long
def test_every_rank_is_in_the_mode_and_the_record_says_so(inputs, tmp_path, repository) -> None:
    script, out = tmp_path / "watched.py", tmp_path / "out"
    script.write_text(WATCHED)
    job = ["train-generator", *arguments("generator", inputs, out, "steps=2", "ranks=2", "deterministic=true")]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(repository)}
    command = [*launcher, str(script), str(tmp_path), *job]
    subprocess.run(command, cwd=repository, env=environment, check=True, timeout=300)
    for rank in (0, 1):
        assert Path(tmp_path / f"rank-{rank}").read_text() == "(True, ':4096:8')"
    record = read_record(str(out))
    assert record.settings["deterministic"] is True
    assert record.result["bit_exact_resume"] is True
