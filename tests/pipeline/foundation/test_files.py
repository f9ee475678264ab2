import hashlib
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from rdpm.pipeline.foundation import files

BLOCK = 1 << 22


def test_what_is_written_is_read_back_and_replaced_completely(root):
    url = files.join(root, "a", "b", "file.bin")
    for data in (b"x" * 1000, b"", b"short"):
        files.write_bytes(url, data)
        assert files.read_bytes(url) == data
    assert files.list_files(root) == [("a/b/file.bin", 5)]


def write_half(url: str, error: type[BaseException]) -> None:
    with files.atomic_file(url) as file:
        file.write(b"half")
        raise error


def test_a_block_that_fails_leaves_nothing(root):
    url = files.join(root, "file.bin")
    with pytest.raises(RuntimeError):
        write_half(url, RuntimeError)
    assert not files.exists(url)
    assert files.list_files(root) == []


def test_a_block_that_fails_leaves_what_was_there(root):
    url = files.join(root, "file.bin")
    files.write_bytes(url, b"before")
    with pytest.raises(KeyboardInterrupt):
        write_half(url, KeyboardInterrupt)
    assert files.read_bytes(url) == b"before"
    assert files.list_files(root) == [("file.bin", 6)]


def test_a_file_has_no_name_before_its_block_ends(root):
    url = files.join(root, "file.bin")
    with files.atomic_file(url) as file:
        file.write(b"half")
        assert not files.exists(url)
    assert files.read_bytes(url) == b"half"


def test_a_failed_block_leaves_no_temporary_file_on_disk(tmp_path):
    with pytest.raises(RuntimeError):
        write_half(str(tmp_path / "file.bin"), RuntimeError)
    files.create_bytes(str(tmp_path / "once"), b"1")
    files.create_bytes(str(tmp_path / "once"), b"2")
    assert os.listdir(tmp_path) == ["once"]


def test_readers_see_one_complete_version_while_it_is_replaced(tmp_path):
    url = str(tmp_path / "file.bin")
    versions = [bytes([letter]) * 300_000 for letter in b"ab"]
    files.write_bytes(url, versions[0])
    stop, turns = threading.Event(), []

    def replace() -> None:
        while not stop.is_set():
            files.write_bytes(url, versions[len(turns) % 2])
            turns.append(len(turns))

    with ThreadPoolExecutor(1) as pool:
        writer = pool.submit(replace)
        seen = []
        while len(seen) < 200 or (len(turns) < 3 and not writer.done()):
            seen.append(files.read_bytes(url))
        stop.set()
        writer.result()
    assert all(data in versions for data in seen)


KILLED = """
import sys, time
from rdpm.pipeline.foundation import files
with files.atomic_file(sys.argv[1]) as file:
    file.write(b"half" * 100_000)
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_writer_leaves_nothing(tmp_path, python, repository):
    url = str(tmp_path / "file.bin")
    process = subprocess.Popen([*python, "-c", KILLED, url], cwd=repository, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    if sys.platform == "linux":
        assert os.listdir(tmp_path) == []  # elsewhere a temporary file remains, which listings leave out
    assert files.list_names(str(tmp_path)) == []
    assert files.list_files(str(tmp_path)) == []
    assert not files.exists(url)


def test_create_bytes_never_replaces(root):
    url = files.join(root, "folder", "once")
    assert files.create_bytes(url, b"first")
    assert not files.create_bytes(url, b"second")
    assert files.read_bytes(url) == b"first"
    assert files.list_names(files.join(root, "folder")) == ["once"]


def test_of_many_threads_exactly_one_creates(tmp_path):
    payloads = [bytes([letter]) * 20_000 for letter in range(8)]
    for turn in range(20):
        url = str(tmp_path / str(turn))
        start = threading.Barrier(len(payloads))

        def create(data, url=url, start=start):
            start.wait()
            return files.create_bytes(url, data)

        with ThreadPoolExecutor(len(payloads)) as pool:
            made = list(pool.map(create, payloads))
        assert made.count(True) == 1
        assert files.read_bytes(url) == payloads[made.index(True)]
    assert len(os.listdir(tmp_path)) == 20


CREATE = """
import os, sys, time
from rdpm.pipeline.foundation import files
folder, mine = sys.argv[1:]
files.write_bytes(f"{folder}/ready/{mine}", b"")
while not os.path.exists(f"{folder}/go"):
    time.sleep(0.001)
