import json

import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.records import begin, read_record

SETTINGS = {"seed": 0, "model": {"depth": 2, "parts": [1, 2]}, "name": "a"}


@pytest.fixture
def out(tmp_path) -> str:
    """Where a job has put what it makes."""
    made = tmp_path / "runs" / "made"
    made.mkdir(parents=True)
    return str(made)


def test_a_finished_job_is_found_finished_with_its_result(out):
    record = begin("sample", out, SETTINGS)
    assert not record.finished
    record.finish({"rows": 3})
    again = begin("sample", out, SETTINGS)
    assert again.finished
    assert again.result == {"rows": 3}
    assert again.seconds == pytest.approx(record.seconds, abs=1e-3)


def test_a_killed_job_goes_on_and_can_finish(out):
    begin("sample", out, SETTINGS)  # and its process dies
    again = begin("sample", out, SETTINGS)
    assert not again.finished
    again.finish({"rows": 3})
    assert begin("sample", out, SETTINGS).finished


def test_a_finished_job_whose_out_was_deleted_is_done_again(out):
    begin("sample", out, SETTINGS).finish({"rows": 3})
    files.remove(out)
    assert not begin("sample", out, SETTINGS).finished


@pytest.mark.parametrize(
    ("settings", "change"),
    [
        ({**SETTINGS, "seed": 1}, "seed 0 -> 1"),
        ({**SETTINGS, "model": {"depth": 3, "parts": [1, 2]}}, "model.depth 2 -> 3"),
        ({**SETTINGS, "model": {"depth": 2, "parts": [1]}}, r"model.parts \[1, 2\] -> \[1\]"),
        ({**SETTINGS, "new": 5}, "new None -> 5"),
        ({"seed": 0, "model": SETTINGS["model"]}, "name 'a' -> None"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_other_settings_are_refused_by_the_key_that_changed_and_nothing_is_touched(out, settings, change, finished):
    record = begin("sample", out, SETTINGS)
    if finished:
        record.finish({})
    before = files.read_bytes(f"{out}.record.json")
    with pytest.raises(ValueError, match=change) as refused:
        begin("sample", out, settings)
    assert out in str(refused.value)
    assert files.read_bytes(f"{out}.record.json") == before


def test_another_job_with_the_same_out_is_refused_by_name(out):
    begin("sample", out, SETTINGS)
    with pytest.raises(ValueError, match="sample -> tokenize"):
        begin("tokenize", out, SETTINGS)


def test_the_order_of_settings_does_not_matter(out):
    begin("sample", out, SETTINGS).finish({})
    assert begin("sample", out, dict(reversed(SETTINGS.items()))).finished


def test_a_trailing_slash_is_the_same_out(out):
    begin("sample", out + "/", SETTINGS).finish({})
    assert begin("sample", out, SETTINGS).finished
    assert read_record(out + "/") == read_record(out)


def test_the_record_on_disk_is_json_that_says_what_was_asked_for(out):
    assert read_record(out) is None
    record = begin("sample", out, SETTINGS)
    assert read_record(out) == {
        "job": "sample",
        "identity": record.identity,
        "settings": SETTINGS,
        "finished": False,
        "seconds": 0.0,
        "result": {},
    }
    record.finish({"rows": 1})
    assert json.loads(files.read_bytes(f"{out}.record.json")) == read_record(out)
    assert read_record(out)["finished"]


def test_two_starts_of_one_job_are_one_job(out):
    first, second = begin("sample", out, SETTINGS), begin("sample", out, SETTINGS)
    first.finish({"rows": 1})
    second.finish({"rows": 1})
    assert begin("sample", out, SETTINGS).result == {"rows": 1}


def test_a_damaged_record_is_refused_by_name(out):
    begin("sample", out, SETTINGS)
    files.write_bytes(f"{out}.record.json", files.read_bytes(f"{out}.record.json")[:40])
    with pytest.raises(ValueError, match=r"made\.record\.json"):
        begin("sample", out, SETTINGS)


def test_what_no_job_of_ours_made_is_not_written_over(tmp_path):
    (tmp_path / "out").mkdir()
    begin("sample", str(tmp_path / "out"), SETTINGS)  # an empty folder is free to take
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(ValueError, match="already holds"):
            begin("sample", str(tmp_path / name), SETTINGS)
        assert not (tmp_path / f"{name}.record.json").exists()


def test_finished_work_that_lost_a_file_is_not_finished(tmp_path):
    out = str(tmp_path / "out")
    record = begin("sample", out, SETTINGS, ("manifest.json",))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    record.finish({})
    assert begin("sample", out, SETTINGS, ("manifest.json",)).finished
    (tmp_path / "out" / "manifest.json").unlink()
    assert not begin("sample", out, SETTINGS, ("manifest.json",)).finished


def test_other_settings_may_follow_a_start_of_which_nothing_came(tmp_path):
    out = str(tmp_path / "out")
    begin("sample", out, SETTINGS)
    begin("sample", out, {**SETTINGS, "more": 1})
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="other settings"):
        begin("sample", out, SETTINGS)


@pytest.mark.parametrize("content", ["[]", "{}", '{"identity": 1}'])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / "out.record.json").write_text(content)
    with pytest.raises(ValueError, match=r"out\.record\.json is no job record"):
        begin("sample", str(tmp_path / "out"), SETTINGS)
