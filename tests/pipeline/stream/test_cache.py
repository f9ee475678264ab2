import mmap
import multiprocessing
import os
import resource
import signal
import stat
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from rdpm.pipeline.stream.cache import Cache, default_folder
from tests.faults.mounts import small_disk

PARTS = {"codes": [4000, 12_288, 8], "label": [40, 120, 4]}
fork = multiprocessing.get_context("fork")


def content(block: str, name: str, part: int) -> np.ndarray:
    """The content of part `part` of a column, different for every block."""
    size = PARTS[name][part]
    return np.frombuffer(np.random.default_rng([*block.encode(), len(name), part]).bytes(size), np.uint8)


def reader(block: str, log: Path | None = None, seconds: float = 0.0):
    """A source of the parts of a block, which logs every requested part."""

    def read(part: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        time.sleep(seconds)
        if log is not None:
            with log.open("a") as file:
                file.write(f"{part}\n")
        return {name: content(block, name, part) for name in names}

    return read


def expected(block: str) -> dict[str, bytes]:
    return {name: b"".join(content(block, name, part).tobytes() for part in range(3)) for name in PARTS}


def opened(cache: Cache, block: str, **how) -> dict[str, bytes]:
    maps = cache.open(block, PARTS, reader(block, **how))
    return {name: found[:] for name, found in maps.items()}


def test_a_block_is_filled_once_and_read_often(tmp_path):
    log = tmp_path / "log"
    for _ in range(3):
        assert opened(Cache(str(tmp_path / "cache"), 10**6), "a", log=log) == expected("a")
    assert sorted(log.read_text().split()) == ["0", "1", "2"]
    assert sorted(os.listdir(tmp_path / "cache")) == ["a.codes.rows", "a.label.rows"]


def test_a_column_requested_later_is_filled_without_the_others(tmp_path):
    cache, asked = Cache(str(tmp_path), 10**6), []
    cache.open("a", {"label": PARTS["label"]}, reader("a"))
    maps = cache.open("a", PARTS, lambda part, names: asked.append(names) or reader("a")(part, names))
    assert {name: found[:] for name, found in maps.items()} == expected("a")
    assert asked == [("codes",)] * 3


def test_maps_cannot_be_written(tmp_path):
    maps = Cache(str(tmp_path), 10**6).open("a", PARTS, reader("a"))
    assert isinstance(maps["codes"], mmap.mmap)
    with pytest.raises(TypeError):
        maps["codes"][0] = 1


@pytest.mark.parametrize("damage", ["flip", "flip_sum", "cut", "longer", "empty"])
def test_a_damaged_file_never_reaches_a_reader(tmp_path, damage):
    cache, path = Cache(str(tmp_path), 10**6), tmp_path / "a.codes.rows"
    opened(cache, "a")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[5000] ^= 1
    elif damage == "flip_sum":
        data[-1] ^= 1
    path.write_bytes({"cut": data[:-1], "longer": data + b"x", "empty": b""}.get(damage, data))
    log = tmp_path / "log"
    assert opened(cache, "a", log=log) == expected("a")
    assert sorted(log.read_text().split()) == ["0", "1", "2"]
    assert opened(cache, "a", log=log) == expected("a")
    assert len(log.read_text().split()) == 3


def test_the_block_opened_least_recently_is_removed_first_and_its_readers_keep_it(tmp_path):
    size = sum(sum(parts) + 4 * len(parts) for parts in PARTS.values())
    cache = Cache(str(tmp_path), 2 * size)
    kept = cache.open("a", PARTS, reader("a"))
    opened(cache, "b")
    opened(cache, "a")
    (tmp_path / "note.txt").write_text("not the cache's own")
    opened(cache, "c")
    names = {"a.codes.rows", "a.label.rows", "c.codes.rows", "c.label.rows", "note.txt"}
    assert set(os.listdir(tmp_path)) == names
    opened(cache, "b")
    opened(cache, "d")
    assert not (tmp_path / "a.codes.rows").exists()
    assert {name: found[:] for name, found in kept.items()} == expected("a")
    assert opened(cache, "a") == expected("a")


def _open_and_report(folder: str, log: Path, answer) -> None:
    answer.put(opened(Cache(folder, 10**6), "a", log=log, seconds=0.05))


def test_of_processes_that_want_a_block_at_once_one_fills_it(tmp_path):
    answer, log = fork.Queue(), tmp_path / "log"
    processes = [fork.Process(target=_open_and_report, args=(str(tmp_path / "c"), log, answer)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [answer.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
    assert found == [expected("a")] * 4
    assert sorted(log.read_text().split()) == ["0", "1", "2"]
    assert sorted(os.listdir(tmp_path / "c")) == ["a.codes.rows", "a.label.rows"]


@pytest.mark.parametrize("moment", ["reading", "waiting"])
def test_a_process_killed_while_it_fills_leaves_nothing_and_blocks_nobody(tmp_path, moment):
    folder, log = tmp_path / "c", tmp_path / "log"

    def fill_slowly() -> None:
        read = reader("a", log)
        Cache(str(folder), 10**6).open("a", PARTS, lambda part, names: time.sleep(60 * part) or read(part, names))

    process = fork.Process(target=fill_slowly)
    process.start()
    while not log.exists():
        time.sleep(0.01)
    other = None
    if moment == "waiting":
        answer = fork.Queue()
        other = fork.Process(target=_open_and_report, args=(str(folder), log, answer))
        other.start()
        time.sleep(0.3)
        assert answer.empty()
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    if other is None:
        assert not [name for name in os.listdir(folder) if name.endswith((".rows", ".tmp"))]
        assert opened(Cache(str(folder), 10**6), "a") == expected("a")
    else:
        assert answer.get(timeout=60) == expected("a")
        other.join(60)
    assert sorted(os.listdir(folder)) == ["a.codes.rows", "a.label.rows"]


def test_what_a_reader_raises_is_passed_on_and_leaves_nothing(tmp_path):
    def read(part: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        if part == 1:
            raise ValueError("part 1 is gone")
        return reader("a")(part, names)

    with pytest.raises(ValueError, match="part 1 is gone"):
        Cache(str(tmp_path), 10**6).open("a", PARTS, read)
    assert os.listdir(tmp_path) == []
    assert opened(Cache(str(tmp_path), 10**6), "a") == expected("a")


def _fill_a_full_disk(folder: str, answer) -> None:
    """A limit on file sizes imitates a full disk: the kernel refuses the same call."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
    asked: list[int] = []
    try:
        Cache(folder, 10**6).open("a", PARTS, lambda part, names: asked.append(part) or reader("a")(part, names))
    except ValueError as refusal:
        answer.put((str(refusal), asked, os.listdir(folder)))


def test_a_full_disk_is_reported_before_anything_is_read(tmp_path):
    answer = fork.Queue()
    process = fork.Process(target=_fill_a_full_disk, args=(str(tmp_path), answer))
    process.start()
    refusal, asked, left = answer.get(timeout=60)
    process.join(60)
    assert str(tmp_path) in refusal
    assert "has no room for 16484 more bytes" in refusal
    assert "make room there" in refusal
    assert (asked, left) == ([], [])


def test_a_full_disk_ends_with_one_sentence_and_a_larger_one_goes_on(tmp_path):
    with small_disk(tmp_path / "disk", 12) as disk:
        folder = str(disk.folder / "cache")
        for filler in (0, 12 * 1024):
            (disk.folder / "filler").write_bytes(bytes(filler))
            with pytest.raises(
                ValueError, match=rf"{folder} has no room for 16484 more bytes \(No space left on device\)"
            ):
                opened(Cache(folder, 10**6), "a")
        assert os.listdir(folder) == []
        disk.resize(100)
        assert opened(Cache(folder, 10**6), "a") == expected("a")


def test_a_folder_that_cannot_be_created_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/cache cannot be created .*set stream\.cache to another folder"):
        opened(Cache(str(tmp_path / "file" / "cache"), 10**6), "a")


STRANGER = 12_345
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def forge(folder: Path, owner: int = -1) -> None:
    """Rows of another content under the names and with the CRC of block a, and files that belong to `owner`."""
    Cache(str(folder), 10**6).open("a", PARTS, reader("forged"))
    for path in folder.iterdir():
        os.chown(path, owner, -1)


@as_root
@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o700])
def test_a_folder_of_another_user_is_refused_whatever_is_in_it(tmp_path, mode):
    folder = tmp_path / "cache"
    forge(folder, STRANGER)
    os.chown(folder, STRANGER, -1)
    folder.chmod(mode)
    match = rf"{folder} has owner 12345 and mode {mode:03o}, .*make it a folder of user 0 .*or set stream\.cache to"
    with pytest.raises(ValueError, match=match):
        opened(Cache(str(folder), 10**6), "a")
    assert sorted(path.name for path in folder.iterdir()) == ["a.codes.rows", "a.label.rows"]


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
def test_a_folder_that_others_may_write_to_is_refused_and_one_that_they_may_read_is_not(tmp_path, mode):
    tmp_path.chmod(mode)
    with pytest.raises(ValueError, match=rf"mode {mode:03o}, so others could forge rows in it; .* with mode 700"):
        opened(Cache(str(tmp_path), 10**6), "a")
    tmp_path.chmod(0o755)
    assert opened(Cache(str(tmp_path), 10**6), "a") == expected("a")


def test_a_link_is_refused_with_the_folder_that_it_names(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    for folder in ("link", "link/"):
        with pytest.raises(ValueError, match=rf"link is a link; name {tmp_path}/real, or set stream\.cache"):
            opened(Cache(f"{tmp_path}/{folder}", 10**6), "a")


@as_root
def test_the_default_folder_is_refused_when_another_user_has_made_it_first(tmp_path, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert default_folder() == str(tmp_path / "rdpm-0")
    os.mkdir(default_folder(), 0o700)
    os.chown(default_folder(), STRANGER, -1)
    with pytest.raises(ValueError, match=r"rdpm-0 has owner 12345 .*stream\.cache"):
        opened(Cache(default_folder(), 10**6), "a")


@pytest.mark.parametrize("kind", [pytest.param("foreign", marks=as_root), "writable", "link"])
def test_a_file_that_another_user_could_have_written_never_reaches_a_reader(tmp_path, kind):
    folder, path = tmp_path / "cache", tmp_path / "cache" / "a.codes.rows"
    forge(folder, STRANGER if kind == "foreign" else -1)
    if kind == "writable":
        for file in folder.iterdir():
            file.chmod(0o664)
    if kind == "link":
        for file in list(folder.iterdir()):
            file.rename(tmp_path / file.name)
            file.symlink_to(tmp_path / file.name)
    assert opened(Cache(str(folder), 10**6), "a") == expected("a")
    assert path.lstat().st_uid == os.geteuid()
    assert not path.is_symlink()


def test_folder_and_files_are_this_users_alone_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        opened(Cache(str(tmp_path / "cache"), 10**6), "a")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "cache", *(tmp_path / "cache").iterdir())]
    assert modes == [0o700, 0o600, 0o600]
