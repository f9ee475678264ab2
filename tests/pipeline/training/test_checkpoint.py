"""Checkpoints of another training are refused, damaged ones too; half-written ones are removed, or end the run."""

import json
import os
import shutil
import time
from unittest.mock import patch

import pytest
import torch

from rdpm.models.generator import GeneratorConfig
from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.lease import held
from rdpm.pipeline.training.checkpoint import Checkpoints
from rdpm.pipeline.training.engine import Engine, EngineConfig
from rdpm.pipeline.training.process_group import joined_ranks
from rdpm.pipeline.training.ranks import SharedError
from rdpm.pipeline.training.saved_state import SavedState, complete_checkpoints, flat_part
from tests.faults.mounts import small_disk
from tests.pipeline.training import trainings
from tests.pipeline.training.trainings import checkpoint_steps, log_lines, looked_up, train

OPTIONS = ["checkpoint_every=1", "keep_checkpoints=2"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, inputs):
    """A generator after three steps, with the checkpoints of the last two."""
    out = tmp_path_factory.mktemp("checkpoints") / "out"
    train(None, "generator", inputs, out, "steps=3", *OPTIONS)
    assert checkpoint_steps(out) == [2, 3]
    return out


@pytest.fixture
def out(trained, tmp_path):
    """A copy of it."""
    return shutil.copytree(trained, tmp_path / "out")


def refused(inputs, out, *options: str) -> str:
    """The sentence with which continuing is refused."""
    with pytest.raises(ValueError) as error:
        train(None, "generator", inputs, out, "steps=4", *OPTIONS, *options)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [("model.depth=2", "model.depth 1 -> 2"), ("seed=1", "seed 0 -> 1"), ("weights=[1]", "weights")],
)
def test_a_checkpoint_of_another_training_is_refused_by_the_difference(inputs, out, change, named) -> None:
    message = refused(inputs, out, change)
    assert "step-00000003 belongs to another training" in message
    assert named in message


@pytest.mark.slow
def test_a_damaged_checkpoint_is_refused_by_name_and_an_older_one_continued(inputs, out, capsys) -> None:
    part = out / "checkpoints" / "step-00000003" / "part-00000-00000.safetensors"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    assert "step-00000003 is damaged (part-00000-00000.safetensors)" in refused(inputs, out)
    part.unlink()
    assert "step-00000003 is damaged (part-00000-00000.safetensors)" in refused(inputs, out)
    shutil.rmtree(part.parent)
    train(None, "generator", inputs, out, "steps=4", *OPTIONS)
    assert "continuing from step 2" in capsys.readouterr().out


@pytest.mark.slow
def test_a_checkpoint_without_its_record_is_removed_and_one_with_a_broken_record_refused(inputs, out) -> None:
    record = out / "checkpoints" / "step-00000003" / "checkpoint.json"
    record.write_text(json.dumps({"step": 3}))
    assert f"{record} is not a checkpoint record" in refused(inputs, out)
    record.write_text(json.dumps({"version": 4, "step": 3}))
    assert f"{record} has version 4, and this release knows 1 to 3; update rdpm" in refused(inputs, out)
    record.unlink()
    train(None, "generator", inputs, out, "steps=2", *OPTIONS)
    assert checkpoint_steps(out) == [2]


@pytest.mark.slow
def test_attempts_of_dead_writers_are_removed_and_those_of_later_leases_left(inputs, out) -> None:
    folder = out / "checkpoints"
    for number in (0, 7):  # a training without a lease has the number 0
        (folder / f".step-00000004.{number}").mkdir()
        (folder / f".step-00000004.{number}" / "part-00000-00000.safetensors").write_bytes(b"half")
    train(None, "generator", inputs, out, "steps=4", *OPTIONS)
    assert sorted(path.name for path in folder.iterdir()) == [".step-00000004.7", "step-00000003", "step-00000004"]


@pytest.fixture
def engine():
    """(ranks, an engine of one layer), in a process group of this process alone."""
    with joined_ranks(1) as ranks:
        model = torch.nn.Linear(64, 64)
        yield ranks, Engine(model, torch.optim.Adam(model.parameters()), EngineConfig(precision="fp32"), 1, 1)


def checkpoints_of(ranks, out, lease=None) -> Checkpoints:
    return Checkpoints(str(out), ranks, GeneratorConfig(), {"seed": 0}, 2, lease)


