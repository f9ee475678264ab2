"""`make gpu` without a GPU: parts that succeed, fail, stop, are killed and go on, and the tables that come of them."""

import contextlib
import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.__main__ import main, run_parts
from benchmarks.gpu.parts import PARTS, Part, chosen
from benchmarks.gpu.running import Machine, finished, path_of, read, run
from benchmarks.gpu.tables import BEGIN, END, TABLES, shown, write_tables

HERE = Machine("a GPU", "1.2", "2.11", "13.0", "abc")


def part(name: str, code: str, seconds: int = 60, *needs: str) -> Part:
    """A part that runs a line of Python."""
    return Part(name, ("-c", code), seconds, needs)


def counting(name: str, log: Path) -> Part:
    """A part that leaves a line in a file whenever it runs."""
    return part(name, f"open({str(log)!r}, 'a').write({name!r} + '\\n')")


GOOD = part("train/good", "print('a line'); print('{\"images_per_s\": 1234.5, \"mfu\": 0.31415}'); print('bye')")
BAD = part("train/bad", "print('out of memory | at 3 GiB'); raise SystemExit(3)")
LATE = part("train/late", "import time; print('waiting', flush=True); time.sleep(60)", 1)
TESTS = part("tests/some", "print('=== 3 passed, 1 skipped, 2 warnings in 1.23s ===')")


def test_a_result_is_kept_whatever_becomes_of_the_part(tmp_path) -> None:
    for each in (GOOD, BAD, LATE, TESTS):
        assert run(each, HERE, tmp_path) == read(tmp_path, each)
    good, bad, late, tests = (read(tmp_path, each) for each in (GOOD, BAD, LATE, TESTS))
    assert good["printed"] == {"images_per_s": 1234.5, "mfu": 0.31415}
    assert (good["exit_code"], good["timed_out"], good["machine"]["device"]) == (0, False, "a GPU")
    assert (bad["exit_code"], bad["printed"], bad["tail"]) == (3, None, "out of memory | at 3 GiB\n")
    assert (late["timed_out"], late["tail"]) == (True, "waiting\n")
    assert 1 <= late["seconds"] < 30
    assert tests["printed"] == {"passed": 3, "skipped": 1, "warnings": 2}
    assert {path.suffix for path in tmp_path.iterdir()} == {".json"}


def test_a_second_start_runs_what_is_not_finished_on_this_device_and_commit(tmp_path, capsys) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    parts = [counting(f"train/{number}", log) for number in range(3)]
    absent = part("train/absent", "", 60, "no_such_package")
    for again in (False, False, True):
        assert run_parts([*parts, absent], HERE, out, again, None) == 0
    assert log.read_text().split() == ["train/0", "train/1", "train/2"] * 2
    assert "left out  train/absent: no_such_package is not installed" in capsys.readouterr().out
    for other in (replace(HERE, commit="abd"), replace(HERE, device="another GPU")):
        assert not finished(out, parts[0], other)
        assert run_parts(parts[:1], other, out, False, None) == 0
    assert log.read_text().split()[6:] == ["train/0"] * 2


def test_a_failure_is_not_run_again_and_not_forgotten(tmp_path, capsys) -> None:
    for _ in range(2):
        assert run_parts([GOOD, BAD, LATE], HERE, tmp_path, False, None) == 1
        assert "not passed: train/bad; train/late" in capsys.readouterr().out


def test_no_part_begins_that_could_end_too_late(tmp_path, capsys) -> None:
    parts = [replace(GOOD, seconds=30), replace(GOOD, name="train/long", seconds=90)]
    assert run_parts(parts, HERE, tmp_path, False, 1) == 1
    assert [read(tmp_path, each) is not None for each in parts] == [True, False]
    assert "1 parts did not fit the 1 minutes; start again to go on" in capsys.readouterr().out
    assert run_parts(parts, HERE, tmp_path, False, 2) == 0


