"""Requests to an S3 server behind a faulty proxy: what may pass is asked again, and nothing is misread."""

import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from rdpm.jobs.cli import main
from rdpm.pipeline.foundation import files
from tests.faults.proxy import KINDS, Proxy

PATIENCE = "RDPM_STORAGE_PATIENCE"


def use_everything(root: str) -> list:
    """What every function of `files` says about some objects under a root, in a fixed order."""
    said: list = []
    content = {f"a/{number}": bytes([number]) * (1 + 40_000 * number) for number in range(6)}
    for name, data in content.items():
        files.write_bytes(f"{root}/{name}", data)
    with files.atomic_file(f"{root}/b/streamed") as file:
        file.write(b"streamed" * 1000)
    said += [files.create_bytes(f"{root}/once", data) for data in (b"first", b"second", b"third")]
    said += [files.link(f"{root}/a/3", f"{root}/linked/{number}") for number in (1, 2, 1)]
    said += [hashlib.sha256(files.read_bytes(f"{root}/{name}")).hexdigest() for name in content]
    said += [files.read_bytes(f"{root}/once"), files.digest_file(f"{root}/a/5"), files.size(f"{root}/linked/2")]
    said += [[len(data) for data in files.read_parts([(f"{root}/{name}", 0, 1) for name in content])]]
    with files.open_read(f"{root}/a/4") as file:
        file.seek(100_000)
        said += [file.read(10), file.seek(0, 2)]
    said += [files.list_files(root), files.list_names(f"{root}/a"), files.list_folders(root)]
    said += [[name.removeprefix(root) for name in files.glob(f"{root}/?/[0-9]*".replace("[0-9]", ""))]]
    said += [files.exists(f"{root}/{name}") for name in ("a", "a/1", "a/9", "nothing")]
    said += [files.is_file(f"{root}/{name}") for name in ("a", "a/1", "a/9")]
    files.remove(f"{root}/a/1")
    files.remove_all([f"{root}/a/{number}" for number in (2, 3, 17)])
    files.remove(f"{root}/linked")
    said += [files.list_files(root)]
    return said


@pytest.mark.long
def test_what_passes_changes_no_answer(faulty_s3):
    quiet, _ = faulty_s3()
    expected = use_everything(f"{quiet}/x")
    faulty, proxy = faulty_s3(seed=3, shares={**dict.fromkeys(KINDS, 0.03), "conflict": 0.4})
    assert use_everything(f"{faulty}/x") == expected
    assert proxy.counts.total() > 10


def while_faulty(proxy: Proxy, kind: str, times: int, request: Callable[[], object]) -> object:
    """The result of a request of which the first tries meet this fault."""
    proxy.shares = {kind: 1.0}
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(request)
        while proxy.counts[kind] < times and not running.done():
            time.sleep(0.005)
        proxy.shares = {}
        return running.result(60)


