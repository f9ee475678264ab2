"""The scripts of docs/cluster.md under a SLURM on loopback: a training is stopped and requeued, and a Ray starts."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from rdpm.pipeline.stores.reader import open_store
from tests.faults.processes import wait_until
from tests.pipeline.training.trainings import arguments, log_lines, train

STEPS = 200


def script_of(repository: Path, name: str) -> str:
    """A script of the page, which SLURM knows by this name."""
    blocks = re.findall(r"```bash\n(#!.*?)```", (repository / "docs" / "cluster.md").read_text(), flags=re.DOTALL)
    (script,) = [block for block in blocks if f"--job-name={name} " in block]
    return script


def made_small(script: str, changes: dict[str, str], log: Path) -> str:
    """The script for one node without GPUs. Every change must find its place."""
    changes = {
        "--nodes=4 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=96": "--nodes=1 --ntasks-per-node=1 "
        f"--cpus-per-task=4 --output={log}",
        **changes,
    }
    for old, new in changes.items():
        assert script.count(old) == 1, (old, script)
        script = script.replace(old, new)
    return script


@pytest.fixture
def submit(slurm, tmp_path, repository):
    """Submits a script from the checkout, with this Python's commands behind the others."""

    def submit(script: str) -> str:
        path = tmp_path / "job.sh"
        head, rest = script.split("\n", 1)
        commands = Path(sys.executable).parent
        setup = f"cd {shlex.quote(str(repository))}\nexport PATH=$PATH:{shlex.quote(str(commands))} PYTHONPATH=$PWD\n"
        comments = re.match(r"(#SBATCH.*\n)+", rest).group()
        path.write_text(f"{head}\n{comments}{setup}{rest.removeprefix(comments)}")
        job = slurm.submit(path)
        assert job.isdecimal(), job
        return job

    return submit


@pytest.mark.long
def test_a_stopped_training_is_requeued_and_ends_as_if_it_had_not_been(submit, slurm, inputs, tmp_path, repository):
    out, log = tmp_path / "out", tmp_path / "job.log"
    options = [f"steps={STEPS}", "checkpoint_every=100", "micro_batch=4"]
    training = shlex.join(["train-generator", *arguments("generator", inputs, out, *options)])
    changes = {
        "train-generator configs/imagenet256/d20.yaml ranks=32": f"{training} ranks=2",
        "--nproc-per-node 8": "--nproc-per-node 2",
    }
    job = submit(made_small(script_of(repository, "d20"), changes, log))

    def steps() -> int:
        return (out / "log.jsonl").read_bytes().count(b"\n") if (out / "log.jsonl").exists() else 0

    wait_until(lambda: steps() > 10 or slurm.state(job) == "FAILED", 240, "steps")
    assert slurm.state(job) == "RUNNING", log.read_text()
    slurm.run("scancel", "--batch", "--signal=TERM", job)  # what --signal=B:TERM@300 does in time
    wait_until(lambda: slurm.state(job) == "PENDING", 120, f"the requeued job: {log.read_text()}")
    stopped = steps()
    assert 10 < stopped < STEPS
    assert f"stopped by SIGTERM after step {stopped} and saved a checkpoint" in log.read_text()
    wait_until(lambda: slurm.state(job) in ("COMPLETED", "FAILED"), 300, f"the end: {log.read_text()}")
    assert slurm.state(job) == "COMPLETED", log.read_text()
    assert f"continuing from step {stopped}" in log.read_text()
    train(None, "generator", inputs, tmp_path / "straight", *options)
    assert [line["step"] for line in log_lines(out)] == [line["step"] for line in log_lines(tmp_path / "straight")]


@pytest.mark.long
def test_ray_starts_in_the_allocation_and_the_job_uses_it(submit, slurm, exports, digit_folder, tmp_path, repository):
    out, log = tmp_path / "store", tmp_path / "job.log"
    exports.tokenizer(str(tmp_path / "tokenizer"))
    sizes = "shard_rows=4 chunk_rows=4 batch=4 resources.actor_cpus=0.5"
    given = f"images={digit_folder} tokenizer={tmp_path}/tokenizer out={out} {sizes}"
    changes = {"configs/imagenet256/store.yaml": given, "resources.min_gpus=32": ""}
    job = submit(made_small(script_of(repository, "tokenize"), changes, log))
    wait_until(lambda: slurm.state(job) in ("COMPLETED", "FAILED"), 200, f"the end: {log.exists() and log.read_text()}")
    assert slurm.state(job) == "COMPLETED", log.read_text()
    assert len(open_store(str(out), "tokens")) == 24
    wait_until(lambda: not slurm.family.members("raylet"), 30, "the end of Ray")
