"""The programs in examples/ run on a small store, as their first lines say, and are short."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
STORE = str(REPOSITORY / "tests" / "fixtures" / "v1" / "store")  # 60 digits, 2 rejects; 3 steps of 4 x 4 codes


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run an example in this process, in an empty folder; returns what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def start(name: str, *arguments: str) -> str:
        path = REPOSITORY / "examples" / name
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        exec(compile(path.read_text(), str(path), "exec"), {"__name__": "__main__", "__doc__": path.read_text()})
        return capsys.readouterr().out

    return start


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_has_at_most_100_lines_and_uses_only_what_is_public(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 100
    assert set(re.findall(r"(?:from|import) (rdpm[\w.]*)", text)) <= {"rdpm"}
    assert f"examples/{path.name}" in text.split('"""')[1]


@pytest.mark.slow
def test_the_raster_transformer_learns_and_draws_codes_of_every_class(run, tmp_path):
    said = run("raster_transformer.py", STORE, "--steps", "6", "--batch", "8", "--out", "drawn.npy")
    losses = [float(loss) for loss in re.findall(r": ([\d.]+) nats", said)]
    assert len(losses) == 2
    assert losses[1] < losses[0]
    drawn = np.load(tmp_path / "drawn.npy")
    assert (drawn.shape, drawn.dtype) == ((3, 3, 4, 4), np.uint16)
    assert drawn.max() < 16


def test_the_probe_says_its_accuracy(run):
    said = run("linear_probe.py", STORE)
    assert re.search(r"accuracy [01]\.\d+ in \d+ rows, [01]\.\d+ in \d+ held-out rows\nchance 0\.333", said)


def test_duckdb_and_xarray_count_rows_and_codes(run):
    said = run("duckdb_xarray.py", STORE)
    rows = [int(count) for count in re.findall(r": (\d+) ok", said)]
    assert sum(rows) == 60
    assert "1: 2 rejected" in said
    assert len(re.findall(r"step \d+: \d+ used, perplexity [\d.]+", said)) == 3


@pytest.mark.long
def test_two_ranks_of_ddp_go_on_from_a_checkpoint(tmp_path):
    """Stopped after 2 of 6 steps, in mid-epoch: the weights of a run that was not stopped."""
    weights = []
    for name, stops in (("whole", ["6"]), ("stopped", ["2", "6"])):
        for steps in stops:
            command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
            command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
            command += [str(REPOSITORY / "examples" / "ddp.py"), STORE, "--steps", steps, "--batch", "24"]
            command += ["--checkpoint", f"{name}.pt", "--workers", "0"]
            environment = {"PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(tmp_path / "cache")}
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, done.stderr[-3000:]
        assert re.search(r"step 6, epoch 2: loss ", done.stdout)
        weights.append(torch.load(tmp_path / f"{name}.pt", weights_only=True)["model"])
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
