"""Every kind of job takes the lease of its output; the second start is told who is at work."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rdpm.jobs.arguments import parse
from rdpm.jobs.cli import main
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.lease import LeaseLost, held
from rdpm.pipeline.foundation.records import begin
from rdpm.pipeline.stores.writer import publish, start_store
from rdpm.pipeline.training.generator.config import TrainGeneratorConfig
from rdpm.pipeline.training.generator.inputs import open_stores
from tests.pipeline.training.trainings import arguments

JOBS = (
    "prepare", "train-tokenizer", "tokenize", "train-generator", "sample", "sweep", "evaluate", "report",
    "ablate-tokenizer", "calibrate", "diagnose", "compare", "scaling", "push",
)  # fmt: skip
FEW = "resources={cpus: 4, object_store_mb: 128, actors: 1, actor_cpus: 0.5}"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, digit_folder, exports, stores) -> Path:
    """A folder with images/, tokenizer/, generator/ and store/."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "images").symlink_to(digit_folder)
    card = exports.tokenizer(str(folder / "tokenizer"))
    exports.generator(str(folder / "generator"), card)
    stores.build(str(folder / "store"), stores.plan(rows=21, **exports.identity(card)))
    return folder


def command(job: str, inputs: Path, out: Path) -> list[str]:
    """A command of each kind."""
    digits, models = "configs/digits", [f"generator={inputs}/generator", f"tokenizer={inputs}/tokenizer"]
    return {
        "prepare": ["digits"],
        "train-tokenizer": arguments("tokenizer", inputs, out, "steps=4"),
        "tokenize": [f"images={inputs}/images", models[1], "chunk_rows=4", "shard_rows=8", FEW],
        "train-generator": arguments("generator", inputs, out, "steps=4"),
        "sample": [*models, "per_class=4", "batch=4", "shard_rows=4", "device=cpu", FEW],
        "sweep": [f"{digits}/sweep.yaml", f"models.made={{{', '.join(models).replace('=', ': ')}}}"],
        "evaluate": [f"{digits}/evaluation.yaml"],
        "report": [f"{digits}/report.yaml"],
        "ablate-tokenizer": [f"{digits}/ablation.yaml"],
        "calibrate": [*models, f"store={inputs}/store"],
        "diagnose": [*models, f"images={inputs}/images"],
        "compare": [f"{digits}/compare.yaml"],
        "scaling": [f"{digits}/scaling.yaml"],
        "push": [str(out), *models],
    }[job] + [f"out={out}"] * (job != "push")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS)
def test_every_kind_of_job_is_refused_while_another_start_writes_its_output(
    job, inputs, tmp_path, capfd, monkeypatch, repository
):
    monkeypatch.chdir(repository)
    with held(f"{tmp_path}/out", "somebody"):
        assert main([job, *command(job, inputs, tmp_path / "out")]) == 2
        sentence = f"rdpm {job}: {tmp_path}/out is being written by somebody on "
        assert f"{sentence}" in capfd.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["out.lease"]


def test_a_start_that_has_lost_its_lease_publishes_no_store(stores, tmp_path):
    out, plan = f"{tmp_path}/store", stores.plan()
    start_store(out, plan)
    for shard in range(plan.num_shards):
        stores.write(out, plan, shard)
    with held(out, "tokenize") as lost:
        files.write_bytes(f"{out}.lease/00000002.json", b"of somebody else")
        with pytest.raises(LeaseLost, match="another start has taken it over"):
            publish(out, plan, lost)
    assert not files.exists(f"{out}/manifest.json")


@pytest.mark.parametrize("option", ["--wait=soon", "--wait=-1", "--wait=1.5"])
def test_a_wait_that_is_no_whole_number_of_seconds_is_refused(option, tmp_path, capfd):
    assert main(["prepare", "digits", f"out={tmp_path}/out", option]) == 2
    assert f"{option} is no whole number of seconds" in capfd.readouterr().err