print(*(int(files.create_bytes(f"{folder}/{i}", mine.encode() * 10_000)) for i in range(60)))
"""


def test_of_many_processes_exactly_one_creates(tmp_path, python, repository):
    names = ["a", "b", "c"]
    processes = [
        subprocess.Popen([*python, "-c", CREATE, str(tmp_path), name], cwd=repository, stdout=subprocess.PIPE)
        for name in names
    ]
    while files.list_names(str(tmp_path / "ready")) != names:
        assert all(process.poll() is None for process in processes)
    (tmp_path / "go").touch()
    made = {name: process.communicate(timeout=30)[0].split() for name, process in zip(names, processes, strict=True)}
    for i in range(60):
        winners = [name for name in names if made[name][i] == b"1"]
        assert len(winners) == 1
        assert files.read_bytes(str(tmp_path / str(i))) == winners[0].encode() * 10_000


@pytest.mark.parametrize("size", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1])
def test_digest_file_is_size_and_sha256(root, size):
    data = (b"0123456789abcdef" * (size // 16 + 1))[:size]
    files.write_bytes(files.join(root, "file"), data)
    digest = files.digest_file(files.join(root, "file"))
    assert (digest.size, digest.sha256) == (size, hashlib.sha256(data).hexdigest())


def test_listings_are_sorted_and_leave_hidden_names_out(root):
    names = ["b/2", "b/1", "a", "b/.hidden", ".git/x", "b/c/3", "b-c"]
    for name in names:
        files.write_bytes(files.join(root, name), name.encode())
    assert files.list_files(root) == [("a", 1), ("b-c", 3), ("b/1", 3), ("b/2", 3), ("b/c/3", 5)]
    assert files.list_names(root) == ["a", "b-c"]
    assert files.list_names(files.join(root, "b")) == ["1", "2"]
    assert files.list_folders(root) == ["b"]


def test_a_missing_folder_lists_as_empty(root):
    nowhere = files.join(root, "nowhere")
    assert (files.list_names(nowhere), files.list_folders(nowhere), files.exists(nowhere)) == ([], [], False)


def test_a_missing_object_is_file_not_found(root):
    for read in (files.read_bytes, files.read_json, files.digest_file):
        with pytest.raises(FileNotFoundError):
            read(files.join(root, "nothing"))


def test_json_is_read_as_it_was_written(root):
    value = {"b": [1, None, "ü"], "a": {"x": 0.1}}
    files.write_json(files.join(root, "value.json"), value)
    assert files.read_json(files.join(root, "value.json")) == value


@pytest.mark.parametrize("data", [b"", b"{", b'{"a": "\xff"}'], ids=["empty", "cut", "not utf-8"])
def test_what_is_not_json_is_refused_by_the_objects_name(root, data):
    files.write_bytes(files.join(root, "value.json"), data)
    with pytest.raises(ValueError, match=r"value\.json.* is not JSON"):
        files.read_json(files.join(root, "value.json"))


def test_remove_takes_files_and_folders_and_nothing_else(root):
    for name in ("keep", "file", "folder/a", "folder/b/c"):
        files.write_bytes(files.join(root, name), b"1")
    for name in ("file", "folder", "nothing"):
        files.remove(files.join(root, name))
    assert files.list_files(root) == [("keep", 1)]


def test_local_and_remote_names_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert files.is_local("a/b")
    assert files.is_local(f"file://{tmp_path}")
    assert not files.is_local("memory://a")
    assert files.absolute("a/b") == str(tmp_path / "a" / "b")
    assert files.local_path(f"file://{tmp_path}") == str(tmp_path)
    assert files.absolute("memory://a/b") == "memory://a/b"
    with pytest.raises(ValueError, match="memory://a"):
        files.local_path("memory://a")


def test_join_puts_one_slash_between_parts():
    assert files.join("memory://a/", "b", "c") == "memory://a/b/c"
    assert files.join("a", "b") == "a/b"


def test_a_link_gives_a_second_name_and_replaces_nothing(root):
    files.write_bytes(files.join(root, "staged", "a"), b"content")
    files.write_bytes(files.join(root, "taken"), b"other")
    assert files.link(files.join(root, "staged", "a"), files.join(root, "new", "b"))
    assert not files.link(files.join(root, "staged", "a"), files.join(root, "new", "b"))
    assert not files.link(files.join(root, "staged", "a"), files.join(root, "taken"))
    files.remove(files.join(root, "staged"))
    assert files.read_bytes(files.join(root, "new", "b")) == b"content"
    assert files.read_bytes(files.join(root, "taken")) == b"other"
    assert files.link(files.join(root, "new", "b"), files.join(root, "taken"), replace=True)
    assert files.read_bytes(files.join(root, "taken")) == b"content"
    with pytest.raises(FileNotFoundError):
        files.link(files.join(root, "staged", "a"), files.join(root, "c"))


def test_a_link_is_a_copy_where_this_link_is_refused(tmp_path, monkeypatch):
    real = os.link

    def refused(source, target, **options):
        if source == str(tmp_path / "a"):  # as for a file of another user, or on another disk
            raise PermissionError(1, "Operation not permitted")
        real(source, target, **options)

    (tmp_path / "a").write_bytes(b"content")
    monkeypatch.setattr(os, "link", refused)
    assert files.link(str(tmp_path / "a"), str(tmp_path / "b"))
    assert not files.link(str(tmp_path / "a"), str(tmp_path / "b"))
    assert (tmp_path / "b").read_bytes() == b"content"


def test_results_of_parallel_calls_are_in_order_and_no_more_than_asked_run_at_once():
    running, most, lock = 0, 0, threading.Lock()

    def work(i: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.002 * (i % 3))
        with lock:
            running -= 1
        return i * i

    assert list(files.in_parallel(work, iter(range(100)), at_once=8)) == [i * i for i in range(100)]
    assert 1 < most <= 8


def test_parallel_calls_end_with_the_first_exception_and_take_no_more_items():
    taken = []

    def items():
        for i in range(10_000):
            taken.append(i)
            yield i

    with pytest.raises(ZeroDivisionError):
        list(files.in_parallel(lambda i: 1 // (20 - i), items(), at_once=4))
    assert len(taken) < 40