@pytest.mark.slow
def test_a_start_that_lost_its_lease_publishes_and_removes_nothing_of_the_other(engine, tmp_path) -> None:
    ranks, tested = engine
    out = tmp_path / "out"
    with held(str(out), "first", seconds=0.5, every=1000) as lease:
        first = checkpoints_of(ranks, out, lease)
        first.save(1, {"model": tested})
        first.finish()
        time.sleep(0.6)  # as if it had been stopped
        with held(str(out), "second") as lease:
            second = checkpoints_of(ranks, out, lease)
            assert second.step == 1
            for step in (2, 3):
                second.save(step, {"model": tested})
            first.save(2, {"model": tested})
            with pytest.raises(SharedError, match=r"step-00000002 is not written, .*the lease of .* is lost"):
                first.finish()
            second.finish()
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000002", "step-00000003"]
    assert checkpoints_of(ranks, out).step == 3  # whole


@pytest.mark.slow
def test_a_checkpoint_is_on_disk_under_its_name_before_an_older_one_goes(engine, tmp_path) -> None:
    ranks, tested = engine
    checkpoints = checkpoints_of(ranks, tmp_path)
    for step in (1, 2):
        checkpoints.save(step, {"model": tested})
    checkpoints.finish()
    events, sync, rename, remove = [], os.fsync, os.rename, files.remove

    def noted(function, name):
        def call(first, *rest):
            path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else first
            events.append((name, os.path.basename(path)))
            return function(first, *rest)

        return call

    with (
        patch.object(os, "fsync", noted(sync, "sync")),
        patch.object(os, "rename", noted(rename, "rename")),
        patch.object(files, "remove", noted(remove, "remove")),
    ):
        checkpoints.save(3, {"model": tested})
        checkpoints.finish()
    order = [
        ("sync", ".step-00000003.0"), ("rename", ".step-00000003.0"), ("sync", "checkpoints"),
        ("rename", "step-00000001"), ("remove", ".step-00000001.0"),
    ]  # fmt: skip
    last = [len(events) - 1 - events[::-1].index(event) for event in order]
    assert last == sorted(last), events


@pytest.mark.slow
def test_a_full_disk_ends_the_run_at_once_on_all_ranks(two_ranks, inputs, tmp_path) -> None:
    with small_disk(tmp_path / "disk", 64 << 10) as disk:
        out = disk.folder / "out"
        options = ["micro_batch=4", "checkpoint_every=20", "log_every=20"]
        two_ranks.run(train, "generator", inputs, out, "steps=20", *options)
        used = sum(path.stat().st_blocks for path in disk.folder.rglob("*")) // 2
        disk.resize(used + 256)
        said = two_ranks.run(trainings.refusal, "generator", inputs, out, "steps=200", *options)
        assert said[0] == said[1]
        assert "step-00000040 is not written, because of rank " in said[0]
        assert f"the disk at {disk.folder} is full" in said[0]
        assert log_lines(out)[-1]["step"] == 40  # not at the next checkpoint
        assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-00000020"]
        disk.resize(64 << 10)
        two_ranks.run(train, "generator", inputs, out, "steps=60", *options)
        assert checkpoint_steps(out) == [40, 60]


@pytest.mark.slow
def test_a_rank_reads_its_share_of_a_checkpoint(two_ranks, inputs, tmp_path) -> None:
    for stage in (0, 1, 3):
        found = two_ranks.run(looked_up, inputs, tmp_path / f"{stage}", stage)
        counts, names, shares = zip(*found, strict=True)
        states = [{name for name in mine if not name.startswith("weight/")} for mine in names]
        for count, mine, state in zip(counts, names, states, strict=True):
            if stage == 0:
                assert len(set(mine)) == count
            elif stage == 1:  # the optimizer's state of the parameters that a rank updates: one that two share is twice
                assert len(state) < 0.75 * count
                assert sum(map(len, states)) < 1.2 * 0.75 * count
            else:
                assert set(mine) == {"step/"}
                assert max(shares) < 0.51  # of all elements, on two ranks


@pytest.mark.slow
def test_parts_of_saved_tensors_are_those_of_the_flat_ones(engine, tmp_path) -> None:
    ranks, tested = engine
    tested.backward(tested(torch.randn(1, 64)).sum(), "a test")
    assert tested.problem() is None
    assert tested.update(0.1)
    checkpoints = checkpoints_of(ranks, tmp_path)
    checkpoints.save(1, {"model": tested})
    checkpoints.finish()
    (saved,) = complete_checkpoints(checkpoints.folder)
    state = SavedState([f"{checkpoints.folder}/step-00000001/{name}" for name in saved.parts], "model")
    assert {"weight/weight", "weight/bias", "exp_avg/weight", "step/"} <= set(state)
    for name, value in state.items():
        for start, stop in ((0, 1), (0, 5000), (100, 300), (63, 65), (64, 128), (4000, 9000), (5000, 6000)):
            assert torch.equal(flat_part(state, name, start, stop), value.flatten()[start:stop]), (name, start, stop)