@pytest.mark.slow
def test_a_command_waits_as_long_as_it_is_told_to(tmp_path, capfd):
    nowhere = [f"{name}={tmp_path}/nowhere" for name in ("tokenizer", "images", "train_images", "samples")]
    evaluate = ["evaluate", *nowhere, f"out={tmp_path}/out"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(held(f"{tmp_path}/out", "somebody"))
        began = time.monotonic()
        assert main([*evaluate, "--wait=1"]) == 2
        assert time.monotonic() - began > 1
        assert "is being written by somebody" in capfd.readouterr().err
        threading.Timer(0.5, stack.pop_all().close).start()
        assert main([*evaluate, "--wait"]) == 2
        assert "nowhere" in capfd.readouterr().err  # its turn has come
    assert "RDPM_WAIT" not in os.environ


def start(job: str, given: list[str], repository: Path, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [sys.executable, *launcher, "-m", "rdpm", job, *given]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=repository, start_new_session=True, **pipes)


@pytest.mark.long
@pytest.mark.parametrize("job", ["tokenize", "sample", "train-tokenizer", "train-generator"])
def test_of_two_commands_the_second_names_the_first_which_finishes(job, inputs, tmp_path, repository):
    out = tmp_path / "out"
    given = command(job, inputs, out) + (["ranks=2"] if job.startswith("train") else [])
    first = start(job, given, repository)
    with contextlib.ExitStack() as stack:
        stack.callback(os.killpg, first.pid, signal.SIGKILL)
        while not files.list_names(f"{out}.lease"):
            assert first.poll() is None, first.communicate()[0]
            time.sleep(0.05)
        first.send_signal(signal.SIGSTOP)  # for less than a period, so that it is still at work when the second comes
        second = start(job, given, repository)
        said, _ = second.communicate(timeout=50)
        assert second.returncode == 2, said
        assert f"rdpm {job}: {out} is being written by {job} on " in said
        assert f", process {first.pid}, since " in said
        assert "Traceback" not in said
        first.send_signal(signal.SIGCONT)
        said, _ = first.communicate(timeout=200)
        assert first.returncode == 0, said
        stack.pop_all()
    again = start(job, given, repository)
    assert "already" in again.communicate(timeout=60)[0]
    assert len(files.list_names(f"{out}.lease")) == 1


@pytest.mark.long
def test_a_refused_first_rank_ends_the_others_under_torchrun(inputs, tmp_path, repository):
    """They wait for it at the rendezvous."""
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29651")
    given = [*command("train-generator", inputs, tmp_path / "out"), "ranks=2"]
    with held(f"{tmp_path}/out", "somebody"):
        ranks = start("train-generator", given, repository, torchrun)
        began = time.monotonic()
        said, _ = ranks.communicate(timeout=120)
    assert ranks.returncode != 0
    assert said.count(f"{tmp_path}/out is being written by somebody") == 1
    assert time.monotonic() - began < 60
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_ranks_that_wait_for_another_start_find_what_it_has_finished(inputs, tmp_path, repository):
    """Under torchrun, the other ranks looked before it was finished, and wait for the first."""
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29652")
    given = command("train-generator", inputs, tmp_path / "out")
    assert main(["train-generator", *given]) == 0
    path = f"{tmp_path}/out.record.json"
    files.write_json(path, {**files.read_json(path), "finished": False})
    config = parse(TrainGeneratorConfig, "train-generator", given)
    with begin("train-generator", config, lambda: {"store_ids": open_stores(config).ids}) as record:
        ranks = start("train-generator", [*given, "ranks=2", "--wait"], repository, torchrun)
        assert any("waiting for it" in line for line in ranks.stdout)
        time.sleep(5)
        record.finish({"digest": "made", "steps": 4})
    said, _ = ranks.communicate(timeout=100)
    assert ranks.returncode == 0, said
    assert said.count("is already trained") == 1
