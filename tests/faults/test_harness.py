"""The harness itself: a proxy that changes nothing but what its schedule says, small disks, hosts, families."""

import errno
import signal
import sys
import time
from collections import Counter

import psutil
import pytest

from rdpm.pipeline.foundation import files
from tests.faults.mounts import small_disk
from tests.faults.namespaces import two_hosts
from tests.faults.processes import Family, wait_until
from tests.faults.proxy import KINDS

SLEEPER = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])"


def test_a_quiet_proxy_changes_nothing(faulty_s3) -> None:
    url, proxy = faulty_s3()
    data = bytes(range(256)) * 5000
    files.write_bytes(f"{url}/a b/c+d=é", data)
    assert files.read_bytes(f"{url}/a b/c+d=é") == data
    assert files.list_files(url) == [("a b/c+d=é", len(data))]
    assert [files.create_bytes(f"{url}/once", b"1"), files.create_bytes(f"{url}/once", b"2")] == [True, False]
    assert files.read_parts([(f"{url}/a b/c+d=é", 1000, 7)]) == [data[1000:1007]]
    files.remove(f"{url}/once")
    assert not files.exists(f"{url}/once")
    assert proxy.requests.total() > 5
    assert proxy.counts == Counter()


@pytest.mark.long
def test_every_kind_of_fault_reaches_the_client_and_the_bytes_survive(faulty_s3) -> None:
    url, proxy = faulty_s3(seed=1, shares={**dict.fromkeys(KINDS, 0.04), "conflict": 0.3})
    for number in range(40):
        files.create_bytes(f"{url}/{number}", str(number).encode() * 100)
    for number in range(40):
        assert files.read_bytes(f"{url}/{number}") == str(number).encode() * 100
    assert set(proxy.counts) == set(KINDS)


def test_a_small_disk_is_full_then_grows_then_is_read_only(tmp_path) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        with pytest.raises(OSError) as full:
            (disk.folder / "large").write_bytes(bytes(100_000))
        assert full.value.errno == errno.ENOSPC
        disk.resize(1024)
        (disk.folder / "large").write_bytes(bytes(100_000))
        disk.make_read_only()
        with pytest.raises(OSError) as refused:
            (disk.folder / "small").write_bytes(b"")
        assert refused.value.errno == errno.EROFS
    assert not (tmp_path / "disk" / "large").exists()


def test_hosts_see_each_other_and_nothing_else(tmp_path) -> None:
    code = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2).recv(1)"
    serve = "import socket; s = socket.create_server(('', 7777)); print('up', flush=True); s.accept()[0].send(b'x')"
    with two_hosts() as (first, second):
        server, client = Family(tmp_path / "server"), Family(tmp_path / "client")
        server.start(first.command(sys.executable, "-c", serve))
        wait_until(lambda: "up" in server.printed(), 10, "the server")
        for address, port, code_expected in ((first.address, 7777, 0), ("192.0.2.1", 80, 1)):
            job = client.start(second.command(sys.executable, "-c", code, address, str(port)))
            assert job.wait(20) == code_expected, client.printed()
        server.close()


def test_a_family_is_stopped_continued_and_ended_whole(family) -> None:
    parent = family.start([sys.executable, "-c", SLEEPER])
    assert parent.wait(20) == 0  # the child lives on without it
    (child,) = family.members("time.sleep(60)")
    assert family.send(signal.SIGSTOP) == 1
    wait_until(lambda: child.status() == psutil.STATUS_STOPPED, 5, "the stop")
    assert family.send(signal.SIGCONT) == 1
    wait_until(lambda: child.status() != psutil.STATUS_STOPPED, 5, "the continuation")
    began = time.monotonic()
    family.close()
    assert time.monotonic() - began < 5
    assert not psutil.pid_exists(child.pid) or child.status() == psutil.STATUS_ZOMBIE