def test_a_start_that_is_killed_loses_only_the_part_that_ran(tmp_path, repository) -> None:
    """The part ends with it."""
    pid, log, out = tmp_path / "pid", tmp_path / "log", tmp_path / "out"
    wait = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    first, second = counting("train/first", log), part("train/second", wait)
    start = (
        "from benchmarks.gpu.__main__ import run_parts; from benchmarks.gpu.parts import Part; "
        f"from benchmarks.gpu.running import Machine; from pathlib import Path; run_parts([{first!r}, {second!r}], "
        f"{HERE!r}, Path({str(out)!r}), False, None)"
    )
    job = subprocess.Popen([sys.executable, "-c", start], cwd=repository)
    began = time.monotonic()
    while not (pid.exists() and pid.read_text()):
        assert time.monotonic() - began < 60
        time.sleep(0.01)
    job.kill()
    job.wait()
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() - began < 60:
            os.kill(int(pid.read_text()), 0)
            time.sleep(0.01)
        raise AssertionError("the part outlived the start that was killed")
    assert finished(out, first, HERE)
    assert read(out, second) is None
    assert run_parts([first, counting("train/second", log)], HERE, out, False, None) == 0
    assert log.read_text().split() == ["train/first", "train/second"]


def test_processes_that_a_late_part_started_end_with_it(tmp_path) -> None:
    pid = tmp_path / "pid"
    code = (
        "import subprocess, time; child = subprocess.Popen(['sleep', '60']); "
        f"open({str(pid)!r}, 'w').write(str(child.pid)); time.sleep(60)"
    )
    assert run(part("train/parent", code, 2), HERE, tmp_path / "out")["timed_out"]
    began = time.monotonic()
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() - began < 30:
            os.kill(int(pid.read_text()), 0)
            if Path(f"/proc/{pid.read_text()}/stat").read_text().split(")")[-1].split()[0] == "Z":
                return
            time.sleep(0.01)
        os.kill(int(pid.read_text()), signal.SIGKILL)
        raise AssertionError("the child outlived its parent")


@pytest.fixture
def page(tmp_path) -> Path:
    """A page with the markers and something around them."""
    path = tmp_path / "page.md"
    path.write_text(f"# Before\n\n{BEGIN}\n{END}\n\nAfter\n")
    return path


def rows(page: Path) -> dict[str, list[str]]:
    """The rows of all tables by their first cell."""
    lines = [line.strip("| ") for line in page.read_text().splitlines() if line.startswith("|")]
    return {line.split(" | ")[0]: [cell.strip() for cell in line.split(" | ")[1:]] for line in lines}


def test_tables_hold_every_part_and_are_written_again_the_same(page, tmp_path) -> None:
    parts = [GOOD, BAD, LATE, TESTS, part("train/later", ""), part("tests/absent", "", 60, "no_such_package")]
    for each in parts[:4]:
        run(each, HERE, tmp_path / "out")
    write_tables(page, parts, tmp_path / "out")
    text = page.read_text()
    assert text.startswith(f"# Before\n\n{BEGIN}\n")
    assert text.endswith(f"\n{END}\n\nAfter\n")
    found = rows(page)
    assert found["good"][:2] == ["1,234", "0.314"]
    assert found["good"][-4:] == ["a GPU", "1.2", "2.11, 13.0", "abc"]
    assert found["bad"][0] == "**failed:** out of memory at 3 GiB"
    assert found["late"][0] == "**stopped after 1 s**"
    assert found["some"][:3] == ["3", "", "1"]
    assert found["later"][0] == "*never run*"
    assert found["absent"][0] == "*never run: no_such_package is not installed*"
    before = page.stat().st_mtime_ns
    write_tables(page, parts, tmp_path / "out")
    assert (page.read_text(), page.stat().st_mtime_ns) == (text, before)


def test_a_row_stays_until_its_part_has_run_again(page, tmp_path) -> None:
    """Also where the results are gone, and where a package is missing now."""
    run(GOOD, HERE, tmp_path / "out")
    parts = [GOOD, BAD]
    write_tables(page, parts, tmp_path / "out")
    text = page.read_text()
    write_tables(page, parts, tmp_path / "nothing")
    assert page.read_text() == text
    write_tables(page, [replace(GOOD, needs=("no_such_package",)), BAD], tmp_path / "nothing")
    assert page.read_text() == text
    run(replace(GOOD, arguments=("-c", "print('{\"images_per_s\": 7}')")), HERE, tmp_path / "out")
    write_tables(page, parts, tmp_path / "out")
    assert rows(page)["good"][:2] == ["7", ""]


