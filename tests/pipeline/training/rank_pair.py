"""Two ranks that wait for work: starting them takes seconds, so the tests share one pair.

Run as a script, this file is one rank; its argument is the file descriptor through which it is sent its work.
"""

import importlib.util
import inspect
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

RANKS = 2


class RankPair:
    """Runs functions on both ranks; each is called with (ranks, *arguments)."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen] = []
        self._connections: list[Connection] = []

    def run(self, function: Callable, *arguments: Any, timeout: float = 300) -> list[Any]:
        """What a function returned, by rank. Its file is loaded there by itself: it must import no other test file."""
        if not self._processes:
            self._start()
        for connection in self._connections:
            connection.send((inspect.getsourcefile(function), function.__name__, arguments))
        results: dict[int, Any] = {}
        while len(results) < RANKS:
            ready = wait([c for rank, c in enumerate(self._connections) if rank not in results], timeout)
            if not ready:
                self.stop()
                raise AssertionError(f"no answer in {timeout} s; only ranks {sorted(results)} answered")
            for connection in ready:
                rank = self._connections.index(connection)
                succeeded, results[rank] = connection.recv()
                if not succeeded:
                    self.stop()  # the other rank may wait for this one
                    raise AssertionError(f"rank {rank}: {results[rank]}")
        return [results[rank] for rank in range(RANKS)]

    def _start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        for rank in range(RANKS):
            here, there = Pipe()
            command = [sys.executable, __file__, str(there.fileno())]
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_PORT": port}
            variables |= {"MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": 1}
            environment = os.environ | {name: str(value) for name, value in variables.items()}
            self._processes.append(subprocess.Popen(command, env=environment, pass_fds=[there.fileno()]))
            self._connections.append(here)
            there.close()

    def stop(self) -> None:
        """End both processes; the next run starts new ones."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes, self._connections = [], []


def _serve(connection: Connection) -> None:
    """Join the other rank, and run what is sent until the parent is gone."""
    from rdpm.pipeline.training.process_group import joined_ranks

    with joined_ranks(1) as ranks:
        while True:
            try:
                path, name, arguments = connection.recv()
            except EOFError:
                return
            try:
                spec = importlib.util.spec_from_file_location("work", path)
                module = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(module)
                connection.send((True, getattr(module, name)(ranks, *arguments)))
            except BaseException:
                connection.send((False, traceback.format_exc()))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
