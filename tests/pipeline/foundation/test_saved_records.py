"""Records as they lie on disk: of other releases, damaged, and compared."""

import json
from dataclasses import replace

import pytest

from rdpm.pipeline.foundation import files
from rdpm.pipeline.foundation.records import RECORD_VERSION, first_change, read_record
from tests.pipeline.foundation.recorded import INPUTS, start


@pytest.fixture
def out(tmp_path) -> str:
    """The folder that a job has created for its output."""
    (tmp_path / "made").mkdir()
    return str(tmp_path / "made")


GOOD = {"version": 2, "job": "sample", "settings": {}, "inputs": {}, "finished": True, "seconds": 1, "result": {},
        "environment": {}}  # fmt: skip
BAD = [
    *([], {}, 3, None, {"identity": 1}),
    *({key: value for key, value in GOOD.items() if key != name} for name in GOOD if name != "version"),
    *({**GOOD, name: "x"} for name in GOOD if name != "job"),
    *({**GOOD, "job": 3}, {**GOOD, "version": 0}, {**GOOD, "version": None}),
]


@pytest.mark.parametrize("content", BAD, ids=str)
def test_what_is_no_record_is_refused_by_name(tmp_path, content):
    path = tmp_path / "out.record.json"
    path.write_text(json.dumps(GOOD))
    assert read_record(str(tmp_path / "out")).finished
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"out\.record\.json is no job record; delete it"):
        start(str(tmp_path / "out"))


def test_a_record_of_a_newer_version_is_refused_by_number(tmp_path):
    (tmp_path / "out.record.json").write_text(json.dumps({**GOOD, "version": RECORD_VERSION + 1}))
    with pytest.raises(ValueError, match=rf"has version {RECORD_VERSION + 1}, .* 1 to {RECORD_VERSION}; update rdpm"):
        start(str(tmp_path / "out"))


@pytest.mark.parametrize("name", ["generator", "generator-halfway", "metrics.json", "samples", "store", "tokenizer"])
def test_records_of_the_first_release_are_read(repository, name):
    record = read_record(str(repository / "tests" / "fixtures" / "v1" / name))
    assert record.version == 1
    assert record.finished == (not name.endswith("halfway"))
    assert record.inputs == record.settings
    assert record.environment == {}


def test_a_job_that_the_first_release_finished_is_finished(out):
    """Its record has the inputs among the settings, and no fields marked EXECUTION."""
    settings = {"seed": 0, "model": {"depth": 2, "parts": [1, 2]}, "name": "a", **INPUTS}
    facts = {"job": "sample", "identity": "a digest", "finished": True, "seconds": 1.5, "result": {"rows": 3}}
    files.write_json(f"{out}.record.json", {**facts, "settings": settings})
    before = files.read_bytes(f"{out}.record.json")
    assert (start(out).finished, start(out).result, start(out).seconds) == (True, {"rows": 3}, 1.5)
    for change, match in (({"seed": 1}, "seed 0 -> 1"), ({"inputs": {**INPUTS, "source": "s1"}}, "'s0' -> 's1'")):
        with pytest.raises(ValueError, match=match):
            start(out, **change)
    assert files.read_bytes(f"{out}.record.json") == before


def test_the_first_change_is_named_down_to_its_key():
    old = {"a": 1, "b": [{"c": 1}, {"c": 2}], "d": [1, 2]}
    assert first_change(old, old) is None
    assert first_change(old, {**old, "b": [{"c": 1}, {"c": 3}]}) == "b.1.c 2 -> 3"
    assert first_change(old, {**old, "d": [1, 3]}) == "d [1, 2] -> [1, 3]"
    assert first_change(old, {**old, "b": []}) == "b [{'c': 1}, {'c': 2}] -> []"


def test_records_are_compared_by_what_they_say(out):
    record = start(out)
    assert replace(record, started=0.0) == record