def mostly_long(names: Iterable[str], *quick: str) -> list:
    """Parameters of a test, of which only some do not wait for `make test-long`."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.long) for name in names]


@pytest.mark.parametrize("kind", mostly_long(("lost reply", "conflict", "throttle", "reset"), "lost reply", "conflict"))
def test_whose_object_it_is_stays_known_when_replies_are_lost(faulty_s3, kind):
    root, proxy = faulty_s3()
    assert while_faulty(proxy, kind, 2, lambda: files.create_bytes(f"{root}/lease", b"mine")) is True
    assert while_faulty(proxy, kind, 2, lambda: files.create_bytes(f"{root}/lease", b"another's")) is False
    assert files.read_bytes(f"{root}/lease") == b"mine"


@pytest.mark.long
def test_of_many_that_create_one_object_through_faults_exactly_one_has_made_it(faulty_s3):
    root, proxy = faulty_s3(seed=5, shares={"lost reply": 0.2, "throttle": 0.1, "conflict": 0.2, "reset": 0.1})
    with ThreadPoolExecutor(6) as pool:
        for turn in range(4):
            url = f"{root}/{turn}"
            made = list(pool.map(lambda who, url=url: files.create_bytes(url, b"%d" % who), range(6)))
            assert made.count(True) == 1
            assert files.read_bytes(url) == b"%d" % made.index(True)
    assert proxy.counts["lost reply"] > 0


ASK = {
    "read": lambda root: files.read_bytes(f"{root}/a"),
    "exists": lambda root: files.exists(f"{root}/a"),
    "is_file": lambda root: files.is_file(f"{root}/a"),
    "list_names": lambda root: files.list_names(root),
    "list_files": lambda root: files.list_files(root),
    "glob": lambda root: files.glob(f"{root}/*"),
    "read_parts": lambda root: files.read_parts([(f"{root}/a", 0, 1), (f"{root}/b", 0, 1)]),
    "write": lambda root: files.write_bytes(f"{root}/a", b"new"),
    "create": lambda root: files.create_bytes(f"{root}/new", b"new"),
    "link": lambda root: files.link(f"{root}/a", f"{root}/b"),
    "remove": lambda root: files.remove(f"{root}/a"),
    "open": lambda root: files.open_read(f"{root}/a").read(),
}


@pytest.mark.parametrize("request_name", mostly_long(ASK, "is_file", "list_names"))
def test_a_server_that_stays_busy_is_one_error_and_never_an_answer(faulty_s3, request_name, monkeypatch):
    """Not an object that is missing, nor an empty folder. Tries of several layers do not multiply."""
    monkeypatch.setenv(PATIENCE, "0.2")
    root, proxy = faulty_s3()
    files.write_bytes(f"{root}/a", b"content")
    before = proxy.requests.total()
    proxy.shares = {"throttle": 1.0}
    began = time.monotonic()
    with pytest.raises(files.StorageUnavailable, match=rf"{root}.* did not answer properly for 0.2 s.*503 "):
        ASK[request_name](root)
    assert time.monotonic() - began < 10
    assert proxy.requests.total() - before < 24
    proxy.shares = {}
    assert files.read_bytes(f"{root}/a") == b"content"


@pytest.mark.slow
def test_who_waits_long_is_told_once(faulty_s3, monkeypatch, capsys):
    from rdpm.pipeline.foundation import retries

    monkeypatch.setattr(retries, "_QUIET", 0.3)
    monkeypatch.setattr(retries, "_said", 0.0)
    monkeypatch.setenv(PATIENCE, "1")
    root, proxy = faulty_s3()
    proxy.shares = {"throttle": 1.0}

    def read(number: int) -> None:
        with pytest.raises(files.StorageUnavailable):
            files.read_bytes(f"{root}/{number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("waiting for s3://")]
    assert 1 <= len(told) <= 4
    assert "503 SlowDown" in told[0]
    assert "at most 1 s" in told[0]


class Stalled:
    """A server that takes the first connections and never answers, and passes on the bytes of all others."""

    def __init__(self, server: str, stalled: int) -> None:
        self._server, self._left = server.removeprefix("http://").split(":"), stalled
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client = self._listener.accept()[0]
            except OSError:
                return
            self._open.append(client)
            if self._left > 0:
                self._left -= 1
                continue
            server = socket.create_connection((self._server[0], int(self._server[1])))
            self._open.append(server)
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        for one in (self._listener, *self._open):
            one.close()


@pytest.mark.slow
@pytest.mark.parametrize("limit", mostly_long(("read timeout", "deadline"), "deadline"))
def test_a_request_that_is_never_answered_is_made_again(s3, s3_server, monkeypatch, limit):
    from rdpm.pipeline.foundation import remote

    files.write_bytes(f"{s3}/a", b"content")
    server = Stalled(s3_server["AWS_ENDPOINT_URL"], 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    if limit == "read timeout":
        monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 0.5}})
    fsspec.filesystem("s3").clear_instance_cache()
    try:
        began = time.monotonic()
        seconds = 1.0 if limit == "deadline" else remote.QUICK
        assert remote.ask(f"{s3}/a", "cat_file", seconds=seconds) == b"content"
        assert 0.9 < time.monotonic() - began < 20
    finally:
        server.close()
        fsspec.filesystem("s3").clear_instance_cache()


@pytest.mark.slow
def test_a_wrong_endpoint_is_one_sentence_and_local_errors_are_not_made_again(s3, monkeypatch, capsys, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", nobody)
    monkeypatch.setenv(PATIENCE, "0.5")
    fsspec.filesystem("s3").clear_instance_cache()
    assert main(["verify", f"{s3}/store"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"rdpm verify: {s3}/store")
    assert nobody in said
    assert said.count("\n") == 1
    monkeypatch.setenv(PATIENCE, "soon")
    with pytest.raises(FileNotFoundError):
        files.read_bytes(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="RDPM_STORAGE_PATIENCE is 'soon'; give seconds"):
        files.read_bytes(f"{s3}/a")
    fsspec.filesystem("s3").clear_instance_cache()


def test_a_small_read_is_one_request(faulty_s3):
    root, proxy = faulty_s3()
    files.write_bytes(f"{root}/a", b"content")
    before = proxy.requests.total()
    assert set(files.in_parallel(lambda _: files.read_bytes(f"{root}/a"), range(20))) == {b"content"}
    assert proxy.requests.total() - before == 20


@pytest.mark.long
def test_64_requests_are_in_flight(faulty_s3):
    root, proxy = faulty_s3()
    files.write_bytes(f"{root}/a", b"content")
    proxy.latency, before = 6.0, proxy.counts["latency"]
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: list(files.in_parallel(lambda _: files.read_bytes(f"{root}/a"), range(64))))
        while proxy.counts["latency"] - before < 64 and time.monotonic() - began < 6:
            time.sleep(0.05)
        assert proxy.counts["latency"] - before == 64  # none of them is answered yet
        assert set(running.result(60)) == {b"content"}
