"""Local files and folders: whole or not there, whenever a writer is killed, the power goes or two write at once."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rdpm.pipeline.foundation import files


def fill(target: str, content: str, count: int = 2) -> None:
    """Put a folder of `count` files with this content in place."""
    with files.atomic_folder(target) as folder:
        for number in range(count):
            files.write_bytes(files.join(folder, "class", f"{number}"), content.encode())


def content(target: Path) -> list[str]:
    """What is in a folder, hidden files too."""
    return [path.read_text() for path in sorted(target.rglob("*")) if path.is_file()]


CHANGES = {"open", "ctypes.dlopen", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir"}


def in_a_fork(work, kill_at: int = 0) -> int:
    """Run `work` in a child, which is killed before that number of its `CHANGES`; returns how the child ended."""
    child = os.fork()
    if child == 0:
        left = kill_at

        def audit(event: str, _arguments: tuple) -> None:
            nonlocal left
            if event in CHANGES:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            if kill_at:
                sys.addaudithook(audit)
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.slow
def test_a_writer_killed_anywhere_leaves_the_old_or_the_new_folder_whole(tmp_path):
    target = tmp_path / "png"
    fill(str(target), "old")
    seen = set()
    for kill_at in range(1, 300):
        ended = in_a_fork(lambda: fill(str(target), "new"), kill_at)
        assert content(target) in (["old"] * 2, ["new"] * 2), kill_at
        seen.add(content(target)[0])
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        if content(target)[0] == "new":
            fill(str(target), "old")
    assert ended == 0
    assert kill_at > 10
    assert seen == {"old", "new"}


def test_what_killed_writers_left_is_removed_by_the_next_writer_in_that_folder(tmp_path):
    target = tmp_path / "png"
    fill(str(target), "old")
    for kill_at in (5, 8, 11):
        assert in_a_fork(lambda: fill(str(target), "new"), kill_at) == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) > 1
    assert in_a_fork(lambda: files.write_bytes(str(tmp_path / "other"), b"")) == 0
    assert sorted(os.listdir(tmp_path)) == ["other", "png"]


@pytest.mark.long
def test_where_names_cannot_be_exchanged_the_next_writer_brings_the_old_folder_back(tmp_path, monkeypatch):
    """As on NFS: there the old folder is out of sight for a moment."""
    from rdpm.pipeline.foundation import local

    monkeypatch.setattr(local, "rename", lambda *_: False)
    target = tmp_path / "png"
    fill(str(target), "old", 1)
    out_of_sight = 0

    def give_up() -> None:
        with files.atomic_folder(str(target)):
            raise RuntimeError

    for kill_at in range(1, 300):
        ended = in_a_fork(lambda: fill(str(target), "new", 1), kill_at)
        out_of_sight += not target.exists()
        assert in_a_fork(give_up) == 1
        assert content(target) in (["old"], ["new"]), kill_at
        assert os.listdir(tmp_path) == ["png"]
        if ended == 0:
            break
        fill(str(target), "old", 1)
    assert ended == 0
    assert out_of_sight > 0


def test_writers_of_one_folder_at_the_same_time_each_publish_a_whole_one(tmp_path):
    target = tmp_path / "png"
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            list(pool.map(lambda text: fill(str(target), text, 20), "abcd"))
            assert content(target) in [[text] * 20 for text in "abcd"]
    assert os.listdir(tmp_path) == ["png"]


@pytest.mark.parametrize("there", ["nothing", "a file", "a link", "an empty folder"])
def test_a_folder_replaces_whatever_has_its_name(tmp_path, there):
    target = tmp_path / "png"
    if there == "a file":
        target.write_text("file")
    elif there == "a link":
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "kept").touch()
        target.symlink_to(tmp_path / "elsewhere")
    elif there == "an empty folder":
        target.mkdir()
    fill(str(target), "new")
    assert content(target) == ["new"] * 2
    assert not target.is_symlink()
    assert set(os.listdir(tmp_path)) - {"elsewhere"} == {"png"}
    if there == "a link":
        assert os.listdir(tmp_path / "elsewhere") == ["kept"]


def leftover(folder: Path, machine: str, pid: int, started: str, age: float) -> Path:
    """A hidden folder as a writer of that machine and process would have left it, not touched for `age` seconds."""
    path = folder / f".png.{machine}-{pid}-{started}-0123abcd.tmp"
    (path / "class").mkdir(parents=True)
    for one in (path / "class", path):
        os.utime(one, (time.time() - age, time.time() - age))
    return path


def test_nothing_of_a_living_writer_is_removed_and_nothing_young_of_other_machines(tmp_path):
    """Not of one with the same process number in another container either; after a day it counts as left."""
    day = 86400
    kept = [
        leftover(tmp_path, "abcdefabcdef", 1, "5", day - 100),
        leftover(tmp_path, "", 1, "", day - 100),
        leftover(tmp_path, "123456123456", os.getpid(), "7", 0),
    ]
    gone = [leftover(tmp_path, "abcdefabcdef", 2, "5", day + 100), leftover(tmp_path, "", 2, "", day + 100)]
    strangers = [tmp_path / ".png.tmp", tmp_path / ".hidden", tmp_path / ".a.0123abcd.tmp"]
    for path in strangers:
        path.touch()
        os.utime(path, (0, 0))
    with files.atomic_folder(str(tmp_path / "living")):
        assert in_a_fork(lambda: files.write_bytes(str(tmp_path / "x"), b"")) == 0
        assert len([name for name in os.listdir(tmp_path) if name.startswith(".living.")]) == 1
    assert all(path.exists() for path in kept + strangers)
    assert not any(path.exists() for path in gone)


@pytest.mark.parametrize("replace", [True, False])
def test_killed_writers_leave_nothing_for_long_where_files_cannot_be_nameless(tmp_path, monkeypatch, replace):
    """As on NFS: there is a hidden file while one is written."""
    monkeypatch.delattr(os, "O_TMPFILE")
    write = files.write_bytes if replace else files.create_bytes
    url = str(tmp_path / "file")
    left = 0
    for kill_at in range(1, 100):
        ended = in_a_fork(lambda: write(url, b"new"), kill_at)
        assert not os.path.exists(url) or Path(url).read_bytes() == b"new"
        left += any(name.startswith(".") for name in os.listdir(tmp_path))
        assert in_a_fork(lambda: files.write_bytes(str(tmp_path / "other"), b"")) == 0
        assert {*os.listdir(tmp_path)} <= {"file", "other"}
        if ended == 0:
            break
        Path(url).unlink(missing_ok=True)
    assert ended == 0
    assert left > 0


def test_a_file_is_made_once_also_where_hard_links_are_refused(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE")

    def refused(*_, **__):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    url = str(tmp_path / "once")
    assert files.create_bytes(url, b"first")
    assert not files.create_bytes(url, b"second")
    assert files.link(url, str(tmp_path / "linked"))
    assert not files.link(url, str(tmp_path / "linked"))
    assert Path(url).read_bytes() == (tmp_path / "linked").read_bytes() == b"first"
    assert sorted(os.listdir(tmp_path)) == ["linked", "once"]


WRITES = """
import sys
from rdpm.pipeline.foundation import files
root = sys.argv[1]
def step(name, work):
    print(f"begin {name}", flush=True)
    work()
    print(f"end {name}", flush=True)
