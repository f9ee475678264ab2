"""A Ray cluster of several nodes on this machine: each node is a family of processes with ports of its own."""

import shutil
import socket
import sys
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.faults.processes import Family, wait_until

_PROBES = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "3"}  # a dead node is soon known


class RayCluster:
    """A head and more nodes, on loopback. `address` is what `resources.address` takes, from a job in `environment`."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._folder = tempfile.mkdtemp(prefix="rdpm-ray-")  # short: Ray makes sockets under it
        self.address = f"127.0.0.1:{_free_port()}"
        self.environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex * 2, "RAY_ADDRESS": ""}
        self.nodes: list[Family] = []

    def add(
        self, cpus: int, gpus: int = 0, within: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> Family:
        """Start a node and wait until the cluster knows it. The first one is the head.

        gpus: which Ray only counts. within: a command that runs another one, such as unshare. environment: more
        variables of the node.
        """
        node = Family(self._logs / f"node-{len(self.nodes)}.log")
        head = ["--head", "--port", self.address.split(":")[1], "--include-dashboard=false", "--temp-dir", self._folder]
        where = ["--address", self.address] if self.nodes else head
        sizes = ["--num-cpus", str(cpus), "--num-gpus", str(gpus), "--object-store-memory", str(128 << 20)]
        quiet = ["--disable-usage-stats", "--block", "--node-ip-address", "127.0.0.1"]
        command = [*within, sys.executable, "-m", "ray.scripts.scripts", "start", *where, *sizes, *quiet]
        self.nodes.append(node)
        started = node.start(command, {**self.environment, **_PROBES, **(environment or {})})

        def up() -> bool:
            assert started.poll() is None, node.printed()
            return "Ray runtime started" in node.printed()

        wait_until(up, 90, f"node {len(self.nodes) - 1}: {node.printed()}")
        return node

    def close(self) -> None:
        """End every process of every node."""
        for node in reversed(self.nodes):
            node.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
