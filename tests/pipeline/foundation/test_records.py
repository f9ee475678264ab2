import json
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.environment import environment
from rdpm.pipeline.foundation.lease import LeaseLost, waiting
from rdpm.pipeline.foundation.records import RECORD_VERSION, begin, read_record
from tests.pipeline.foundation.recorded import INPUTS, Config, Model, finish, start


@pytest.fixture
def out(tmp_path) -> str:
    """The folder that a job has created for its output."""
    made = tmp_path / "runs" / "made"
    made.mkdir(parents=True)
    return str(made)


def test_a_finished_job_is_found_finished_with_its_result(out):
    assert not start(out).finished
    record = finish(out, {"rows": 3})
    again = start(out)
    assert again.finished
    assert again.result == {"rows": 3}
    assert again.seconds == pytest.approx(record.seconds, abs=1e-3)


def test_a_killed_job_continues_and_can_finish(out):
    start(out)  # then its process dies
    assert not start(out).finished
    finish(out, {"rows": 3})
    assert start(out).finished


def test_a_finished_job_whose_out_was_deleted_is_done_again(out):
    finish(out, {"rows": 3})
    files.remove(out)
    assert not start(out).finished


@pytest.mark.parametrize(
    ("settings", "inputs", "change"),
    [
        ({"seed": 1}, INPUTS, "seed 0 -> 1"),
        ({"model": Model(depth=3)}, INPUTS, "model.depth 2 -> 3"),
        ({"model": Model(parts=(1,))}, INPUTS, r"model.parts \[1, 2\] -> \[1\]"),
        ({}, {**INPUTS, "new": 5}, "new None -> 5"),
        ({}, {**INPUTS, "source": "s1"}, "source 's0' -> 's1'"),
        ({}, {"source": "s0", "digests": {"tokenizer": "t1"}}, "digests.tokenizer 't0' -> 't1'"),
        ({}, {"source": "s0"}, "digests {'tokenizer': 't0'} -> None"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_or_inputs_are_refused_by_what_changed_and_nothing_is_written(
    out, settings, inputs, change, finished
):
    finish(out, {}) if finished else start(out)
    before = files.read_bytes(f"{out}.record.json")
    with pytest.raises(ValueError, match=change) as refused:
        start(out, inputs, **settings)
    assert out in str(refused.value)
    assert files.read_bytes(f"{out}.record.json") == before


@pytest.mark.parametrize("finished", [False, True])
def test_a_setting_marked_execution_may_change(out, finished):
    finish(out, {"rows": 3}) if finished else start(out)
    assert start(out, threads=8).finished == finished


@pytest.mark.parametrize("finished", [True, False])
def test_a_field_that_grows_may_change_and_the_job_goes_on(out, finished):
    finish(out, {"rows": 3}) if finished else start(out)
    assert not start(out, grows="name", name="a, b").finished
    assert read_record(out).settings["name"] == "a, b"
    assert not read_record(out).finished
    with pytest.raises(ValueError, match="seed 0 -> 1"):
        start(out, grows="name", name="a, b, c", seed=1)
    finish(out, {}, name="a, b")
    assert start(out, grows="name", name="a, b").finished


def test_another_job_with_the_same_out_is_refused_by_name(out):
    start(out)
    with pytest.raises(ValueError, match="sample -> tokenize"):
        start(out, job="tokenize")


def test_a_trailing_slash_is_the_same_out(out):
    finish(out + "/", {})
    assert start(out).finished
    assert read_record(out + "/") == read_record(out)


def test_the_record_on_disk_is_json_that_says_what_was_asked_for_and_where_it_ran(out):
    assert read_record(out) is None
    record = start(out, threads=3)
    on_disk = json.loads(files.read_bytes(f"{out}.record.json"))
    assert on_disk == {
        "version": RECORD_VERSION,
        "job": "sample",
        "settings": {"out": out, "seed": 0, "model": {"depth": 2, "parts": [1, 2]}, "name": "a", "threads": 3},
        "inputs": INPUTS,
        "finished": False,
        "seconds": 0.0,
        "result": {},
        "environment": json.loads(json.dumps(environment())),
    }
    assert read_record(out).to_json() == on_disk
    finish(out, {"rows": 1}, threads=3)
    found = read_record(out)
    assert (found.finished, found.result, found.settings, found.inputs) == (True, {"rows": 1}, record.settings, INPUTS)
    assert found.seconds >= 0


def test_the_environment_says_where_a_job_ran():
    found = environment()
    assert {"host", "platform", "machine", "cpus", "python", "packages", "gpu"} == set(found)
    assert {"rdpm", "torch", "numpy"} <= set(found["packages"])


def test_a_finished_record_keeps_the_environment_of_the_run_that_finished_it(out):
    finish(out, {})
    data = json.loads(files.read_bytes(f"{out}.record.json"))
    files.write_json(f"{out}.record.json", {**data, "environment": {"host": "elsewhere"}})
    assert start(out).environment == {"host": "elsewhere"}


def test_a_second_start_is_refused_while_the_first_is_at_work(out):
    with begin("sample", Config(out), lambda: INPUTS) as record:
        for settings in ({}, {"seed": 1}):
            with pytest.raises(ValueError, match=rf"{out} is being written by sample on .*, process {os.getpid()}"):
                start(out, **settings)
        record.finish({"rows": 1})
        assert start(out).result == {"rows": 1}  # a finished job needs no lease
    assert start(out).finished


def test_a_start_that_waited_finds_what_the_first_has_finished(out):
    with begin("sample", Config(out), lambda: INPUTS) as record, ThreadPoolExecutor() as pool, waiting(60):
        second = pool.submit(start, out)
        time.sleep(0.2)
        assert not second.done()
        record.finish({"rows": 1})
        record.lease.release()
        assert second.result(10).result == {"rows": 1}


def test_inputs_are_made_once_and_under_the_lease_unless_the_job_is_finished(out):
    made = []

    def inputs() -> dict:
        made.append(len(files.list_names(f"{out}.lease")))
        return INPUTS

    with begin("sample", Config(out), inputs) as record:
        record.finish({})
    files.remove(f"{out}.lease")
    with begin("sample", Config(out), inputs) as record:
        assert record.lease is None
    assert made == [1, 0]


def test_a_start_that_has_lost_its_lease_finishes_no_record(out):
    with begin("sample", Config(out), lambda: INPUTS) as record:
        before = files.read_bytes(f"{out}.record.json")
        files.write_bytes(f"{out}.lease/00000002.json", b"of somebody else")
        with pytest.raises(LeaseLost, match="another start has taken it over"):
            record.finish({})
    assert files.read_bytes(f"{out}.record.json") == before


def test_other_ranks_take_no_lease_and_write_no_record(out):
    with begin("sample", Config(out), lambda: INPUTS, first=False) as record:
        assert (record.lease, record.finished) == (None, False)
    assert not files.exists(f"{out}.record.json")
    assert not files.exists(f"{out}.lease")


def test_a_damaged_record_is_refused_by_name(out):
    start(out)
    files.write_bytes(f"{out}.record.json", files.read_bytes(f"{out}.record.json")[:40])
    with pytest.raises(ValueError, match=r"made\.record\.json"):
        start(out)


def test_what_no_job_has_recorded_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    start(str(tmp_path / "out"))  # an empty folder may be used
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(ValueError, match="already holds"):
            start(str(tmp_path / name))
        assert not (tmp_path / f"{name}.record.json").exists()


def test_a_finished_job_that_has_lost_a_file_is_not_finished(tmp_path):
    out = str(tmp_path / "out")
    start(out, makes=("manifest.json",))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    finish(out, {}, makes=("manifest.json",))
    assert start(out, makes=("manifest.json",)).finished
    (tmp_path / "out" / "manifest.json").unlink()
    assert not start(out, makes=("manifest.json",)).finished


def test_other_settings_may_follow_a_start_that_made_nothing(tmp_path):
    out = str(tmp_path / "out")
    start(out)
    start(out, seed=1)
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="other settings"):
        start(out)


def test_the_root_is_no_output():
    with pytest.raises(ValueError, match="out is '/'; name a file or folder below it"):
        start("/")