def folder():
    with files.atomic_folder(f"{root}/out/png") as made:
        files.write_bytes(f"{made}/class/1", b"1")
def together():
    with files.together():
        files.write_bytes(f"{root}/out/staged/1", b"data")
        list(files.in_parallel(lambda n: files.write_bytes(f"{root}/out/staged/{n}", b"data"), range(2, 5)))
step("write", lambda: files.write_bytes(f"{root}/out/deep/er/file", b"data"))
step("replace", lambda: files.write_bytes(f"{root}/out/deep/er/file", b"other"))
step("create", lambda: files.create_bytes(f"{root}/out/once", b"data"))
step("link", lambda: files.link(f"{root}/out/once", f"{root}/out/again/linked"))
step("folder", folder)
step("folder again", folder)
step("together", together)
"""

CALL = re.compile(r"^\d+ +(\w+)\((.*?)(?:\) += (-?\d+).*| <unfinished \.\.\.>)$")
TOGETHER = ("", "/1", "/2", "/3", "/4")
NAMING = {"rename", "renameat", "renameat2", "link", "linkat", "mkdir", "mkdirat"}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("nameless", [True, False])
def test_data_are_on_disk_before_their_name_and_the_name_before_the_call_returns(
    tmp_path, python, repository, nameless
):
    root, log = tmp_path / "root", tmp_path / "calls"
    root.mkdir()
    code = WRITES if nameless else "import os; del os.O_TMPFILE\n" + WRITES
    calls = "trace=fsync,fdatasync,syncfs,rename,renameat,renameat2,link,linkat,mkdir,mkdirat,write"
    strace = ["strace", "-f", "-y", "-s", "400", "-e", calls, "-o", str(log)]
    done = subprocess.run([*strace, *python, "-c", code, str(root)], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    step, steps = "", {}
    for line in log.read_text().splitlines():
        match = CALL.match(line)
        if not match or (match[3] or "").startswith("-"):
            continue
        call, arguments = match[1], match[2]
        if call == "write" and '"begin ' in arguments:
            step = re.search(r'"begin ([\w ]+)', arguments)[1]
            steps[step] = []
        elif call == "write" and '"end ' in arguments:
            step = ""
        elif step and call in ("fsync", "fdatasync", "syncfs"):
            steps[step].append(("sync", re.search(r"<(.*)>", arguments)[1]))
        elif step and call in NAMING:
            steps[step].append((call, re.findall(r'"([^"]+)"', arguments)[-1]))
    names, syncs = ([path for call, path in steps["together"] if (call == "sync") is kind] for kind in (False, True))
    assert {f"{root}/out/staged/{number}" for number in range(1, 5)} <= set(names)
    assert syncs == sorted(syncs, key=os.path.isdir)
    assert sorted(syncs) == sorted(f"{root}/out{name}" for name in ("", *(f"/staged{n}" for n in TOGETHER)))
    assert [call for call, _ in steps.pop("together")[-len(syncs) :]] == ["sync"] * len(syncs)
    assert set(steps) == {"write", "replace", "create", "link", "folder", "folder again"}
    for step, events in steps.items():
        made = [(place, name) for place, (call, name) in enumerate(events) if call != "sync"]
        visible = [(place, Path(name)) for place, name in made if "/." not in name]
        assert visible, step
        for place, name in visible:
            if not any(part.startswith(".") for part in name.parts):
                after = [path for call, path in events[place:] if call == "sync"]
                assert str(name.parent) in after, (step, name, events)
        naming = max(place for place, _ in visible)
        if step != "link":
            assert any(call == "sync" for call, _ in events[:naming]), (step, events)
        syncs = [path for call, path in events if call == "sync"]
        assert len(syncs) == len(set(syncs)), (step, "synced twice", syncs)