def test_a_row_is_kept_in_its_own_table(page, tmp_path) -> None:
    """Sampling and training have rows of the same name."""
    parts = [replace(GOOD, name=f"{table}/same", arguments=("-c", f"print('{{\"images_per_s\": {number}}}')"))
             for number, table in enumerate(("sample", "train"), start=7)]  # fmt: skip
    for each in parts:
        run(each, HERE, tmp_path / "out")
    write_tables(page, parts, tmp_path / "out")
    text = page.read_text()
    assert "| same | 7 |" in text
    assert "| same | 8 |" in text
    write_tables(page, parts, tmp_path / "nothing")
    assert page.read_text() == text


def test_a_page_without_markers_is_refused(tmp_path) -> None:
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(ValueError, match="has no lines"):
        write_tables(tmp_path / "page.md", [GOOD], tmp_path)


def test_values_become_short_cells() -> None:
    values = [None, True, 12345.6, 0.012345, 7, {"d12": {"8": 35.04, "32": 1e4}}, "a | b"]
    assert [shown(value) for value in values] == ["", "yes", "12,346", "0.0123", "7", "d12: 8 35; 32 10,000", "a b"]


def test_pieces_and_patterns_choose_parts() -> None:
    pieces = [chosen(PARTS, [], f"{number}/5") for number in range(1, 6)]
    assert sorted(each.name for piece in pieces for each in piece) == sorted(each.name for each in PARTS)
    assert {each.name.split("/")[0] for each in chosen(PARTS, ["tests", "train/d12, sdpa*"], None)} == {
        "tests",
        "train",
    }
    with pytest.raises(ValueError, match="no part is called 'nothing'"):
        chosen(PARTS, ["nothing"], None)
    for piece in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(ValueError, match="use N/M"):
            chosen(PARTS, [], piece)


def test_every_part_runs_something_that_is_there(repository) -> None:
    assert len({path_of(Path(), each) for each in PARTS}) == len(PARTS)
    assert {each.name.split("/")[0] for each in PARTS} == {table.name for table in TABLES}
    for each in PARTS:
        if each.arguments[1] == "pytest":
            path, _, test = each.arguments[-1].partition("::")
            text = (repository / path).read_text()
            assert "pytest.mark.gpu" in text
            assert f"def {test}" in text
        else:
            assert importlib.util.find_spec(each.arguments[1]) is not None


def test_every_file_of_tests_marked_gpu_has_a_part(repository) -> None:
    marked = {
        str(path.relative_to(repository))
        for path in (repository / "tests").rglob("test_*.py")
        if re.search(r"pytest\.mark\.gpu\b", path.read_text()) and path != Path(__file__)
    }
    assert marked == {each.arguments[-1].partition("::")[0] for each in PARTS if each.name.startswith("tests/")}


def test_the_page_names_every_part(repository, tmp_path) -> None:
    """`python -m benchmarks.gpu --tables` brings it up to date."""
    page = tmp_path / "benchmarks.md"
    page.write_text((repository / "docs" / "benchmarks.md").read_text())
    before = rows(page)
    write_tables(page, PARTS, tmp_path)
    assert {each.name.partition("/")[2] for each in PARTS} <= set(before)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_one_sentence_says_so(monkeypatch, capsys, tmp_path) -> None:
    page = tmp_path / "page.md"
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "out"), "--page", str(page)])
    assert main() == 2
    assert capsys.readouterr().err == "there is no CUDA device, and every part needs one; --list shows the parts\n"
    assert not page.exists()
    monkeypatch.setattr(sys, "argv", ["gpu", "--list", "tests"])
    assert main() == 0
    assert len(capsys.readouterr().out.splitlines()) == sum(each.name.startswith("tests/") for each in PARTS)
