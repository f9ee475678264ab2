"""Two hosts in one machine: network namespaces, joined by a cable of their own, that reach nothing else."""

import shutil
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_FILES = Path("/etc/netns")  # `ip netns exec` mounts what is here over /etc


@dataclass(frozen=True)
class Host:
    """A network namespace."""

    name: str
    """Its name, for `ip netns exec`."""
    address: str
    """Its address on the cable."""
    interface: str
    """Its end of the cable."""

    def command(self, *command: str) -> list[str]:
        """A command, run in this namespace."""
        return ["ip", "netns", "exec", self.name, *command]

    @property
    def environment(self) -> dict[str, str]:
        """What gloo and NCCL need to use the cable."""
        return {"GLOO_SOCKET_IFNAME": self.interface, "NCCL_SOCKET_IFNAME": self.interface, "CUDA_VISIBLE_DEVICES": ""}


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Two such hosts; skips the test where this machine forbids namespaces."""
    tag = uuid.uuid4().hex[:6]
    hosts = tuple(Host(f"rdpm-{tag}-{n}", f"10.213.77.{n}", f"v{tag}-{n}") for n in (1, 2))
    made = []
    try:
        for host in hosts:
            _ip("netns", "add", host.name)
            made.append(host)
            (_FILES / host.name).mkdir(parents=True)  # there is no name server, and asking for one takes seconds
            (_FILES / host.name / "resolv.conf").touch()
            (_FILES / host.name / "hosts").write_text(_names(hosts))
        ends = [("name", host.interface, "netns", host.name) for host in hosts]
        _ip("link", "add", *ends[0], "type", "veth", "peer", *ends[1])
        for host in hosts:
            _ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.interface)
            _ip("-n", host.name, "link", "set", host.interface, "up")
            _ip("-n", host.name, "link", "set", "lo", "up")
    except (FileNotFoundError, PermissionError) as error:
        _remove(made)
        pytest.skip(f"this machine forbids network namespaces: {error}")
    try:
        yield hosts[0], hosts[1]
    finally:
        _remove(made)


def _names(hosts: tuple[Host, ...]) -> str:
    own = f"127.0.0.1 localhost {socket.gethostname()}\n"
    return own + "".join(f"{host.address} {host.name}\n" for host in hosts)


def _remove(hosts: list[Host]) -> None:
    for host in hosts:
        shutil.rmtree(_FILES / host.name, ignore_errors=True)
        _ip("netns", "delete", host.name)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise PermissionError(done.stderr.strip())
